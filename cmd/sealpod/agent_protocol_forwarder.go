package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/sealpod/sealpod/cmd/internal/cli"
	"github.com/sealpod/sealpod/forwarder"
	"github.com/sealpod/sealpod/forwarder/podnet"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/metrics"
)

const forwarderExample = `  agent-protocol-forwarder -pod-namespace /run/netns/podns
  agent-protocol-forwarder -ca-cert-file ca.crt -cert-file tls.crt -cert-key tls.key
  agent-protocol-forwarder -config apf.json -listen 127.0.0.1:15150 -disable-tls`

func agentProtocolForwarder() *cobra.Command {
	return &cobra.Command{
		Use:   "agent-protocol-forwarder",
		Short: "The adaptor's connection to kata-agent, and the pod's network",
		Long: `The forwarder sets up the pod's network as apf.json says, then hands the calls
of cloud-api-adaptor, which come by TLS, to kata-agent. Either may go and come
back. When it ends, it takes the network away.

Flags are those of upstream, with one dash or two: see -h.`,
		Example:            forwarderExample,
		DisableFlagParsing: true, // -x v and -x=v, as upstream
		RunE: func(cmd *cobra.Command, args []string) error {
			return runForwarder(args, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
}

// forwarderFlags reads the command line. Source: cloud-api-adaptor
// src/cloud-api-adaptor/cmd/agent-protocol-forwarder/main.go at fbdde756; the
// last three are ours.
func forwarderFlags(c *forwarder.Config, version *bool) *flag.FlagSet {
	fl := flag.NewFlagSet("agent-protocol-forwarder", flag.ContinueOnError)
	fl.StringVar(&c.File, "config", forwarder.DefaultFile, "configuration `file`; daemon.json beside it where it does not exist")
	fl.StringVar(&c.Listen, "listen", forwarder.DefaultListen, "listen on this TCP `address`")
	fl.StringVar(&c.AgentSocket, "kata-agent-socket", forwarder.DefaultAgentSocket, "kata-agent's socket; one that starts with @ is abstract")
	fl.StringVar(&c.Namespace, "pod-namespace", forwarder.DefaultNamespace, "the `path` of the pod's network namespace")
	fl.StringVar(&c.HostInterface, "host-interface", "", "network interface of a tunnel that has one of its own")
	fl.StringVar(&c.TLS.CAFile, "ca-cert-file", "", "verify clients against this PEM `file`, instead of tls-client-ca")
	fl.StringVar(&c.TLS.CertFile, "cert-file", "", "the server's certificate, a PEM `file`")
	fl.StringVar(&c.TLS.KeyFile, "cert-key", "", "the server's key, a PEM `file`; both or tls-server-cert and tls-server-key count")
	fl.BoolVar(&c.TLS.SkipVerify, "tls-skip-verify", false, "serve clients without a certificate, where no CA is set; for tests")
	fl.BoolVar(&c.TLS.Off, "disable-tls", false, "serve plain TCP; for tests")
	fl.BoolVar(version, "version", false, "print the version")
	fl.BoolVar(&c.TLS.AnyClient, "insecure-no-client-auth", false, "serve clients without a certificate, where no CA is set")
	fl.Func("imds", "let the pod ask the metadata services at these `addresses`, and with it get the VM's credentials: 169.254.169.254, 100.100.100.200", func(s string) (err error) {
		c.IMDS, err = podnet.ParseIMDS(s)
		return err
	})
	fl.StringVar(&c.Metrics, "metrics", "", "metrics at unix://PATH, or HOST:PORT of a loopback `address`, or off (default unix://"+metrics.Socket(forwarder.Socket)+")")
	return fl
}

func runForwarder(args []string, stdout, stderr io.Writer) error {
	var c forwarder.Config
	var version bool
	fl := forwarderFlags(&c, &version)
	fl.SetOutput(io.Discard)
	err := fl.Parse(args)
	if err == nil && fl.NArg() > 0 {
		err = fmt.Errorf("there are no arguments but flags: %q", podvm.Printable(fl.Arg(0), 100))
	}
	if err == nil {
		if err = metrics.Check(c.Metrics); err != nil {
			err = fmt.Errorf("-metrics: %w", err)
		}
	}
	switch {
	case errors.Is(err, flag.ErrHelp):
		fl.SetOutput(stderr)
		fmt.Fprintf(stderr, "Usage of agent-protocol-forwarder:\n")
		fl.PrintDefaults()
		fmt.Fprintf(stderr, "\nExamples:\n%s\n", forwarderExample)
		return nil
	case err != nil:
		return fmt.Errorf("%w (see -h)", err) // exit code 1, as upstream
	}
	if _, err := io.WriteString(stdout, forwarder.Banner(runtime.Version())); err != nil {
		return err
	}
	if version {
		return nil
	}
	return runDaemon("agent-protocol-forwarder", "", func(ctx context.Context, host podvm.Host, log *slog.Logger) error {
		defer exitAtSecondSignal()()
		c.Host, c.Log = host, log
		return forwarder.Run(ctx, c)
	})
}

// exitAtSecondSignal ends the process when a signal comes that is not the first.
func exitAtSecondSignal() (stop func()) {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	done := make(chan struct{})
	go func() {
		for n := 0; ; n++ {
			select {
			case <-signals:
			case <-done:
				return
			}
			if n > 0 {
				os.Exit(cli.ExitFailed)
			}
		}
	}()
	return func() {
		signal.Stop(signals)
		close(done)
	}
}
