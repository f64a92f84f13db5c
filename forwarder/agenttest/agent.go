// Package agenttest is a stand-in for kata-agent: a real ttrpc server with the
// agent's services, for tests of the forwarder.
//
// It keeps processes that do what cat does: WriteStdin comes out of ReadStdout,
// which blocks until then, as WaitProcess does until SignalProcess. A method it
// does not know is answered with the request's own bytes, unary or stream. What
// the metadata of a call asks for (see the Ask constants) it does: a reply of a
// size, a status, half a reply. It records what it got, and a Process of it can be
// killed at any time: the journal of what was delivered survives.
//
// Unlike kata-agent, which is written in Rust, it is served by containerd/ttrpc
// v1.2.10, which refuses stream ids that do not increase.
package agenttest

import (
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/containerd/ttrpc"

	"github.com/sealpod/sealpod/api/agent"
)

// Config says how an Agent behaves. The zero value is useful.
type Config struct {
	// Record keeps every call with its payload in memory, for Agent.Calls.
	Record bool
	// Plain leaves out what ttrpc's server cannot do, and with it the cost of
	// doing it: methods it does not know are Unimplemented, AskCut does nothing,
	// and a reply may not exceed 4 MiB. It is for measurements.
	Plain bool
	// Journal takes a line for each call with an AskID, before it is served. Each
	// line is one Write. It may be nil.
	Journal io.Writer
	// Guest makes CreateContainer pull the image that a storage names, and
	// StartContainer fetch the secret that SecretAnnotation names, as kata-agent and
	// a container in a pod VM do. Nil is for agents that are in none.
	Guest *Guest
}

// Agent is a stand-in for kata-agent. It is safe for concurrent use.
type Agent struct {
	cfg  Config
	path string
	log  record
	pod  pod

	mu     sync.Mutex
	conns  map[net.Conn]bool
	calls  sync.WaitGroup
	ending bool // no call is added to calls any more
}

// New returns an Agent, which Serve sets to work.
func New(cfg Config) *Agent {
	return &Agent{cfg: cfg, pod: pod{guest: cfg.Guest, secrets: map[string]string{}, processes: map[string]*process{}, oom: make(chan string, 64)}, conns: map[net.Conn]bool{}}
}

// Start serves an Agent on a unix socket until the test ends.
func Start(t testing.TB, cfg Config) *Agent {
	t.Helper()
	path := Socket(t)
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	a := New(cfg)
	a.path = path
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- a.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return a
}

// Socket returns a path for a unix socket, short enough whatever the test's name.
func Socket(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "agent")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return filepath.Join(dir, "agent.sock")
}

// Path returns the socket Start listens on.
func (a *Agent) Path() string { return a.path }

// Connections returns how many connections are open.
func (a *Agent) Connections() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.conns)
}

// Hangup closes every connection, as a restart of the agent does, and serves new
// ones.
func (a *Agent) Hangup() {
	a.mu.Lock()
	conns := slices.Collect(maps.Keys(a.conns))
	a.mu.Unlock()
	for _, c := range conns {
		_ = c.Close()
	}
}

// Serve serves connections from l until ctx ends, once. No call is in progress when it
// returns; calls that block are ended.
func (a *Agent) Serve(ctx context.Context, l net.Listener) error {
	srv, err := ttrpc.NewServer(ttrpc.WithUnaryServerInterceptor(a.unary))
	if err != nil {
		return err
	}
	agent.RegisterAgentServiceService(srv, &a.pod)
	agent.RegisterHealthService(srv, health{})
	srv.RegisterService(echoService, a.echo())
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	err = srv.Serve(ctx, listener{l, a})
	cancel()
	stop()
	if errors.Is(err, ttrpc.ErrServerClosed) {
		err = nil
	}
	a.Hangup()
	a.mu.Lock()
	a.ending = true
	a.mu.Unlock()
	a.calls.Wait()
	return err
}

// begin reports whether a call may begin; then its end is calls.Done.
func (a *Agent) begin() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.ending {
		a.calls.Add(1)
	}
	return !a.ending
}

// listener keeps the connections it accepts.
type listener struct {
	net.Listener
	agent *Agent
}

func (l listener) Accept() (net.Conn, error) {
	raw, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: raw, agent: l.agent}
	l.agent.mu.Lock()
	l.agent.conns[c] = true
	l.agent.mu.Unlock()
	if l.agent.cfg.Plain {
		return c, nil
	}
	return newFront(c), nil
}

// conn is a connection that its agent knows until it is closed.
type conn struct {
	net.Conn
	agent *Agent
}

func (c *conn) Close() error {
	defer func() {
		c.agent.mu.Lock()
		delete(c.agent.conns, c)
		c.agent.mu.Unlock()
	}()
	return c.Conn.Close()
}
