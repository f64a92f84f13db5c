package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"github.com/sealpod/sealpod/attester"
	"github.com/sealpod/sealpod/attester/server"
	"github.com/sealpod/sealpod/cmd/internal/cli"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/metrics"
	"github.com/sealpod/sealpod/podvm/notify"
	"github.com/sealpod/sealpod/podvm/rpc"
)

// agentFlags is the command line of upstream's ttrpc-aa and grpc-aa, and
// --check-config.
type agentFlags struct {
	address, config, digest, toml string
	version, check                bool
}

func attestationAgent() *cobra.Command {
	var f agentFlags
	cmd := &cobra.Command{
		Use:   "attestation-agent",
		Short: "Evidence, tokens and measurements for the pod, over ttrpc",
		Long: `The attestation agent proves to a Key Broker Service (KBS) what this guest is,
and hands the resulting tokens to the data hub and the pod.

Without -c, the KBS comes from AA_KBC_PARAMS or the kernel parameter
agent.aa_kbc_params (cc_kbc::URL). SEALPOD_ATTESTERS lists the TEEs that may
be used, SEALPOD_INITDATA_RTMR3 takes the place of [initdata] rtmr3, RUST_LOG
sets the log level.

Without -i and -t, the init data of a pod VM, /run/peerpod/initdata, is bound
where the TEE has a place for it. SEALPOD_INITDATA=off leaves it alone.

At HOST:PORT it speaks gRPC instead, as upstream's grpc-aa does: to every
process of its network namespace, without permissions.`,
		Example: `  attestation-agent -c /run/peerpod/aa.toml
  attestation-agent -c aa.toml -a unix:///tmp/aa.sock
  attestation-agent -c aa.toml -a 127.0.0.1:50002
  attestation-agent -c aa.toml --check-config`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd.OutOrStdout()) },
	}
	fl := cmd.Flags()
	fl.StringVarP(&f.address, "attestation_sock", "a", "unix://"+podvm.AASocket, "listen on this `address`: unix://PATH, or HOST:PORT of a loopback address for gRPC")
	fl.StringVarP(&f.config, "config-file", "c", "", "configuration `file`, .toml or .json")
	fl.StringVarP(&f.digest, "initdata-digest", "i", "", "bind this init data `digest` (base64)")
	fl.StringVarP(&f.toml, "initdata-toml", "t", "", "hash and bind this init data `file`, and send it to the KBS; wins over -i")
	fl.BoolVarP(&f.version, "version", "V", false, "print the version and what is supported")
	fl.BoolVar(&f.check, "check-config", false, "check the configuration, print it without secrets, and exit")
	return cmd
}

func (f agentFlags) run(out io.Writer) error {
	if f.version {
		_, err := fmt.Fprintf(out, "%s\nsupported attesters: %s\ntoken plugins: kbs, coco_as\n",
			podvm.Version(), strings.Join(attester.Supported(), ", "))
		return err
	}
	at, err := parseEndpoint(f.address)
	if err != nil {
		return fmt.Errorf("--attestation_sock: %w (%w)", err, cli.ErrUsage)
	}
	config, unknown, err := server.LoadConfig(f.config, podvm.Host{})
	if err != nil {
		return err
	}
	if f.check {
		return checkAgentConfig(out, f.config, config, unknown)
	}
	return runDaemon("attestation-agent", config.Log.Level, func(ctx context.Context, host podvm.Host, log *slog.Logger) error {
		for _, u := range unknown {
			log.Warn("The configuration has a key that nothing reads", "file", f.config, "key", u.Key, "line", u.Line)
		}
		return f.serve(ctx, at, config, host, log)
	})
}

// serve gets everything ready before the socket appears: its existence is the
// signal that others start on.
func (f agentFlags) serve(ctx context.Context, at endpoint, config server.Config, host podvm.Host, log *slog.Logger) error {
	if at.socket != "" {
		if err := rpc.RemoveStale(ctx, at.socket); err != nil {
			return err
		}
	}
	tees, err := attester.Detect(ctx, attester.Options{Host: host, Allow: config.Attester.Allow, Log: log})
	if err != nil {
		return err
	}
	bound, err := server.BindInitData(ctx, config, tees, host, f.digest, f.toml, log)
	if err != nil {
		return err
	}
	events, err := server.OpenEventLog(ctx, config, tees, host, log)
	if err != nil {
		return err
	}
	agent := server.New(server.Deps{Config: config, TEEs: tees, EventLog: events, InitData: bound, Log: log})
	defer agent.Close()
	watched := metrics.Listen(ctx, config.Metrics.Listen, at.socket, agent.Metrics(), func() any { return agent.Status() }, log)
	ctx, stop := context.WithCancel(ctx)
	var watching sync.WaitGroup
	watching.Go(func() { watched.Serve(ctx) })
	defer watching.Wait()
	defer stop()
	if at.socket == "" {
		l, err := rpc.ListenTCP(ctx, at.port)
		if err != nil {
			return err
		}
		log.Warn("Every process of this network namespace may ask for evidence and tokens", "address", l.Addr())
		log.Info("Ready", "address", l.Addr(), "tee", tees.TEE(), "devices", tees.DeviceTEEs())
		watching.Go(func() {
			notify.Serving(ctx, log, func(ctx context.Context) error { return rpc.AnswersGRPC(ctx, l.Addr().String()) })
		})
		return rpc.ServeGRPC(ctx, l, log, rpc.AgentLimits, agent.RegisterGRPC)
	}
	l, err := rpc.Listen(ctx, at.socket)
	if err != nil {
		return err
	}
	log.Info("Ready", "socket", at.socket, "tee", tees.TEE(), "devices", tees.DeviceTEEs())
	watching.Go(func() {
		notify.Serving(ctx, log, func(ctx context.Context) error { return rpc.Answers(ctx, at.socket) })
	})
	return rpc.Serve(ctx, l, log, agent.Register)
}

// endpoint is where the agent listens: a socket for ttrpc, or else a port for
// gRPC.
type endpoint struct {
	socket string
	port   netip.AddrPort
}

func parseEndpoint(addr string) (endpoint, error) {
	path, err := rpc.SocketPath(addr)
	if err == nil {
		return endpoint{socket: path}, nil
	}
	port, perr := rpc.LoopbackAddr(addr)
	if perr != nil {
		return endpoint{}, fmt.Errorf("%w, or HOST:PORT of a loopback address for gRPC", err)
	}
	return endpoint{port: port}, nil
}

func checkAgentConfig(out io.Writer, path string, config server.Config, unknown []podvm.UnknownKey) error {
	if err := config.Describe(out); err != nil {
		return err
	}
	for _, u := range unknown {
		if _, err := fmt.Fprintf(out, "warning: %s: %s\n", path, u); err != nil {
			return err
		}
	}
	if err := config.CheckClients(); err != nil {
		return errors.Join(errors.New("the configuration is not usable"), err)
	}
	return nil
}
