package forwarder

import (
	"bytes"
	"context"
	crand "crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sealpod/sealpod/api/agent"
	"github.com/sealpod/sealpod/forwarder/agenttest"
)

const (
	soakHosts   = 8
	soakCallers = 8 // per host connection
	soakLimit   = 10 * time.Second
)

// TestSoak has 64 callers on 8 host connections while the agent, the forwarder
// and host connections are killed at random moments. Every call must be answered,
// rightly, or fail with what its peer is specified to get; none may reach an agent
// twice; and at the end all is as it was. SEALPOD_SOAK is how long it goes on, 8s
// by default. The forwarder is killed in the first half only, so that the second
// shows whether one of them grows.
func TestSoak(t *testing.T) {
	length := 8 * time.Second
	if s := os.Getenv("SEALPOD_SOAK"); s != "" {
		var err error
		if length, err = time.ParseDuration(s); err != nil {
			t.Fatal(err)
		}
	}
	l := newLab(t)
	before := l.states(t)
	a := l.agentProcess(t, false)
	p := l.start(t)
	idle := l.idle(t, p)

	ctx, cancel := context.WithTimeout(t.Context(), length)
	defer cancel()
	s := &soak{t: t, l: l, ctx: ctx, answered: map[string]bool{}, failed: map[string]int{}}
	var hosts []*host
	for i := range soakHosts {
		h := &host{l: l, t: t}
		hosts = append(hosts, h)
		for j := range soakCallers {
			s.callers.Go(func() { s.caller(h, fmt.Sprintf("%d-%d", i, j)) })
		}
		s.callers.Go(func() { s.waiter(h) })
	}
	killed := map[string]int{}
	began, grown := time.Now(), 0.0
	for pause(ctx, 50*time.Millisecond, 700*time.Millisecond) {
		half := time.Since(began) > length/2
		switch n := rand.IntN(4); {
		case n == 0:
			killed["agent"]++
			a.Kill()
			pause(ctx, time.Millisecond, 300*time.Millisecond)
			a = l.agentProcess(t, false)
		case n == 1 && !half:
			killed["forwarder"]++
			p.kill()
			pause(ctx, time.Millisecond, 300*time.Millisecond)
			p = l.start(t)
		default:
			killed["host connection"]++
			hosts[rand.IntN(len(hosts))].cut()
		}
		if grown == 0 && time.Since(began) > length*3/4 {
			grown = p.memoryMB("VmRSS")
		}
	}
	s.callers.Wait()
	for _, h := range hosts {
		h.cut()
	}
	after := p.memoryMB("VmRSS")
	t.Logf("%d calls answered, failed: %v; killed: %v; memory %.1f MB, %.1f MB at three quarters, %.1f MB idle", len(s.answered), s.failed, killed, after, grown, idle.memory)
	if length >= time.Minute && after > grown+8 || after > 80 && !raceEnabled {
		t.Errorf("memory grew from %.1f MB at three quarters to %.1f MB", grown, after)
	}
	until(t, "files and goroutines are as before", func() bool {
		now := l.idle(t, p)
		return now.files <= idle.files && now.goroutines <= idle.goroutines
	})
	mustCheck(t, l.adaptor(t))
	p.stop()
	s.deliveries()
	l.unchanged(t, before)
	if text := p.text(); strings.Contains(text, "panic") || strings.Contains(text, "DATA RACE") {
		t.Error(text)
	}
	for _, what := range []string{"agent", "forwarder", "host connection"} {
		if length >= time.Minute && killed[what] == 0 {
			t.Errorf("no %s was killed", what)
		}
	}
	if len(s.answered) < 1000 {
		t.Errorf("only %d calls were answered", len(s.answered))
	}
}

// resources are what a forwarder without connections has.
type resources struct {
	files              int
	goroutines, memory float64
}

func (l *lab) idle(t *testing.T, p *apf) resources {
	t.Helper()
	return resources{p.files(), l.metric(t, "sealpod_forwarder_goroutines"), p.memoryMB("VmRSS")}
}

// pause waits a random time and tells whether ctx still lasts.
func pause(ctx context.Context, least, most time.Duration) bool {
	wait(ctx, least+rand.N(most-least))
	return ctx.Err() == nil
}

// host is an adaptor that dials again when its connection is lost.
type host struct {
	t    *testing.T
	l    *lab
	mu   sync.Mutex
	conn net.Conn
	now  *ttrpc.Client
}

// client returns the connection of now, made anew if it is lost.
func (h *host) client(ctx context.Context) *ttrpc.Client {
	h.mu.Lock()
	defer h.mu.Unlock()
	for h.now == nil && ctx.Err() == nil {
		conn, err := h.l.node.dial(h.l.addr)
		if err != nil {
			wait(ctx, 10*time.Millisecond)
			continue
		}
		h.conn, h.now = conn, ttrpc.NewClient(tls.Client(conn, h.l.worker.config(h.t)))
	}
	return h.now
}

// lost takes note that c is.
func (h *host) lost(c *ttrpc.Client) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.now == c {
		c.Close()
		h.now = nil
	}
}

// cut ends the connection without a word.
func (h *host) cut() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.now != nil {
		_ = h.conn.(*net.TCPConn).SetLinger(0)
		h.conn.Close()
		h.now.Close()
		h.now = nil
	}
}

// soak is what callers share.
type soak struct {
	t       *testing.T
	l       *lab
	ctx     context.Context
	callers sync.WaitGroup
	waits   atomic.Int64

	mu       sync.Mutex
	answered map[string]bool // by id
	failed   map[string]int
}

// caller calls until the time is over: mostly small, at times large.
func (s *soak) caller(h *host, name string) {
	for n := 0; s.ctx.Err() == nil; n++ {
		size := 64
		switch {
		case n%200 == 199:
			size = 1 << 20
		case n%20 == 19:
			size = rand.IntN(64 << 10)
		}
		question := make([]byte, size)
		_, _ = crand.Read(question)
		c := h.client(s.ctx)
		if c == nil {
			return
		}
		id := fmt.Sprintf("%s-%d", name, n)
		ctx, cancel := context.WithTimeout(agenttest.With(context.Background(), agenttest.AskID, id), soakLimit)
		began := time.Now()
		// A method nobody knows, which the agent answers with the question.
		reply, err := agenttest.RawCall(ctx, c, "grpc.AgentService", "Soak", question)
		cancel()
		if err == nil && !bytes.Equal(question, reply) {
			s.t.Errorf("%s: another's answer: %d bytes for %d", id, len(reply), len(question))
		}
		s.ended(h, c, id, err)
		if d := time.Since(began); d > soakLimit+2*time.Second {
			s.t.Errorf("%s took %v", id, d)
		}
		wait(s.ctx, rand.N(10*time.Millisecond))
	}
}

// waiter has a call without a deadline in progress all the time.
func (s *soak) waiter(h *host) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	for s.ctx.Err() == nil {
		c := h.client(s.ctx)
		if c == nil {
			return
		}
		id := fmt.Sprintf("wait-%d", s.waits.Add(1))
		_, err := agent.NewAgentServiceClient(c).WaitProcess(agenttest.With(ctx, agenttest.AskID, id), &agent.WaitProcessRequest{ContainerId: id})
		if err == nil {
			s.t.Errorf("%s: nobody ended the process", id)
		}
		s.ended(h, c, id, err)
	}
}

// ended takes note of a call's end, and of a connection's if that was it.
func (s *soak) ended(h *host, c *ttrpc.Client, id string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch code := status.Code(err); {
	case err == nil:
		s.answered[id] = true
	case code == codes.Unavailable:
		s.failed["unavailable"]++
	case errors.Is(err, context.Canceled): // a waiter, at the end
	case code == codes.DeadlineExceeded || errors.Is(err, context.DeadlineExceeded):
		s.failed["deadline"]++
	case closed(err):
		s.failed["connection lost"]++
		h.lost(c)
	default:
		s.failed["otherwise"]++
		s.t.Errorf("%s: %v (%T)", id, err, err)
		h.lost(c)
	}
}

// deliveries compares the agents' journal with what callers know.
func (s *soak) deliveries() {
	delivered, err := agenttest.ReadJournal(s.l.journal())
	if err != nil {
		s.t.Fatal(err)
	}
	for id, n := range delivered {
		if n != 1 {
			s.t.Errorf("%s was delivered %d times", id, n)
		}
	}
	for id := range s.answered {
		if delivered[id] == 0 {
			s.t.Errorf("%s was answered and never delivered", id)
		}
	}
}
