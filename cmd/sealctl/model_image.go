package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/sealpod/sealpod/imageseal"
	"github.com/sealpod/sealpod/imageseal/initializer"
	"github.com/sealpod/sealpod/podvm"
)

// maxBinary caps the guest binary.
const maxBinary = 1 << 30

// modelImage is "sealctl model image".
func modelImage() *cobra.Command {
	var binary string
	var access imageseal.Access
	cmd := &cobra.Command{
		Use:   "image IMAGE",
		Short: "Make the image of the storage initializer",
		Long: `Makes the image that KServe runs as init container: the binary sealpod, certificates
of public authorities, and nothing else. The same binary gives the same image. IMAGE is
a registry reference or an OCI layout on disk (oci:DIRECTORY[:TAG]).`,
		Example: `  sealctl model image registry.example/sealpod/storage-initializer:1 --binary bin/sealpod
  sealctl image sign registry.example/sealpod/storage-initializer:1 --key cosign.key`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := missing("binary", binary); err != nil {
				return err
			}
			b, err := podvm.ReadFileMax(binary, maxBinary)
			if err != nil {
				return fmt.Errorf("reading the binary: %w", err)
			}
			img, err := initializer.Image(b)
			if err != nil {
				return fmt.Errorf("%s: %w\nhint: `make build` puts one into bin/sealpod", binary, err)
			}
			digest, err := imageseal.Publish(cmd.Context(), args[0], img, access)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s  %s\n", digest, args[0])
			return err
		},
	}
	cmd.Flags().StringVar(&binary, "binary", "", "the `file` sealpod, built for the pods' machines (required)")
	insecureFlag(cmd, &access)
	return cmd
}
