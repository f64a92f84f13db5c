package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"

	"github.com/spf13/cobra"

	"github.com/sealpod/sealpod/cdh/rest"
	"github.com/sealpod/sealpod/cmd/internal/cli"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/metrics"
	"github.com/sealpod/sealpod/podvm/notify"
	"github.com/sealpod/sealpod/podvm/rpc"
)

// restFlags is the command line of upstream's api-server-rest.
type restFlags struct {
	bind, metrics string
	config        rest.Config
}

func apiServerREST() *cobra.Command {
	f := restFlags{config: rest.Config{Version: podvm.Version()}}
	cmd := &cobra.Command{
		Use:   "api-server-rest",
		Short: "Secrets, tokens and evidence for containers, over HTTP on loopback",
		Long: `The REST server lets containers of the pod fetch resources from the data hub
and tokens and evidence from the attestation agent with plain HTTP. It answers
loopback peers only. The daemons behind it may start later.

At unix://PATH it answers everyone who may write to the socket. Its mode
follows the umask: with 022 that is the user who starts it alone.`,
		Example: `  api-server-rest
  api-server-rest --features all
  api-server-rest -b unix:///run/pod/rest.sock
  curl http://127.0.0.1:8006/cdh/resource/default/key/1`,
		Args:    cobra.NoArgs,
		Version: podvm.Version(),
		RunE:    func(*cobra.Command, []string) error { return f.run() },
	}
	fl := cmd.Flags()
	fl.StringVarP(&f.bind, "bind", "b", podvm.RESTAddr, "listen on this `address`: ADDRESS:PORT, or unix://PATH")
	fl.StringVarP(&f.config.Features, "features", "f", "resource", "what to serve: resource, attestation or all")
	fl.StringVarP(&f.config.CDHAddr, "cdh_addr", "c", "unix://"+podvm.CDHSocket, "the data hub's `unix://PATH`")
	fl.StringVarP(&f.config.AAAddr, "aa_addr", "a", "unix://"+podvm.AASocket, "the attestation agent's `unix://PATH`")
	fl.StringVar(&f.metrics, "metrics", "", "where metrics and status are: unix://PATH, or off (default: beside the socket of --bind, or "+rest.MetricsSocket+" where its directory exists)")
	fl.BoolP("version", "V", false, "print the version")
	return cmd
}

func (f restFlags) run() error {
	listen, err := f.listener()
	if err != nil {
		return err
	}
	shown, err := f.metricsAt()
	if err != nil {
		return err
	}
	return runDaemon("api-server-rest", "", func(ctx context.Context, _ podvm.Host, log *slog.Logger) (err error) {
		f.config.Log = log
		h, err := rest.New(f.config)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, h.Close()) }()
		l, err := listen(ctx)
		if err != nil {
			return err
		}
		log.Info("Ready", "addr", l.Addr().String(), "features", f.config.Features)
		ctx, stop := context.WithCancel(ctx)
		var watching sync.WaitGroup
		defer watching.Wait()
		defer stop()
		watched := metrics.Listen(ctx, shown, "", h.Metrics(), func() any { return h.Status() }, log)
		watching.Go(func() { watched.Serve(ctx) })
		probe := rest.NewProbe()
		watching.Go(func() { notify.Serving(ctx, log, probe.Answers) })
		return rest.Serve(ctx, l, probe, h, log)
	})
}

// metricsAt reads --metrics. A port is not for this one: it would be the pod's.
func (f restFlags) metricsAt() (string, error) {
	if f.metrics != "" && f.metrics != metrics.Off {
		if _, err := rpc.SocketPath(f.metrics); err != nil {
			return "", fmt.Errorf("--metrics: %w (%w)", err, cli.ErrUsage)
		}
		return f.metrics, nil
	}
	if f.metrics == "" {
		if path, err := rpc.SocketPath(f.bind); err == nil {
			return "unix://" + metrics.Socket(path), nil
		}
		if _, err := os.Stat(filepath.Dir(rest.MetricsSocket)); err == nil {
			return "unix://" + rest.MetricsSocket, nil
		}
	}
	return metrics.Off, nil
}

// listener reads --bind and returns what listens there.
func (f restFlags) listener() (func(context.Context) (net.Listener, error), error) {
	if path, err := rpc.SocketPath(f.bind); err == nil {
		return func(ctx context.Context) (net.Listener, error) { return rpc.Listen(ctx, path) }, nil
	}
	addr, err := netip.ParseAddrPort(f.bind)
	if err != nil {
		return nil, fmt.Errorf("--bind %q: want ADDRESS:PORT, as in %s, or unix://PATH (%w)", podvm.Printable(f.bind, 100), podvm.RESTAddr, cli.ErrUsage)
	}
	return func(ctx context.Context) (net.Listener, error) {
		l, err := rpc.ListenTCP(ctx, addr)
		if err != nil {
			return nil, fmt.Errorf("%w (is another one running?)", err)
		}
		return l, nil
	}, nil
}
