package relay

import (
	"context"
	"errors"
	"net"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// Of a write that the agent's end cut short, what cannot have arrived is called
// again with the data that follows it; the rest is not.
func TestTakeBack(t *testing.T) {
	s := &session{relay: New(Config{}), open: map[uint32]*stream{}}
	a := &agent{s: s, streams: map[uint32]caller{1: {host: 11}, 3: {host: 13}, 5: {host: 15}, 9: {host: 19}}}
	s.open[11], s.open[15] = &stream{agent: a, number: 1}, &stream{agent: a, number: 5}
	body := func(what string) []byte { return requestBody(t, what, text("x"), 0) }
	arrived := slices.Concat(frame(1, typeRequest, flagRemoteOpen, body("A")), frame(3, typeRequest, 0, body("B")))
	frames := slices.Concat(arrived,
		frame(1, typeData, 0, []byte("of a call that may have arrived")),
		frame(5, typeRequest, flagRemoteOpen, body("C")),
		frame(5, typeData, 0, []byte("data")),
		frame(7, typeRequest, 0, body("D")), // failed already
		frame(9, typeRequest, 0, body("E")),
	)
	back := a.takeBack(frames, len(arrived)-1, time.Now())
	if len(back) != 2 || back[0].host != 15 || back[1].host != 19 || string(back[1].body) != string(body("E")) {
		t.Fatalf("got %v", back)
	}
	if string(back[0].after) != string(frame(15, typeData, 0, []byte("data"))) || s.open[15].call != back[0] {
		t.Errorf("got data %q", back[0].after)
	}
	if len(a.streams) != 2 || s.held != 2 || s.heldBytes != len(back[0].body)+len(back[0].after)+len(back[1].body) {
		t.Errorf("%d streams, %d calls of %d bytes held", len(a.streams), s.held, s.heldBytes)
	}
	s.release(back[0])
	s.release(back[1])
	if s.held != 0 || s.heldBytes != 0 {
		t.Errorf("%d calls of %d bytes held at the end", s.held, s.heldBytes)
	}
}

// Between the end of an agent and the answers to its calls there can be a next
// one, on which the same number is another call's.
func TestDataForAFormerAgentGoesNowhere(t *testing.T) {
	path := socket(t)
	startAgent(t, path)
	mine, theirs := tcpPair(t)
	defer theirs.Close()
	defer mine.Close()
	s := newSession(t.Context(), New(Config{Dial: dialTo(path)}), mine)
	conn, err := s.relay.dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	former := &agent{s: s, streams: map[uint32]caller{1: {host: 11}, 3: {host: 13}}}
	s.open[11], s.open[13] = &stream{agent: former, number: 1}, &stream{agent: former, number: 3}
	for _, now := range []*agent{nil, s.newAgent(conn)} {
		s.agent = now
		b := batch{session: s, agent: now}
		if pass := b.sort(frame(11, typeData, 0, []byte("x"))); len(pass) > 0 || len(b.answers) > 0 {
			t.Errorf("passed %q, answered %q", pass, b.answers)
		}
	}
	for _, now := range []*agent{nil, s.agent} {
		s.mu.Lock()
		s.agent = now
		s.mu.Unlock()
		for host := range s.open {
			s.refuse(&tooLargeError{header{length: maxBody + 1, stream: host, kind: typeData}})
			if got := (rawEnd{t, theirs}).response(); got.stream != host || got.code != codes.ResourceExhausted {
				t.Errorf("got %v", got)
			}
			break
		}
	}
	if len(former.streams) != 0 || len(s.open) != 0 {
		t.Errorf("%v and %v are left", former.streams, s.open)
	}
	s.end(context.Canceled)
	s.owned.Wait()
}

func TestPayloadMayBecomeEmpty(t *testing.T) {
	path := socket(t)
	startAgent(t, path)
	c := client(t, Config{Dial: dialTo(path), Methods: map[string]Method{
		"/" + service + "/Echo": func(context.Context, []byte) ([]byte, error) { return nil, nil },
	}})
	if got, err := echo(t.Context(), c, "x"); err != nil || got != "" {
		t.Errorf("got %q, %v", got, err)
	}
}

// A stream that ended while its request was held back does not reach the agent.
func TestStreamThatEndsWhileItWaits(t *testing.T) {
	path := socket(t)
	var a *testAgent
	up := make(chan struct{})
	dial := dialTo(path)
	host := rawEnd{t, serve(t, Config{Dial: func(ctx context.Context) (net.Conn, error) {
		select {
		case <-up:
			return dial(ctx)
		default:
			return nil, errors.New("not yet")
		}
	}}, tcpPair).Conn}
	host.send(frame(1, typeRequest, flagRemoteOpen, requestBody(t, "Count", wrapperspb.UInt32(1), 0)))
	go func() {
		_, _ = host.Write(appendHeader(nil, header{maxBody + 1, 1, typeData, 0}))
		_, _ = host.Write(make([]byte, maxBody+1))
	}()
	if got := host.response(); got.stream != 1 || got.code != codes.ResourceExhausted {
		t.Errorf("got %v", got)
	}
	a = startAgent(t, path)
	close(up)
	host.alive(3)
	if len(a.seen) != 1 {
		t.Errorf("the agent saw %q", a.seen)
	}
}

// The time of a call can be over just when an agent comes.
func TestCallWhoseTimeIsOverIsNotSent(t *testing.T) {
	bubble(t, Config{Dial: func(ctx context.Context) (net.Conn, error) {
		time.Sleep(10 * time.Millisecond)
		mine, theirs := net.Pipe()
		theirs.Close()
		return mine, ctx.Err()
	}, Methods: map[string]Method{"/" + service + "/Meta": func(_ context.Context, p []byte) ([]byte, error) {
		time.Sleep(3 * time.Second) // whatever its context says
		return p, nil
	}}}, func(t *testing.T, _ *served, host rawEnd) {
		host.send(frame(1, typeRequest, 0, requestBody(t, "Meta", text("x"), 2*time.Second)))
		if got := waitResponse(host); got.code != codes.DeadlineExceeded {
			t.Errorf("got %v", got)
		}
	})
}

func TestTimeoutOfARequestIsItsLast(t *testing.T) {
	p := append(requestBody(t, "A", text("x"), time.Hour), requestBody(t, "B", text("y"), time.Second)...)
	r, err := parseRequest(p)
	if err != nil || r.timeout != time.Second || string(r.method) != "B" {
		t.Errorf("got %v, %v", r, err)
	}
	var v bytesValue
	if err := proto.Unmarshal(r.payload, &v); err != nil || string(v.Value) != "y" {
		t.Errorf("got %v, %v", &v, err)
	}
}
