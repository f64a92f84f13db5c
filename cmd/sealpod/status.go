package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/containerd/ttrpc"
	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"

	aa "github.com/sealpod/sealpod/api/attestationagent"
	"github.com/sealpod/sealpod/api/keyprovider"
	aaserver "github.com/sealpod/sealpod/attester/server"
	"github.com/sealpod/sealpod/cdh/rest"
	"github.com/sealpod/sealpod/cdh/server"
	"github.com/sealpod/sealpod/cmd/internal/cli"
	"github.com/sealpod/sealpod/forwarder"
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
	// REST and Forwarder are nil where their metrics are not.
	REST      *restStatus      `json:"apiServerRest,omitempty"`
	Forwarder *forwarderStatus `json:"agentProtocolForwarder,omitempty"`
}

// daemonStatus is what is known about every daemon. Counters are its metrics that
// only grow, by name with labels.
type daemonStatus struct {
	Socket   string             `json:"socket"`
	Up       bool               `json:"up"`
	Problem  string             `json:"problem,omitempty"`
	Counters map[string]float64 `json:"counters,omitempty"`
}

// agentStatus is what is known about the attestation agent.
type agentStatus struct {
	daemonStatus
	TEE     string           `json:"tee,omitempty"`
	Devices []string         `json:"devices,omitempty"`
	Details *aaserver.Status `json:"details,omitempty"` // nil when its metrics socket does not answer
}

// hubStatus is what is known about the data hub.
type hubStatus struct {
	daemonStatus
	Details *server.Status `json:"details,omitempty"` // nil when its metrics socket does not answer
}

// forwarderStatus is what is known about the forwarder, whose socket is that of its
// metrics.
type forwarderStatus struct {
	daemonStatus
	Details *forwarder.Status `json:"details,omitempty"` // nil when it does not answer
}

// restStatus is what is known about the REST server, whose socket is that of its
// metrics.
type restStatus struct {
	daemonStatus
	Details *rest.Status `json:"details,omitempty"` // nil when it does not answer
}

func statusApplet() *cobra.Command {
	var f statusFlags
	cmd := &cobra.Command{
		Use:   "status",
		Short: "What runs, how long things took, and which images are being pulled",
		Long: `Asks the attestation agent, the data hub and, where they have metrics, the REST
server and the forwarder whether they are up, and what they do: the age of the token, the steps of the last
attestation, the phases of the last pulls, and what they have counted. What only
root may know, such as the names of images, comes from the sockets of their
metrics. The exit code is 0 if all are up. A REST server or forwarder without such a
socket is not asked: whether this pod VM lacks one, doctor says.`,
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
	s := podStatus{Agent: askAgent(ctx, agent), Hub: askHub(ctx, hub), REST: askREST(ctx, rest.MetricsSocket), Forwarder: askForwarder(ctx, metrics.Socket(forwarder.Socket))}
	if f.json {
		err = json.NewEncoder(out).Encode(s)
	} else {
		err = s.print(out, time.Now(), colored(out))
	}
	if err == nil && (!s.Agent.Up || !s.Hub.Up || s.REST != nil && !s.REST.Up || s.Forwarder != nil && !s.Forwarder.Up) {
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
	s := agentStatus{daemonStatus: daemonStatus{Socket: path}}
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
		s.Details, s.Counters = &details, askCounters(ctx, metrics.Socket(path))
	}
	return s
}

func askHub(ctx context.Context, path string) hubStatus {
	s := hubStatus{daemonStatus: daemonStatus{Socket: path}}
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
		s.Details, s.Counters = &details, askCounters(ctx, metrics.Socket(path))
	}
	return s
}

// askForwarder asks the forwarder at the socket of its metrics; nil if there is no
// such socket.
func askForwarder(ctx context.Context, path string) *forwarderStatus {
	var details forwarder.Status
	s := askMetrics(ctx, path, &details)
	if s == nil {
		return nil
	}
	if !s.Up {
		return &forwarderStatus{daemonStatus: *s}
	}
	return &forwarderStatus{*s, &details}
}

// askREST asks the REST server at the socket of its metrics; nil if there is no
// such socket.
func askREST(ctx context.Context, path string) *restStatus {
	var details rest.Status
	s := askMetrics(ctx, path, &details)
	if s == nil {
		return nil
	}
	if !s.Up {
		return &restStatus{daemonStatus: *s}
	}
	return &restStatus{*s, &details}
}

// askMetrics asks a daemon that is up if its metrics are.
func askMetrics(ctx context.Context, path string, details any) *daemonStatus {
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	s := &daemonStatus{Socket: path}
	if err := metrics.Status(ctx, path, details); err != nil {
		s.Problem = problem(err)
		return s
	}
	s.Up, s.Counters = true, askCounters(ctx, path)
	return s
}

// askCounters returns what a daemon has counted, nil if it does not say.
func askCounters(ctx context.Context, path string) map[string]float64 {
	text, err := metrics.Text(ctx, path)
	if err != nil {
		return nil
	}
	return metrics.Counters(text)
}
