package relay

import (
	"context"
	"net"
	"slices"
	"time"
)

// Delays between attempts to reach the agent. It is a socket on the same
// machine: an attempt costs little, and calls wait for it.
const (
	firstDelay = 10 * time.Millisecond
	maxDelay   = 250 * time.Millisecond
	dialTime   = 10 * time.Second
)

// connectLocked sees to it that an agent is looked for. mu is held.
func (s *session) connectLocked() {
	if s.connecting {
		select {
		case s.kick <- struct{}{}:
		default:
		}
		return
	}
	s.connecting = true
	s.owned.Go(s.connect)
}

// dialed is what an attempt gave.
type dialed struct {
	conn net.Conn
	err  error
}

// dial makes one attempt. The channel gives exactly one value.
func (s *session) dial(ctx context.Context) <-chan dialed {
	out := make(chan dialed, 1)
	s.owned.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, dialTime)
		defer cancel()
		conn, err := s.relay.dial(ctx)
		s.relay.metrics.dials.Add(1)
		if err != nil {
			s.relay.metrics.dialFailures.Add(1)
		}
		out <- dialed{conn, err}
	})
	return out
}

// connect looks for an agent as long as calls wait for one.
func (s *session) connect() {
	ctx, cancel := context.WithCancel(s.ctx)
	attempt, delay := s.dial(ctx), firstDelay
	var retry <-chan time.Time
	defer func() {
		cancel()
		if attempt != nil {
			if d := <-attempt; d.err == nil {
				d.conn.Close()
			}
		}
	}()
	for warned := false; ; {
		next, ok := s.expire(time.Now())
		if !ok {
			return
		}
		giveUp := time.NewTimer(time.Until(next))
		select {
		case <-s.ctx.Done():
			giveUp.Stop()
			return
		case <-giveUp.C:
		case <-s.kick: // one more waits, perhaps less long
		case <-retry:
			attempt, retry = s.dial(ctx), nil
		case d := <-attempt:
			attempt = nil
			if d.err == nil && s.adopt(d.conn) {
				return
			}
			if d.err != nil && !warned {
				warned = true
				s.log.Warn("Agent cannot be reached, calls wait for it", "err", d.err)
			}
			retry = time.After(delay)
			delay = min(2*delay, maxDelay)
		}
		giveUp.Stop()
	}
}

// expire answers the calls that have waited too long, and returns when the next
// one will have. It returns false, and connecting is over, when none waits.
func (s *session) expire(now time.Time) (next time.Time, ok bool) {
	var late []*call
	s.mu.Lock()
	s.waiting = slices.DeleteFunc(s.waiting, func(c *call) bool {
		if now.Before(c.until) && !c.dropped {
			if next.IsZero() || c.until.Before(next) {
				next = c.until
			}
			return false
		}
		s.release(c)
		s.forget(c)
		if !c.dropped {
			late = append(late, c)
		}
		return true
	})
	if len(s.waiting) == 0 {
		s.waiting, s.connecting = nil, false
	} else {
		ok = true
	}
	s.mu.Unlock()
	for _, c := range late {
		if c.timed {
			s.fail(c.host, errLate)
		} else {
			s.fail(c.host, errAbsent)
		}
	}
	return next, ok
}

// adopt makes conn the agent's connection and sends the calls that wait, until
// none does, and connecting is over, or the agent is lost: then it returns
// false.
func (s *session) adopt(conn net.Conn) bool {
	a := s.newAgent(conn)
	a.out.mu.Lock()
	defer a.out.mu.Unlock()
	s.mu.Lock()
	s.agent = a
	s.owned.Go(a.run) // now that lost finds it in its place
	for s.agent == a && len(s.waiting) > 0 {
		c := s.waiting[0]
		s.waiting = s.waiting[1:]
		frames, err := s.take(a, c)
		s.mu.Unlock()
		back := a.sendAny(frames)
		if err != nil {
			s.fail(c.host, err)
		}
		s.mu.Lock()
		s.waiting = append(s.waiting, back...)
	}
	over := len(s.waiting) == 0
	if over {
		s.waiting, s.connecting = nil, false
	}
	s.mu.Unlock()
	return over
}
