package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/sealpod/sealpod/cdh/server"
	"github.com/sealpod/sealpod/cmd/internal/cli"
	"github.com/sealpod/sealpod/imagepull"
)

// pullFlags is the command line of pull-image.
type pullFlags struct {
	image, bundle string
	dry, json     bool
}

func (f *oneshotFlags) pullImage() *cobra.Command {
	var p pullFlags
	cmd := &cobra.Command{
		Use: "pull-image", Short: "Pull an image and make a bundle of it", Args: cobra.NoArgs,
		Long: `Pulls an image as the daemon does, and shows how far it is on stderr. With
--dry-run it goes as far as the policy, tells what each requirement said and
which layers there are, and neither fetches nor writes anything.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := given("image-url", p.image); err != nil {
				return err
			}
			if p.bundle == "" && !p.dry {
				return fmt.Errorf("--bundle-path or --dry-run is missing (%w)", cli.ErrUsage)
			}
			if p.dry {
				return f.dryRun(cmd.OutOrStdout(), p)
			}
			return f.pull(cmd.OutOrStdout(), cmd.ErrOrStderr(), p)
		},
	}
	fl := cmd.Flags()
	fl.StringVarP(&p.image, "image-url", "i", "", "the image, `REGISTRY/NAME:TAG` or @DIGEST")
	fl.StringVarP(&p.bundle, "bundle-path", "b", "", "the `directory` to make rootfs and config.json in")
	fl.BoolVar(&p.dry, "dry-run", false, "only tell what a pull would meet")
	fl.BoolVar(&p.json, "json", false, "print the result as JSON")
	return cmd
}

func (f *oneshotFlags) pull(out, errOut io.Writer, p pullFlags) error {
	f.progress = newProgressView(errOut, os.LookupEnv)
	defer f.progress.Close()
	return f.with(func(ctx context.Context, h *server.Hub) error {
		digest, err := h.Pull(ctx, p.image, p.bundle)
		f.progress.Close()
		if err != nil {
			return told(err)
		}
		if p.json {
			return json.NewEncoder(out).Encode(struct {
				imagepull.Status
				Digest string `json:"digest"`
				Bundle string `json:"bundle"`
			}{f.progress.last(), digest, p.bundle})
		}
		_, err = fmt.Fprintf(out, "image digest: %s\n", digest)
		return err
	})
}

var errNotPullable = errors.New("the image cannot be pulled")

func (f *oneshotFlags) dryRun(out io.Writer, p pullFlags) error {
	f.dry = true
	return f.with(func(ctx context.Context, h *server.Hub) error {
		report, err := h.DryRun(ctx, p.image)
		if err != nil {
			return told(err)
		}
		if p.json {
			err = json.NewEncoder(out).Encode(report)
		} else {
			_, err = io.WriteString(out, report.String())
		}
		if err == nil && !report.Pullable() {
			err = errNotPullable
		}
		return err
	})
}
