package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sealpod/sealpod/api/agent"
	aa "github.com/sealpod/sealpod/api/attestationagent"
	aaserver "github.com/sealpod/sealpod/attester/server"
	"github.com/sealpod/sealpod/cdh/rest"
	"github.com/sealpod/sealpod/forwarder"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/metrics"
	"github.com/sealpod/sealpod/podvm/rpc"
)

// forwarderMetrics is where the forwarder's status is.
var forwarderMetrics = metrics.Socket(forwarder.Socket)

// call calls the server at a socket once, without waiting for one that is not
// there.
func (d *doctor) call(ctx context.Context, socket string, f func(*ttrpc.Client) error) error {
	if _, err := os.Stat(socket); err != nil {
		return err
	}
	c := rpc.NewClient(socket, time.Second)
	return errors.Join(c.Do(ctx, f), c.Close())
}

// agentTEE is the TEE the attestation agent uses.
func (d *doctor) agentTEE(ctx context.Context) (tee string, err error) {
	err = d.call(ctx, d.AgentSocket, func(c *ttrpc.Client) error {
		resp, err := aa.NewAttestationAgentServiceClient(c).GetTeeType(ctx, &aa.GetTeeTypeRequest{})
		tee = podvm.Printable(resp.GetTee(), 32)
		return err
	})
	return tee, err
}

// agentStatus is what the attestation agent says of itself, nil if it does not.
func (d *doctor) agentStatus(ctx context.Context) *aaserver.Status {
	var s aaserver.Status
	if metrics.Status(ctx, metrics.Socket(d.AgentSocket), &s) != nil {
		return nil
	}
	return &s
}

// why is a sentence for why somebody does not answer.
func why(err error) string {
	switch s, _ := status.FromError(err); {
	case errors.Is(err, os.ErrNotExist):
		return "no socket"
	case errors.Is(err, os.ErrPermission):
		return "no permission, ask as root"
	case errors.Is(err, rpc.ErrPeerAbsent), errors.Is(err, syscall.ECONNREFUSED):
		return "nobody listens"
	case errors.Is(err, context.DeadlineExceeded) || s.Code() == codes.DeadlineExceeded:
		return "no answer in time"
	case podvm.Cause(err) != "":
		return podvm.Cause(err)
	default:
		return podvm.Printable(err.Error(), 300)
	}
}

// sockets asks everybody who should answer.
func (d *doctor) sockets(ctx context.Context, r *Report) {
	for _, s := range []struct {
		what, at, unit string
		needed         bool
		ask            func() error
	}{
		{"attestation-agent", d.AgentSocket, "attestation-agent", true, func() error { return rpc.Answers(ctx, d.AgentSocket) }},
		{"confidential-data-hub", d.HubSocket, "confidential-data-hub", true, func() error { return rpc.Answers(ctx, d.HubSocket) }},
		{"api-server-rest", d.REST, "api-server-rest", d.peerPod(), func() error { return d.inPod(func() error { return d.askREST(ctx) }) }},
		{"kata-agent", d.KataSocket, "kata-agent", d.peerPod(), func() error {
			return d.call(ctx, d.KataSocket, func(c *ttrpc.Client) error {
				_, err := agent.NewHealthClient(c).Check(ctx, &agent.CheckRequest{})
				return err
			})
		}},
		{"agent-protocol-forwarder", d.ForwarderMetrics, "agent-protocol-forwarder", d.peerPod(), func() error { return d.askForwarder(ctx) }},
	} {
		start := time.Now()
		err := s.ask()
		r.took(s.what, time.Since(start))
		switch {
		case err == nil:
			r.ok("%s answers at %s", s.what, s.at)
		case !s.needed && (errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED)):
			r.skip("%s is not here", s.what)
		default:
			r.fail(fmt.Sprintf("journalctl -u %s; systemctl status %s.path", s.unit, s.unit), "%s does not answer at %s: %s", s.what, s.at, why(err))
		}
	}
}

func (d *doctor) askREST(ctx context.Context) error {
	addr, err := netip.ParseAddrPort(d.REST)
	if err != nil {
		return err
	}
	return rest.Answers(ctx, net.TCPAddrFromAddrPort(addr))
}

// askForwarder asks for the forwarder's status, and whether its port is open.
func (d *doctor) askForwarder(ctx context.Context) error {
	var s forwarder.Status
	if err := metrics.Status(ctx, d.ForwarderMetrics, &s); err != nil {
		return err
	}
	at, err := netip.ParseAddrPort(s.Listen)
	if err != nil {
		return fmt.Errorf("its address: %w", err)
	}
	// Go connects to this machine when the address says every one of it.
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", at.String())
	if err != nil {
		return err
	}
	return conn.Close()
}
