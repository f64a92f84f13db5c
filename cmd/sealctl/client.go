package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/sealpod/sealpod/cmd/internal/cli"
	"github.com/sealpod/sealpod/podvm"
)

// clientCommand is "sealctl client".
func clientCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "client DAEMON CALL",
		Short: "Call the daemons of a pod VM, as kata-agent and containers do",
		Long: `Makes one call of the attestation agent (aa) or of the confidential data hub
(cdh): over ttrpc at a unix socket, which is in the pod VM, or over gRPC at a
port where the daemon was asked to serve one.

The command lines, outputs and exit codes are those of upstream's ttrpc-cdh-tool,
grpc-cdh-tool and ttrpc-aa-client: 0 done, 2 wrong usage, 101 failed.`,
		Example: `  sealctl client aa get-tee-type
  sealctl client cdh get-resource --resource-uri kbs:///default/key/1
  sealctl client cdh -s http://127.0.0.1:50000 -t 10 get-resource -r kbs:///default/key/1`,
		Args: cobra.NoArgs,
	}
	root.AddCommand(cli.Upstream("sealctl client aa", agentClient()), cli.Upstream("sealctl client cdh", hubClient()))
	return root
}

// daemon is one that a client calls.
type daemon struct {
	applet string // that serves it
	socket string // where
	grpc   string // how it comes to speak gRPC
}

var (
	agentDaemon = daemon{"attestation-agent", podvm.AASocket, "-a 127.0.0.1:50002"}
	hubDaemon   = daemon{"confidential-data-hub", podvm.CDHSocket, "--grpc, or with listen in [grpc] of its configuration"}
)

// Timeouts of calls. Source: guest-components ttrpc-cdh-tool.rs at 8246e5e, and
// for pulls kata-agent's image_pull_timeout at 7c6ba40.
const (
	callTimeout = 50 * time.Second
	pullTimeout = 20 * time.Minute
	maxTimeout  = 24 * time.Hour
)

// clientFlags say whom to call, and how to tell of it.
type clientFlags struct {
	daemon  daemon
	address string
	timeout uint // seconds; 0 is the call's own
	json    bool
}

// root returns the command whose subcommands are calls of d. Upstream's tools
// have the flags before the call; after it they have no letters, which mean
// other things there.
func (f *clientFlags) root(d daemon, cmd *cobra.Command, calls ...*cobra.Command) *cobra.Command {
	f.daemon = d
	f.add(cmd.Flags(), "s", "t")
	for _, c := range calls {
		c.Args = cobra.NoArgs
		f.add(c.Flags(), "", "")
	}
	cmd.AddCommand(calls...)
	cmd.Args = cobra.ArbitraryArgs
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		if len(args) > 0 {
			return fmt.Errorf("unknown call %q (%w)", podvm.Printable(args[0], 64), cli.ErrUsage)
		}
		return fmt.Errorf("a call is missing (%w)", cli.ErrUsage)
	}
	return cmd
}

func (f *clientFlags) add(fl *pflag.FlagSet, socket, timeout string) {
	fl.StringVarP(&f.address, "socket", socket, "unix://"+f.daemon.socket, "the daemon's `address`: unix://PATH for ttrpc, http://HOST:PORT for gRPC")
	fl.UintVarP(&f.timeout, "timeout", timeout, 0, "give up after so many `seconds` (default 50, to pull an image 1200)")
	fl.BoolVar(&f.json, "json", false, "print the response as JSON, bytes in it as base64")
}

// within is the time a call may take.
func (f *clientFlags) within(otherwise time.Duration) (time.Duration, error) {
	if f.timeout == 0 {
		return otherwise, nil
	}
	if f.timeout > uint(maxTimeout/time.Second) {
		return 0, fmt.Errorf("--timeout %d: want at most %d seconds (%w)", f.timeout, maxTimeout/time.Second, cli.ErrUsage)
	}
	return time.Duration(f.timeout) * time.Second, nil
}

// required is the error for a flag that is not there, or nil. Its value may be
// empty.
func required(cmd *cobra.Command, names ...string) error {
	for _, name := range names {
		if !cmd.Flags().Changed(name) {
			return fmt.Errorf("--%s is missing (%w)", name, cli.ErrUsage)
		}
	}
	return nil
}
