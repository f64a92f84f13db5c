package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sealpod/sealpod/cdh/kms"
	"github.com/sealpod/sealpod/cdh/server"
	"github.com/sealpod/sealpod/cmd/internal/cli"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/rpc"
)

// hubFlags is the command line of upstream's ttrpc-cdh, and --check-config.
type hubFlags struct {
	config, grpc   string
	version, check bool
}

func confidentialDataHub() *cobra.Command {
	var f hubFlags
	cmd := &cobra.Command{
		Use:   "confidential-data-hub",
		Short: "Secrets, images and layer keys for the pod, over ttrpc",
		Long: `The confidential data hub fetches secrets from a Key Broker Service (KBS) with
the attestation agent's token, pulls images inside the guest, and unwraps the
keys of encrypted layers.

Without -c, the KBS comes from AA_KBC_PARAMS or the kernel parameter
agent.aa_kbc_params (cc_kbc::URL). RUST_LOG sets the log level.

With --grpc, or listen in [grpc] of the configuration, it also speaks gRPC as
upstream's grpc-cdh does: to every process of its network namespace, without
permissions.`,
		Example: `  confidential-data-hub -c /run/peerpod/cdh.toml
  confidential-data-hub -c cdh.toml --grpc
  confidential-data-hub -c cdh.toml --check-config
  AA_KBC_PARAMS=cc_kbc::https://kbs.example:8080 confidential-data-hub`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd.OutOrStdout()) },
	}
	fl := cmd.Flags()
	fl.StringVarP(&f.config, "config", "c", "", "configuration `file`, .toml or .json")
	fl.StringVar(&f.grpc, "grpc", "", "speak gRPC too, at this `HOST:PORT` of a loopback address; wins over listen in [grpc]")
	fl.Lookup("grpc").NoOptDefVal = server.GRPCAddr
	fl.BoolVarP(&f.version, "version", "V", false, "print the version and what is supported")
	fl.BoolVar(&f.check, "check-config", false, "check the configuration, print it without secrets, and exit")
	return cmd
}

func (f hubFlags) run(out io.Writer) error {
	if f.version {
		_, err := fmt.Fprintf(out, "%s\nkbs: enabled\nkms plugins: %s\n", podvm.Version(), strings.Join(kms.Names(), ", "))
		return err
	}
	config, unknown, err := server.LoadConfig(f.config, podvm.Host{})
	if err != nil {
		return err
	}
	if f.grpc != "" {
		if _, err := rpc.LoopbackAddr(f.grpc); err != nil {
			return fmt.Errorf("--grpc: %w (%w)", err, cli.ErrUsage)
		}
		config.GRPC = server.GRPC{Listen: f.grpc}
	}
	if f.check {
		return checkHubConfig(out, f.config, config, unknown)
	}
	return runDaemon("confidential-data-hub", config.Log.Level, func(ctx context.Context, host podvm.Host, log *slog.Logger) error {
		for _, u := range unknown {
			log.Warn("The configuration has a key that nothing reads", "file", f.config, "key", u.Key, "line", u.Line)
		}
		return server.Run(ctx, config, host, log)
	})
}

func checkHubConfig(out io.Writer, path string, config server.Config, unknown []podvm.UnknownKey) error {
	if err := config.Print(out); err != nil {
		return err
	}
	for _, u := range unknown {
		if _, err := fmt.Fprintf(out, "warning: %s: %s\n", path, u); err != nil {
			return err
		}
	}
	if err := config.CheckClients(podvm.Host{}); err != nil {
		return errors.Join(errors.New("the configuration is not usable"), err)
	}
	return nil
}
