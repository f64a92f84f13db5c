package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/sealpod/sealpod/cdh/rest"
	"github.com/sealpod/sealpod/cmd/internal/cli"
	"github.com/sealpod/sealpod/forwarder"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/metrics"
	"github.com/sealpod/sealpod/podvm/rpc"
)

// logLevelApplet changes how much a running daemon logs.
func logLevelApplet() *cobra.Command {
	var socket string
	cmd := &cobra.Command{
		Use:   "log-level DAEMON [LEVEL]",
		Short: "How much a running daemon logs",
		Long: `Prints the log level of a running daemon, or changes it until the daemon ends:
trace, debug, info, warn, error or off. DAEMON is attestation-agent,
confidential-data-hub, api-server-rest or agent-protocol-forwarder. It takes root.`,
		Example: `  sealpod log-level confidential-data-hub
  sealpod log-level confidential-data-hub debug`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			level := ""
			if len(args) > 1 {
				level = args[1]
			}
			return logLevel(cmd.Context(), cmd.OutOrStdout(), args[0], socket, level)
		},
	}
	cmd.Flags().StringVar(&socket, "socket", "", "`unix://PATH` of the daemon's metrics, if they are not in the usual place")
	return cmd
}

func logLevel(ctx context.Context, out io.Writer, daemon, socket, level string) error {
	path, ok := map[string]string{
		"attestation-agent": metrics.Socket(podvm.AASocket), "confidential-data-hub": metrics.Socket(podvm.CDHSocket),
		"api-server-rest": rest.MetricsSocket, "agent-protocol-forwarder": metrics.Socket(forwarder.Socket),
	}[daemon]
	if !ok {
		return fmt.Errorf("no daemon %q (%w)", podvm.Printable(daemon, 64), cli.ErrUsage)
	}
	if socket != "" {
		var err error
		if path, err = rpc.SocketPath(socket); err != nil {
			return fmt.Errorf("--socket: %w (%w)", err, cli.ErrUsage)
		}
	}
	if level != "" {
		if _, err := podvm.LogLevel(level); err != nil {
			return fmt.Errorf("%w (%w)", err, cli.ErrUsage)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	level, err := metrics.LogLevel(ctx, path, level)
	if err == nil {
		_, err = fmt.Fprintln(out, level)
	}
	return err
}
