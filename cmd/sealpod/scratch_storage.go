package main

import (
	"context"
	"log/slog"

	"github.com/spf13/cobra"

	"github.com/sealpod/sealpod/cdh/mount/scratch"
	"github.com/sealpod/sealpod/podvm"
)

func scratchStorage() *cobra.Command {
	return &cobra.Command{
		Use:   "scratch-storage",
		Short: "Encrypted room on the VM's own disk for images and containers",
		Long: `scratch-storage takes the partition trusted_store, encrypts it under a random key
that is kept nowhere, and mounts an ext4 of it on ` + podvm.ImageWorkDir + `.
Without it images are in memory. It can be repeated, and then changes nothing. A
partition that carries data is refused.`,
		Example: "  scratch-storage",
		Args:    cobra.NoArgs,
		Version: podvm.Version(),
		RunE: func(*cobra.Command, []string) error {
			return runDaemon("scratch-storage", "", func(ctx context.Context, host podvm.Host, log *slog.Logger) error {
				return scratch.Mount(ctx, scratch.Config{Host: host, Log: log})
			})
		},
	}
}
