package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/containerd/ttrpc"
	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"

	aa "github.com/sealpod/sealpod/api/attestationagent"
	"github.com/sealpod/sealpod/api/keyprovider"
	aaserver "github.com/sealpod/sealpod/attester/server"
	"github.com/sealpod/sealpod/cdh/server"
	"github.com/sealpod/sealpod/cmd/internal/cli"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/metrics"
	"github.com/sealpod/sealpod/podvm/rpc"
)

// How long both daemons together have to answer, and one to take a connection.
const (
	askTime     = 5 * time.Second
	connectTime = time.Second
)

var errDown = errors.New("not every daemon is up")

// statusFlags is the command line of status.
type statusFlags struct {
	agent, hub string
	json       bool
}

// podStatus is what status prints as JSON.
type podStatus struct {
	Agent agentStatus `json:"attestationAgent"`
	Hub   hubStatus   `json:"confidentialDataHub"`
}

// agentStatus is what is known about the attestation agent.
type agentStatus struct {
	Socket  string           `json:"socket"`
	Up      bool             `json:"up"`
	Problem string           `json:"problem,omitempty"`
	TEE     string           `json:"tee,omitempty"`
	Devices []string         `json:"devices,omitempty"`
	Details *aaserver.Status `json:"details,omitempty"` // nil when its metrics socket does not answer
}

// hubStatus is what is known about the data hub.
type hubStatus struct {
	Socket  string         `json:"socket"`
	Up      bool           `json:"up"`
	Problem string         `json:"problem,omitempty"`
	Details *server.Status `json:"details,omitempty"` // nil when its metrics socket does not answer
}

func statusApplet() *cobra.Command {
	var f statusFlags
	cmd := &cobra.Command{
		Use:   "status",
		Short: "What runs, and which images are being pulled",
		Long: `Asks the attestation agent and the data hub whether they are up, and what they
do. What only root may know, such as the names of images, comes from the sockets
of their metrics. The exit code is 0 if both are up.`,
		Example: `  sealpod status
  sealpod status --json | jq '.confidentialDataHub.details.pulls[].percent'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd.Context(), cmd.OutOrStdout()) },
	}
	fl := cmd.Flags()
	fl.StringVarP(&f.agent, "aa_addr", "a", "unix://"+podvm.AASocket, "the attestation agent's `unix://PATH`")
	fl.StringVarP(&f.hub, "cdh_addr", "c", "unix://"+podvm.CDHSocket, "the data hub's `unix://PATH`")
	fl.BoolVar(&f.json, "json", false, "print JSON")
	return cmd
}

func (f statusFlags) run(ctx context.Context, out io.Writer) error {
	agent, err := rpc.SocketPath(f.agent)
	if err != nil {
		return fmt.Errorf("--aa_addr: %w (%w)", err, cli.ErrUsage)
	}
	hub, err := rpc.SocketPath(f.hub)
	if err != nil {
		return fmt.Errorf("--cdh_addr: %w (%w)", err, cli.ErrUsage)
	}
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	s := podStatus{Agent: askAgent(ctx, agent), Hub: askHub(ctx, hub)}
	if f.json {
		err = json.NewEncoder(out).Encode(s)
	} else {
		err = s.print(out, colored(out))
	}
	if err == nil && (!s.Agent.Up || !s.Hub.Up) {
		err = errDown
	}
	return err
}

// ask calls a daemon once; one without a socket is not waited for.
func ask(ctx context.Context, path string, call func(*ttrpc.Client) error) error {
	if _, err := os.Stat(path); err != nil {
		return err
	}
	c := rpc.NewClient(path, connectTime)
	return errors.Join(c.Do(ctx, call), c.Close())
}

// problem is a sentence for why a daemon is not up.
func problem(err error) string {
	switch {
	case errors.Is(err, os.ErrNotExist):
		return "no socket"
	case errors.Is(err, os.ErrPermission):
		return "no permission to ask"
	case errors.Is(err, rpc.ErrPeerAbsent):
		return "nobody listens"
	case errors.Is(err, context.DeadlineExceeded) || grpcstatus.Code(err) == codes.DeadlineExceeded:
		return "no answer in time"
	}
	return podvm.Printable(err.Error(), 200)
}

func askAgent(ctx context.Context, path string) agentStatus {
	s := agentStatus{Socket: path}
	err := ask(ctx, path, func(c *ttrpc.Client) error {
		client := aa.NewAttestationAgentServiceClient(c)
		tee, err := client.GetTeeType(ctx, &aa.GetTeeTypeRequest{})
		if err != nil {
			return err
		}
		s.TEE = podvm.Printable(tee.GetTee(), 32)
		devices, err := client.GetAdditionalTees(ctx, &aa.GetAdditionalTeesRequest{})
		for _, d := range devices.GetAdditionalTees() {
			s.Devices = append(s.Devices, podvm.Printable(d, 32))
		}
		return err
	})
	if err != nil {
		s.Problem = problem(err)
		return s
	}
	s.Up = true
	var details aaserver.Status
	if metrics.Status(ctx, metrics.Socket(path), &details) == nil {
		s.Details = &details
	}
	return s
}

func askHub(ctx context.Context, path string) hubStatus {
	s := hubStatus{Socket: path}
	err := ask(ctx, path, func(c *ttrpc.Client) error {
		// A guest wraps no keys, so the hub says no and does nothing.
		_, err := keyprovider.NewKeyProviderServiceClient(c).WrapKey(ctx, &keyprovider.KeyProviderKeyWrapProtocolInput{})
		if code := grpcstatus.Code(err); code == codes.NotFound || code == codes.Unimplemented {
			return nil
		}
		return err
	})
	if err != nil {
		s.Problem = problem(err)
		return s
	}
	s.Up = true
	var details server.Status
	if metrics.Status(ctx, metrics.Socket(path), &details) == nil {
		s.Details = &details
	}
	return s
}

// print writes s as tables for people.
func (s podStatus) print(out io.Writer, color bool) error {
	var b strings.Builder
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "DAEMON\tSTATE\tVERSION\tSOCKET\tDETAILS")
	version, details := "-", s.Agent.Problem
	if s.Agent.Up {
		details = "TEE " + strings.Join(append([]string{s.Agent.TEE}, s.Agent.Devices...), " and ")
	}
	if d := s.Agent.Details; d != nil {
		version = podvm.Printable(d.Version, 64)
		details += ", event log " + map[bool]string{true: "on", false: "off"}[d.EventLog]
	}
	fmt.Fprintf(t, "attestation-agent\t%s\t%s\t%s\t%s\n", state(s.Agent.Up), version, s.Agent.Socket, details)
	version, details = "-", s.Hub.Problem
	if d := s.Hub.Details; d != nil {
		version, details = podvm.Printable(d.Version, 64), fmt.Sprintf("resources from %s, images being pulled: %d", podvm.Printable(d.KBC, 32), len(d.Pulls))
	}
	fmt.Fprintf(t, "confidential-data-hub\t%s\t%s\t%s\t%s\n", state(s.Hub.Up), version, s.Hub.Socket, details)
	if err := t.Flush(); err != nil {
		return err
	}
	if d := s.Hub.Details; d != nil {
		printPulls(&b, d)
	}
	text := b.String()
	if color {
		text = colors.Replace(text)
	}
	_, err := io.WriteString(out, text)
	return err
}

// colors works on the finished table, which counts characters. The spaces are
// those around the states.
var colors = strings.NewReplacer("  up    ", "  \x1b[32mup\x1b[0m    ", "  down  ", "  \x1b[31mdown\x1b[0m  ")

func state(up bool) string {
	if up {
		return "up"
	}
	return "down"
}

func printPulls(b *strings.Builder, d *server.Status) {
	if len(d.Pulls) > 0 {
		b.WriteString("\nPULLING\n")
	}
	for _, p := range d.Pulls {
		fmt.Fprintf(b, "%s\n  %s\n", podvm.Printable(p.Image, 512), progressLine(p.Status))
	}
	if len(d.Last) > 0 {
		b.WriteString("\nLAST PULLS\n")
	}
	for _, p := range d.Last {
		fmt.Fprintf(b, "%s  %s  %s  %s\n", p.Started.UTC().Format(time.RFC3339), podvm.Printable(p.Result, 32), seconds(p.Elapsed), podvm.Printable(p.Image, 512))
		if p.Cause != "" {
			fmt.Fprintf(b, "  %s\n", podvm.Printable(strings.ReplaceAll(p.Cause, "\n", "; "), 1024))
		}
	}
}
