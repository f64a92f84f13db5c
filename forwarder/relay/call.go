package relay

import (
	"context"
	"runtime/debug"
	"time"

	"github.com/sealpod/sealpod/podvm"
)

const (
	// waitTime is how long a call without a deadline waits for the agent.
	waitTime = 2 * time.Minute
	// toAnswer, or a tenth of its time if that is less, is how long before its
	// deadline a call that is held back ends: at the deadline the caller stops
	// listening, and would never be told why.
	toAnswer = 500 * time.Millisecond
)

// call is one that is held back: changed on its way, waiting for an agent, or
// both. What changes after newCall is guarded by the session's mu.
type call struct {
	host    uint32
	flags   byte
	body    []byte // the Request, a copy
	payload []byte // of body
	method  Method // nil if it is not changed
	service string // with the method, for the log
	timed   bool
	end     time.Time // the caller's deadline, if timed
	until   time.Time // when it is given up

	after   []byte // data frames that followed, under the host's number
	dropped bool   // answered already
}

func newCall(h header, body []byte, req request, method Method, now time.Time) *call {
	c := &call{host: h.stream, flags: h.flags, body: append([]byte(nil), body...), method: method}
	if method != nil {
		req, _ = parseRequest(c.body) // cannot fail now; the payload is the copy's
		c.payload = req.payload
		c.service = podvm.Printable(string(req.service)+"/"+string(req.method), 200)
	}
	c.until = now.Add(waitTime)
	if req.timeout != 0 {
		c.timed, c.end = true, now.Add(req.timeout)
		c.until = c.end.Add(-min(toAnswer, req.timeout/10))
	}
	return c
}

// room says why a call, if c is not nil, with n bytes cannot be held back.
func (s *session) room(c *call, n int) error {
	switch {
	case s.heldBytes+n > maxHeldBytes:
		return errHeld
	case c != nil && s.held >= maxHeld, c != nil && c.method != nil && s.methods >= maxMethods:
		return errTooMany
	}
	return nil
}

// keep counts a call as held back. mu is held.
func (s *session) keep(c *call) {
	s.held++
	s.heldBytes += len(c.body) + len(c.after)
	if c.method != nil {
		s.methods++
	}
}

// release is the opposite of keep. mu is held.
func (s *session) release(c *call) {
	s.held--
	s.heldBytes -= len(c.body) + len(c.after)
	if c.method != nil {
		s.methods--
	}
}

// start sends a call that was held back on its way.
func (s *session) start(c *call) {
	if c.method == nil {
		s.submit(c)
		return
	}
	s.relay.metrics.intercepted.Add(1)
	s.owned.Go(func() { s.change(c) })
}

// change runs the method of a call and submits what it made.
func (s *session) change(c *call) {
	ctx := s.ctx
	if c.timed {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, c.until)
		defer cancel()
	}
	payload, err := s.run(ctx, c)
	var body []byte
	if err == nil {
		if body = withPayload(c.body, payload); len(body) > maxBody {
			err = &tooLargeError{header{length: uint32(len(body))}}
		}
	}
	s.mu.Lock()
	s.release(c)
	c.method, c.payload = nil, nil
	if err == nil {
		c.body = body
		s.keep(c)
		s.mu.Unlock()
		s.submit(c)
		return
	}
	s.forget(c)
	dropped := c.dropped
	s.mu.Unlock()
	if s.ctx.Err() == nil {
		s.log.Warn("A call is not passed on", "method", c.service, "err", err)
	}
	if !dropped {
		s.fail(c.host, err)
	}
}

// run runs the method of a call; a panic fails that call only.
func (s *session) run(ctx context.Context, c *call) (payload []byte, err error) {
	defer func() {
		if p := recover(); p != nil {
			s.log.Error("A handler panicked", "method", c.service, "panic", p, "stack", string(debug.Stack()))
			err = errPanic
		}
	}()
	return c.method(ctx, c.payload)
}

// forget ends the stream of a call that is not passed on. mu is held.
func (s *session) forget(c *call) {
	if st := s.open[c.host]; st != nil && st.call == c {
		delete(s.open, c.host)
	}
}

// submit sends a call to the agent, now or when there is one.
func (s *session) submit(c *call) {
	a := s.lock()
	if a == nil {
		s.waiting = append(s.waiting, c)
		s.connectLocked()
		s.mu.Unlock()
		return
	}
	frames, err := s.take(a, c)
	s.mu.Unlock()
	back := a.sendAny(frames)
	a.out.mu.Unlock()
	if err != nil {
		s.fail(c.host, err)
	}
	for _, c := range back {
		s.submit(c)
	}
}

// take opens a stream to the agent for a call that was held back and returns its
// frames: the request, with the time that is left, and what followed it. mu and
// the agent's writer are held.
func (s *session) take(a *agent, c *call) ([]byte, error) {
	s.release(c)
	if c.dropped {
		return nil, nil
	}
	left := time.Until(c.end)
	if c.timed && left <= 0 {
		s.forget(c)
		return nil, errLate
	}
	number := a.admit(caller{c.host, c.timed})
	if st := s.open[c.host]; st != nil && st.call == c {
		st.call, st.agent, st.number = nil, a, number
	}
	h := header{stream: number, kind: typeRequest, flags: c.flags}
	frames := appendHeader(make([]byte, 0, headerSize+len(c.body)+len(c.after)), h)
	if c.timed {
		frames = appendWithTimeout(frames, c.body, left)
	} else {
		frames = append(frames, c.body...)
	}
	setLength(frames)
	for at := 0; at < len(c.after); {
		size := getHeader(c.after[at:]).size()
		setStream(c.after[at:], number)
		at += size
	}
	return append(frames, c.after...), nil
}
