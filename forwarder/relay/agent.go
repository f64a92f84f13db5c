package relay

import (
	"errors"
	"net"
	"syscall"
	"time"
)

// farewellTime is how long an agent that reads no more may still answer.
const farewellTime = 5 * time.Second

// agent is one connection to the agent.
type agent struct {
	s       *session
	in      *reader
	out     writer
	release func() // stops closing it when the session ends

	farewell *time.Timer // of the writer's mu: closes it, if it reads no more

	// Of the session's mu:

	// streams has the calls that are open there, by their numbers on this side.
	// A call that was held back comes after others that the host made later, and
	// Go's ttrpc server refuses a number that is lower than another was, so the
	// numbers on this side are of their own: 1, 3, 5, … as calls are sent.
	streams map[uint32]caller
	last    uint32
}

// caller is who waits for the answer of a call.
type caller struct {
	host  uint32 // the host's number
	timed bool   // it gave a deadline
}

// newAgent returns an agent from which nothing is read yet.
func (s *session) newAgent(conn net.Conn) *agent {
	a := &agent{s: s, in: newReader(conn, agentBuffer, agentTime), out: newWriter(conn, agentTime), streams: map[uint32]caller{}}
	a.release = s.closeWith(conn)
	return a
}

// admit opens a stream for the caller and returns its number. The session's mu
// and the writer are held. The numbers do not run out before the host's do.
func (a *agent) admit(c caller) uint32 {
	if a.last == 0 {
		a.last = 1
	} else {
		a.last += 2
	}
	a.streams[a.last] = c
	return a.last
}

// run passes frames to the host until the agent is lost.
func (a *agent) run() {
	defer a.in.release()
	for {
		frames, err := a.in.next()
		var large *tooLargeError
		switch {
		case errors.As(err, &large):
			a.refuse(large)
		case err != nil:
			a.lost(err)
			return
		default:
			a.pass(frames)
		}
	}
}

// pass passes frames to the host. Its writer is held from where streams end, so
// that nobody answers before the agent's answer for a stream that has ended.
func (a *agent) pass(frames []byte) {
	a.s.out.mu.Lock()
	defer a.s.out.mu.Unlock()
	a.s.mu.Lock()
	frames = a.sort(frames)
	a.s.mu.Unlock()
	a.s.toHost(frames)
}

// sort renumbers the frames that belong to a stream and moves them together.
// mu is held.
func (a *agent) sort(frames []byte) []byte {
	out := 0
	for at := 0; at < len(frames); {
		h := getHeader(frames[at:])
		frame := frames[at : at+h.size()]
		at += len(frame)
		c, ok := a.streams[h.stream]
		if !ok {
			continue
		}
		if h.kind == typeResponse || h.kind == typeData && h.flags&flagRemoteClosed != 0 {
			a.finish(h.stream, c.host)
		}
		setStream(frame, c.host)
		if out+len(frame) != at {
			copy(frames[out:], frame)
		}
		out += len(frame)
	}
	return frames[:out]
}

// finish closes a stream: once the agent has answered, or sends no more, it is
// over for both, as in Go's ttrpc. mu is held.
func (a *agent) finish(number, host uint32) {
	delete(a.streams, number)
	delete(a.s.open, host)
}

// refuse answers the host for a frame of the agent that was too large.
func (a *agent) refuse(large *tooLargeError) {
	a.s.out.mu.Lock()
	defer a.s.out.mu.Unlock()
	a.s.mu.Lock()
	c, ok := a.streams[large.stream]
	if ok {
		a.finish(large.stream, c.host)
	}
	a.s.mu.Unlock()
	if ok {
		a.s.relay.metrics.failed.Add(1)
		a.s.toHost(appendAnswer(nil, c.host, large))
	}
}

// leave makes sure that no further call goes to this agent.
func (a *agent) leave() {
	if a.s.agent == a {
		a.s.agent = nil
	}
}

// lost ends all calls that the agent had not answered.
func (a *agent) lost(err error) {
	s := a.s
	a.out.conn.Close()
	a.release()
	// Whoever is writing takes back first what was not sent.
	a.out.mu.Lock()
	if a.farewell != nil {
		a.farewell.Stop()
	}
	var answers []byte
	s.out.mu.Lock()
	defer s.out.mu.Unlock()
	s.mu.Lock()
	a.leave()
	n := len(a.streams)
	for _, c := range a.streams {
		answers = appendAnswer(answers, c.host, errLost)
		delete(s.open, c.host)
	}
	a.streams = nil
	s.mu.Unlock()
	a.out.mu.Unlock()
	if s.ctx.Err() != nil {
		return
	}
	s.relay.metrics.lost.Add(1)
	s.relay.metrics.failed.Add(uint64(n))
	s.log.Warn("Agent connection lost", "calls", n, "err", err)
	s.toHost(answers)
}

// sendAny is send of frames that may be none.
func (a *agent) sendAny(frames []byte) []*call {
	if len(frames) == 0 {
		return nil
	}
	return a.send(frames)
}

// send writes frames of streams that were admitted. If the agent is gone, it
// returns the calls of which not a byte can have reached it, to be submitted
// again; the others fail when its connection ends. The writer is held.
func (a *agent) send(frames []byte) []*call {
	began := time.Now()
	sent, err := a.out.send(frames)
	if err == nil {
		return nil
	}
	if errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
		// There may be answers left to read, and then the end.
		a.farewell = time.AfterFunc(farewellTime, func() { a.out.conn.Close() })
	} else {
		a.out.conn.Close()
	}
	a.s.mu.Lock()
	defer a.s.mu.Unlock()
	a.leave()
	return a.takeBack(frames, sent, began)
}

// takeBack makes calls again of the requests beyond the first sent bytes, whose
// time runs since they began to be sent. mu is held.
func (a *agent) takeBack(frames []byte, sent int, began time.Time) []*call {
	var back []*call
	calls := map[uint32]*call{}
	for at := 0; at < len(frames); {
		h := getHeader(frames[at:])
		begin, body := at, frames[at+headerSize:at+h.size()]
		at += h.size()
		if begin < sent {
			continue
		}
		if c := calls[h.stream]; c != nil && h.kind == typeData {
			h.stream = c.host
			c.after = append(appendHeader(c.after, h), body...)
			continue
		}
		was, ok := a.streams[h.stream]
		if !ok || h.kind != typeRequest {
			continue
		}
		delete(a.streams, h.stream)
		req, _ := parseRequest(body)
		number := h.stream
		h.stream = was.host
		c := newCall(h, body, req, nil, began)
		if st := a.s.open[was.host]; st != nil {
			st.call = c
		}
		calls[number] = c
		back = append(back, c)
	}
	for _, c := range back {
		a.s.keep(c)
	}
	return back
}
