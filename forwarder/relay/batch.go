package relay

import (
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// batch is frames of the host that were there at the same time.
type batch struct {
	*session
	agent   *agent  // nil when there is none
	answers []byte  // frames for the host
	held    []*call // to be started
}

// sort gives every frame its way and returns those that go to the agent now,
// renumbered, moved together in place. mu is held, and the agent's writer.
func (b *batch) sort(frames []byte) []byte {
	out := 0
	for at := 0; at < len(frames); {
		h := getHeader(frames[at:])
		frame := frames[at : at+h.size()]
		at += len(frame)
		number, pass := b.frame(h, frame[headerSize:])
		if !pass {
			continue
		}
		setStream(frame, number)
		if out+len(frame) != at {
			copy(frames[out:], frame)
		}
		out += len(frame)
	}
	return frames[:out]
}

// frame decides on one frame and returns its number on the agent's side if it
// goes there now. The order of the checks is that of Go's ttrpc server.
func (b *batch) frame(h header, body []byte) (number uint32, pass bool) {
	switch {
	case h.stream%2 == 0:
		b.refuse(h, errEven)
	case h.kind == typeData:
		return b.data(h, body)
	case h.kind == typeRequest:
		return b.request(h, body)
	}
	return 0, false // as both upstream servers do with types they do not know
}

// refuse answers a frame.
func (b *batch) refuse(h header, err error) {
	b.relay.metrics.failed.Add(1)
	b.answers = appendAnswer(b.answers, h.stream, err)
}

func (b *batch) request(h header, body []byte) (number uint32, pass bool) {
	if h.stream <= b.last {
		b.refuse(h, errReused)
		return 0, false
	}
	b.last = h.stream
	req, err := parseRequest(body)
	if err != nil {
		b.refuse(h, status.Errorf(codes.InvalidArgument, "unmarshal request error: %v", err))
		return 0, false
	}
	calls := b.session.held
	if b.agent != nil {
		calls += len(b.agent.streams)
	}
	if calls >= maxStreams {
		b.refuse(h, errTooMany)
		return 0, false
	}
	st := (*stream)(nil)
	if h.flags&flagRemoteOpen != 0 {
		st = new(stream)
		b.open[h.stream] = st
	}
	method := b.relay.method(req.service, req.method)
	if method != nil || b.agent == nil {
		b.hold(h, body, req, method)
		return 0, false
	}
	b.relay.metrics.passed.Add(1)
	number = b.agent.admit(caller{h.stream, req.timeout != 0})
	if st != nil {
		st.agent, st.number = b.agent, number
	}
	return number, true
}

// hold holds a call back.
func (b *batch) hold(h header, body []byte, req request, method Method) {
	c := newCall(h, body, req, method, time.Now())
	if err := b.room(c, len(c.body)); err != nil {
		delete(b.open, h.stream)
		b.refuse(h, err)
		return
	}
	if st := b.open[h.stream]; st != nil {
		st.call = c
	}
	if method == nil {
		b.relay.metrics.passed.Add(1)
	}
	b.keep(c)
	b.held = append(b.held, c)
}

// data takes a data frame, which follows its request whichever way that went.
// One for a call that has ended, or on which the host said that it sends no
// more, is not for the agent: Go's ttrpc servers have ended over such frames.
func (b *batch) data(h header, body []byte) (number uint32, pass bool) {
	st := b.open[h.stream]
	if st == nil {
		b.refuse(h, errNotActive)
		return 0, false
	}
	if h.flags&flagRemoteClosed != 0 {
		delete(b.open, h.stream)
	}
	if st.call == nil {
		// It may be that of a former agent, whose end is about to be answered.
		return st.number, st.agent == b.agent
	}
	if err := b.room(nil, h.size()); err != nil {
		delete(b.open, h.stream)
		st.call.dropped = true
		b.refuse(h, err)
		return 0, false
	}
	st.call.after = append(appendHeader(st.call.after, h), body...)
	b.heldBytes += h.size()
	return 0, false
}
