package relay

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"
)

// Limits of one host connection. Beyond them calls fail with ResourceExhausted;
// a connection that stood still instead would keep the calls from ending that
// fill it.
const (
	maxStreams   = 4096     // calls that are open
	maxHeld      = 1024     // of them, calls that are held back
	maxHeldBytes = 16 << 20 // of calls that are held back
	maxMethods   = 64       // calls that are being changed

	hostBuffer  = 32 << 10 // bytes; a TLS record has 16 KiB at most
	agentBuffer = 64 << 10
)

// session is one host connection and the agent connection it has at a time.
type session struct {
	relay *Relay
	log   *slog.Logger
	ctx   context.Context
	stop  context.CancelCauseFunc
	owned sync.WaitGroup // all goroutines but Serve's

	in  *reader // of the host; Serve's goroutine alone
	out writer  // to the host

	// The order of locks: the agent's writer, the host's, mu.
	mu         sync.Mutex
	agent      *agent             // nil when there is none
	last       uint32             // the highest stream the host has opened
	open       map[uint32]*stream // on which the host may send data, by the host's number
	held       int                // calls held back
	heldBytes  int
	methods    int     // of held, calls that are being changed
	waiting    []*call // of held, calls that wait for an agent, in their order
	connecting bool    // connect runs
	kick       chan struct{}
}

// stream is one on which the host may send data frames.
type stream struct {
	agent  *agent // that has it, which may be lost by now
	number uint32 // there
	call   *call  // not nil while it is held back: then no agent has it
}

func newSession(ctx context.Context, r *Relay, host net.Conn) *session {
	s := &session{
		relay: r, log: r.log, in: newReader(host, hostBuffer, hostTime), out: newWriter(host, hostTime),
		open: map[uint32]*stream{}, kick: make(chan struct{}, 1),
	}
	s.ctx, s.stop = context.WithCancelCause(ctx)
	s.closeWith(host)
	return s
}

// running is what the session adds to Relay.Running.
func (s *session) running() int {
	s.mu.Lock()
	n := s.held
	if s.agent != nil {
		for _, c := range s.agent.streams {
			if c.timed {
				n++
			}
		}
	}
	s.mu.Unlock()
	// An answer is written under the lock under which its call has ended.
	if !s.out.mu.TryLock() {
		return n + 1
	}
	s.out.mu.Unlock()
	return n
}

// end ends the session; the first reason is what Serve returns.
func (s *session) end(why error) { s.stop(why) }

// closeWith closes c when the session ends.
func (s *session) closeWith(c net.Conn) (stop func()) {
	s.owned.Add(1)
	after := context.AfterFunc(s.ctx, func() {
		defer s.owned.Done()
		_ = c.SetWriteDeadline(time.Now()) // what TLS writes of its own accord delays Close
		c.Close()
	})
	return func() {
		if after() {
			s.owned.Done()
		}
	}
}

// fromHost passes frames on until the host ends.
func (s *session) fromHost() error {
	for {
		frames, err := s.in.next()
		var large *tooLargeError
		switch {
		case errors.As(err, &large):
			s.refuse(large)
		case err != nil:
			return err
		default:
			s.relay.metrics.toAgent.Add(uint64(len(frames)))
			s.forward(frames)
		}
	}
}

// refuse answers for a frame of the host that was too large, as Go's ttrpc
// server does whatever kind it was. If its stream is open, it is so no more; the
// agent learns that nothing follows.
func (s *session) refuse(large *tooLargeError) {
	a := s.lock()
	var end []byte
	if st := s.open[large.stream]; st != nil {
		delete(s.open, large.stream)
		if st.call != nil {
			st.call.dropped = true
		} else {
			delete(st.agent.streams, st.number)
		}
		if st.call == nil && st.agent == a {
			end = appendHeader(nil, header{stream: st.number, kind: typeData, flags: flagRemoteClosed | flagNoData})
		}
	}
	s.mu.Unlock()
	if a != nil {
		a.sendAny(end) // not a request, so nothing comes back
		a.out.mu.Unlock()
	}
	s.fail(large.stream, large)
}

// answer sends answers of the relay itself to the host.
func (s *session) answer(frames []byte) {
	if len(frames) == 0 {
		return
	}
	s.out.mu.Lock()
	defer s.out.mu.Unlock()
	s.toHost(frames)
}

// toHost sends frames, which may be none, to the host; if that fails, the session
// ends. The writer is held.
func (s *session) toHost(frames []byte) {
	if len(frames) == 0 {
		return
	}
	if _, err := s.out.send(frames); err != nil {
		s.end(err)
		return
	}
	s.relay.metrics.toHost.Add(uint64(len(frames)))
}

// fail answers a call that is not passed on.
func (s *session) fail(host uint32, err error) {
	s.relay.metrics.failed.Add(1)
	s.answer(appendAnswer(nil, host, err))
}

// forward passes frames of the host on: what can go to the agent at once in one
// write; the rest is held back or answered.
func (s *session) forward(frames []byte) {
	a := s.lock()
	b := batch{session: s, agent: a}
	pass := b.sort(frames)
	s.mu.Unlock()
	if a != nil {
		if len(pass) > 0 {
			b.held = append(b.held, a.send(pass)...)
		}
		a.out.mu.Unlock()
	}
	s.answer(b.answers)
	for _, c := range b.held {
		s.start(c)
	}
}

// lock locks mu and, before it, the writer to the agent, if there is one, which
// it returns. Numbers of the agent's side must be sent in their order.
func (s *session) lock() *agent {
	s.mu.Lock()
	for {
		a := s.agent
		if a == nil {
			return nil
		}
		s.mu.Unlock()
		a.out.mu.Lock()
		s.mu.Lock()
		if s.agent == a {
			return a
		}
		a.out.mu.Unlock()
	}
}
