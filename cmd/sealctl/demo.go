package main

import (
	"errors"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/sealpod/sealpod/cmd/sealctl/internal/demo"
)

// demoCommand is "sealctl demo".
func demoCommand() *cobra.Command {
	var o demo.Options
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "demo [flags]",
		Short: "Show a confidential pod start on this machine",
		Long: `Demo starts a registry, a relying party and the real guest daemons on loopback,
seals and signs an image, pulls it into a simulated pod, hands a secret to a
container, and shows three attacks being refused. It needs no root, no network
and no TEE, and leaves nothing behind.

With --tee the pods run on machines with a simulated TEE, and machines that are
not what the owner expects are refused too. That needs /dev/fuse and either root
or Debian's package fuse3; the Azure kinds need the package swtpm instead.`,
		Example: `  sealctl demo
  sealctl demo --tee tdx-sim
  sealctl demo --image docker.io/library/alpine:3
  sealctl demo --json | jq .refusals`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !asJSON {
				o.Text = cmd.OutOrStdout()
				o.Color = term.IsTerminal(int(os.Stdout.Fd())) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
			}
			report, err := demo.Run(cmd.Context(), o)
			if asJSON {
				err = errors.Join(err, report.WriteJSON(cmd.OutOrStdout()))
			}
			if err == nil && !report.OK {
				err = errors.New("the demo did not go as it should, see above")
			}
			return err
		},
	}
	cmd.Flags().StringVar(&o.Image, "image", "", "seal and pull this image instead of a built one")
	cmd.Flags().StringVar(&o.TEE, "tee", demo.Sample, "`kind` of machine the pods run on: "+strings.Join(demo.Kinds(), ", "))
	cmd.Flags().StringVar(&o.Sealpod, "sealpod", "", "guest binary (default: beside this program, or on PATH)")
	cmd.Flags().BoolVar(&o.Keep, "keep", false, "keep the working directory with configuration and logs")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON report instead of the story")
	return cmd
}
