package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/sealpod/sealpod/cdh/mount"
	"github.com/sealpod/sealpod/cdh/server"
	"github.com/sealpod/sealpod/cdh/volume"
	"github.com/sealpod/sealpod/podvm"
)

func (f *oneshotFlags) unsealSecret() *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use: "unseal-secret", Short: "Print what a sealed secret holds as base64", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := given("secret-path", path); err != nil {
				return err
			}
			sealed, err := podvm.ReadFileMax(path, maxInput)
			if err != nil {
				return err
			}
			err = f.secret(cmd.OutOrStdout(), func(ctx context.Context, h *server.Hub) (podvm.Secret, error) { return h.Unseal(ctx, sealed) })
			if n := len(sealed); err != nil && n > 0 && sealed[n-1] == '\n' {
				return fmt.Errorf("%w\nhint: %s ends in a line end, which belongs to no sealed secret", err, path)
			}
			return err
		},
	}
	cmd.Flags().StringVarP(&path, "secret-path", "s", "", "`file` with the sealed secret and nothing else")
	return cmd
}

func (f *oneshotFlags) secureMount() *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use: "secure-mount", Short: "Open an encrypted volume and print where it is", Args: cobra.NoArgs,
		Long: `Opens a volume that a JSON file describes: volume_type and mount_point, texts,
options, an object of texts, and flags, an array of texts. It is not tried again.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := given("storage-path", path); err != nil {
				return err
			}
			v, err := volume.ReadFile(path)
			if err != nil {
				return err
			}
			return f.with(func(ctx context.Context, h *server.Hub) error {
				req := mount.Request{VolumeType: v.VolumeType, Options: v.Options, Flags: v.Flags, MountPoint: v.MountPoint}
				if err := h.Mount(ctx, req); err != nil {
					return told(err)
				}
				_, err := fmt.Fprintf(cmd.OutOrStdout(), "mount path: %s\n", podvm.Printable(req.MountPoint, 4096))
				return err
			})
		},
	}
	cmd.Flags().StringVarP(&path, "storage-path", "s", "", "JSON `file` that describes the volume")
	return cmd
}
