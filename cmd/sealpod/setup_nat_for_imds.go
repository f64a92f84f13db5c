package main

import (
	"context"
	"log/slog"

	"github.com/spf13/cobra"

	"github.com/sealpod/sealpod/forwarder/podnet"
	"github.com/sealpod/sealpod/podvm"
)

func setupNATForIMDS() *cobra.Command {
	var addresses, namespace string
	cmd := &cobra.Command{
		Use:   "setup-nat-for-imds",
		Short: "A way to the cloud's metadata service for the pod",
		Long: `setup-nat-for-imds lets containers of the pod ask the cloud's instance metadata
service (IMDS), in the name of the VM: whoever breaks into one can then act in the
cloud with the identity of the VM and read its user data. Its unit does nothing
unless the image has the file /etc/default/setup-nat-for-imds.`,
		Example: `  setup-nat-for-imds start
  setup-nat-for-imds start --imds 100.100.100.200
  setup-nat-for-imds stop`,
		Args:    cobra.NoArgs,
		Version: podvm.Version(),
	}
	fl := cmd.PersistentFlags()
	fl.StringVar(&addresses, "imds", "169.254.169.254", "`addresses` of metadata services, separated by commas; Alibaba Cloud has 100.100.100.200")
	fl.StringVar(&namespace, "pod-namespace", podnet.DefaultNamespace, "the `path` of the pod's network namespace")
	sub := func(use, short string, do func(context.Context, podnet.Options) error) *cobra.Command {
		return &cobra.Command{Use: use, Short: short, Args: cobra.NoArgs, RunE: func(*cobra.Command, []string) error {
			imds, err := podnet.ParseIMDS(addresses)
			if err != nil {
				return err
			}
			return runDaemon("setup-nat-for-imds", "", func(ctx context.Context, host podvm.Host, log *slog.Logger) error {
				return do(ctx, podnet.Options{Namespace: namespace, IMDS: imds, Host: host, Log: log})
			})
		}}
	}
	cmd.AddCommand(
		sub("start", "Make the way once the pod has a network; a minute is waited for that", podnet.SetupIMDS),
		sub("stop", "Take the way back", podnet.TeardownIMDS),
	)
	return cmd
}
