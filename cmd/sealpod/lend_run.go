package main

import (
	"github.com/spf13/cobra"

	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/hostrun"
)

func lendRun() *cobra.Command {
	return &cobra.Command{
		Use:   "lend-run",
		Short: "Lend the machine's /run to a daemon with a mount namespace of its own",
		Long: `lend-run leaves the mounts of /run with systemd for the daemon of the same unit,
which puts them over the /run of its own mount namespace: what it mounts there,
everyone sees. It is the step ExecStartPre=+ of units that have NotifyAccess=exec
and FileDescriptorStoreMax=1, and of no use elsewhere.`,
		Args:    cobra.NoArgs,
		Version: podvm.Version(),
		RunE:    func(*cobra.Command, []string) error { return hostrun.Lend() },
	}
}
