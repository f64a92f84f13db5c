package forwarder

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sealpod/sealpod/forwarder/agenttest"
)

// Weak point 1 of upstream: whoever of agent, forwarder and adaptor goes away,
// the pod is lost.

func serveIn(t *testing.T, n *namespace, a *agenttest.Agent, path string) {
	t.Helper()
	var l net.Listener
	if err := n.do(func() (err error) {
		l, err = net.Listen("unix", path)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestTheFirstCallWaitsForTheAgent(t *testing.T) {
	l := newLab(t)
	p := l.start(t)
	c := l.adaptor(t)
	if err := check(c, 300*time.Millisecond); !errors.Is(err, context.DeadlineExceeded) && status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("no agent in time: %v", err)
	}
	first := make(chan error, 1)
	go func() { first <- check(c, 20*time.Second) }()
	wait(t.Context(), 300*time.Millisecond)
	l.agentProcess(t, false)
	if err := <-first; err != nil {
		t.Error(err)
	}
	p.stop()
}

func TestTheAgentIsStartedAgain(t *testing.T) {
	l := newLab(t)
	a := l.agentProcess(t, false)
	p := l.start(t)
	c := l.adaptor(t)
	mustCheck(t, c)
	for i := range 3 {
		running := l.waitProcess(t, c, strconv.Itoa(i), 0)
		a.Kill()
		if err := <-running; status.Code(err) != codes.Unavailable {
			t.Errorf("a call in progress: %v", err)
		}
		next := make(chan error, 1)
		go func() { next <- check(c, 20*time.Second) }()
		a = l.agentProcess(t, false)
		if err := <-next; err != nil {
			t.Errorf("a new call: %v", err)
		}
	}
	p.stop()
}

func TestTheHostConnectionIsLostAndAnotherComes(t *testing.T) {
	l := newLab(t)
	l.agentProcess(t, false)
	p := l.start(t)
	first, second := l.adaptor(t), l.adaptor(t)
	mustCheck(t, first)
	mustCheck(t, second) // while the first lives
	files := p.files()
	first.Close()
	mustCheck(t, second)
	until(t, "the first is forgotten", func() bool { return p.files() < files })
	mustCheck(t, l.adaptor(t)) // after it
	p.stop()
}

// A worker node that lost power leaves connections that nobody ends: here their
// packets are lost, those that end them too.
func TestHalfOpenConnectionsKeepNobodyOut(t *testing.T) {
	l := newLab(t)
	l.agentProcess(t, false)
	p := l.start(t)
	config, limit := l.worker.config(t), defaultLimits.clients
	var conns []*tls.Conn
	var ports []string
	for range limit {
		conn, err := l.node.dial(l.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conns = append(conns, tls.Client(conn, config))
		ports = append(ports, strconv.Itoa(conn.LocalAddr().(*net.TCPAddr).Port))
	}
	for _, c := range conns {
		mustCheck(t, ttrpc.NewClient(c))
	}
	l.node.run(t, "nft", "add table ip lost; add chain ip lost out { type filter hook output priority 0; }; "+
		"add rule ip lost out tcp sport { "+strings.Join(ports, ", ")+" } drop")
	for _, c := range conns {
		c.Close()
	}
	if n := l.metric(t, "sealpod_forwarder_connections"); n != float64(limit) {
		t.Errorf("%v connections stand, want %d", n, limit)
	}
	for range 3 {
		mustCheck(t, l.adaptor(t))
	}
	until(t, "the displaced are gone", func() bool { return l.metric(t, "sealpod_forwarder_connections") <= float64(limit) })
	p.stop()
}

// Weak point 2 of upstream: after a crash its successor finds its network and
// ends, again and again.
func TestAKilledForwarderStartsAgain(t *testing.T) {
	l := newLab(t)
	l.agentProcess(t, false)
	before := l.states(t)
	p := l.start(t)
	mustCheck(t, l.adaptor(t))
	set := l.states(t)
	for range 3 {
		c := l.adaptor(t)
		p.kill()
		if err := check(c, 20*time.Second); err == nil {
			t.Error("the connection of a dead forwarder works")
		}
		p = l.start(t)
		mustCheck(t, l.adaptor(t))
		l.unchanged(t, set)
	}
	p.stop()
	l.unchanged(t, before)
}

func TestAForwarderKilledAtAnyMomentStartsAgain(t *testing.T) {
	l := newLab(t)
	l.agentProcess(t, false)
	before := l.states(t)
	for after := time.Duration(0); after < 80*time.Millisecond; after += 5 * time.Millisecond {
		p := l.launch(t)
		wait(t.Context(), after)
		p.kill()
	}
	p := l.start(t)
	mustCheck(t, l.adaptor(t))
	p.stop()
	l.unchanged(t, before)
}
