package relay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sealpod/sealpod/podvm"
)

func TestCallsWaitForTheFirstAgent(t *testing.T) {
	path := socket(t)
	failed := make(chan struct{})
	var once sync.Once
	dial := dialTo(path)
	c := client(t, Config{Dial: func(ctx context.Context) (net.Conn, error) {
		conn, err := dial(ctx)
		if err != nil {
			once.Do(func() { close(failed) })
		}
		return conn, err
	}})
	const calls = 20
	results := make(chan error, calls)
	for i := range calls {
		go func() {
			got, err := echo(context.Background(), c, fmt.Sprint(i))
			if err == nil && got != fmt.Sprint(i) {
				err = fmt.Errorf("got %q for %d", got, i)
			}
			results <- err
		}()
	}
	// A stream opened now has its data held back with it.
	s, err := c.NewStream(t.Context(), &ttrpc.StreamDesc{StreamingClient: true, StreamingServer: true}, service, "Talk", nil)
	if err := errors.Join(err, s.SendMsg(text("a")), s.SendMsg(text("b"))); err != nil {
		t.Fatal(err)
	}
	<-failed
	a := startAgent(t, path)
	for range calls {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	if slices.Sort(a.seen); len(slices.Compact(a.seen)) != calls {
		t.Errorf("delivered %q", a.seen)
	}
	for _, want := range []string{"a", "b"} {
		var v bytesValue
		if err := s.RecvMsg(&v); err != nil || string(v.Value) != want {
			t.Errorf("got %q, %v, want %q", v.Value, err, want)
		}
	}
}

func TestAgentRestart(t *testing.T) {
	path := socket(t)
	a := startAgent(t, path)
	c := client(t, Config{Dial: dialTo(path)})
	for round := range 3 {
		blocked := make(chan error, 8)
		for range cap(blocked) {
			go func() { blocked <- c.Call(context.Background(), service, "Block", text("x"), &bytesValue{}) }()
			<-a.entered
		}
		a.stop()
		for range cap(blocked) {
			if err := <-blocked; status.Code(err) != codes.Unavailable {
				t.Errorf("in flight: got %v", err)
			}
		}
		again := make(chan error, 1)
		go func() {
			_, err := echo(context.Background(), c, "again")
			again <- err
		}()
		a = startAgent(t, path)
		if err := <-again; err != nil {
			t.Fatalf("after restart %d: %v", round, err)
		}
	}
}

// A request of which nothing has reached the agent that is gone goes to the next
// one; no other does.
func TestNothingIsDeliveredTwice(t *testing.T) {
	const rounds = 300
	again := 0
	for range rounds {
		var wg sync.WaitGroup
		var mu sync.Mutex
		delivered, conns := map[string]int{}, 0
		arrived := make(chan struct{}, 4)
		s := serve(t, Config{Dial: func(context.Context) (net.Conn, error) {
			mine, theirs := tcpPair(t)
			mu.Lock()
			defer mu.Unlock()
			conns++
			first := conns == 1
			wg.Go(func() {
				defer theirs.Close()
				for {
					h, body, err := readFrame(theirs)
					if err != nil {
						return
					}
					req, _ := parseRequest(body)
					mu.Lock()
					delivered[string(req.payload)]++
					mu.Unlock()
					arrived <- struct{}{}
					if first {
						return // while the next request is on its way
					}
					_, _ = theirs.Write(frame(h.stream, typeResponse, 0, nil))
				}
			})
			return mine, nil
		}}, tcpPair)
		host := rawEnd{t, s.Conn}
		host.send(requestFrame(t, 1, "Echo", text("first")))
		<-arrived
		host.send(requestFrame(t, 3, "Echo", text("second")))
		answered := map[uint32]answer{}
		for range 2 {
			got := host.response()
			answered[got.stream] = got
		}
		if len(answered) != 2 || answered[1].code != codes.Unavailable || answered[3].code != codes.Unavailable && answered[3].code != codes.OK {
			t.Fatalf("got %v", answered)
		}
		if answered[3].code == codes.OK {
			again++
		}
		host.Close()
		_ = s.wait()
		wg.Wait()
		for payload, n := range delivered {
			if n != 1 {
				t.Fatalf("%q was delivered %d times", payload, n)
			}
		}
	}
	t.Logf("%d of %d requests went to the next agent", again, rounds)
}

// bubble runs f with a relay and a host's end in fake time.
func bubble(t *testing.T, cfg Config, f func(t *testing.T, s *served, host rawEnd)) {
	synctest.Test(t, func(t *testing.T) {
		s := serve(t, cfg, pipePair)
		f(t, s, rawEnd{t, s.Conn})
		s.Close()
		s.cancel()
		_ = s.wait()
	})
}

func pipePair(testing.TB) (client, server net.Conn) { return net.Pipe() }

func absent(context.Context) (net.Conn, error) { return nil, errors.New("no such socket") }

func TestCallsEndWhenNoAgentComes(t *testing.T) {
	bubble(t, Config{Dial: absent}, func(t *testing.T, _ *served, host rawEnd) {
		begin := time.Now()
		host.send(
			frame(1, typeRequest, 0, requestBody(t, "Echo", text("x"), 0)),
			frame(3, typeRequest, 0, requestBody(t, "Echo", text("x"), 20*time.Second)),
			frame(5, typeRequest, 0, requestBody(t, "Echo", text("x"), time.Second)),
			frame(7, typeRequest, 0, requestBody(t, "Echo", text("x"), -1)),
		)
		for _, want := range []struct {
			answer
			at time.Duration
		}{
			{answer{7, codes.DeadlineExceeded, notEstablished}, 0},
			{answer{5, codes.DeadlineExceeded, notEstablished}, 900 * time.Millisecond},
			{answer{3, codes.DeadlineExceeded, notEstablished}, 19500 * time.Millisecond},
			{answer{1, codes.Unavailable, notEstablished}, 2 * time.Minute},
		} {
			_ = host.SetReadDeadline(time.Time{})
			got := waitResponse(host)
			if at := time.Since(begin); got != want.answer || at != want.at {
				t.Errorf("got %v after %s, want %v after %s", got, at, want.answer, want.at)
			}
		}
	})
}

// waitResponse is response with as much time as it takes.
func waitResponse(host rawEnd) answer {
	h, body := host.wait()
	return parseAnswer(host.t, h, body)
}

func TestHeldBackCallHasTheTimeThatIsLeft(t *testing.T) {
	var up atomic.Bool
	var agents chan rawEnd
	dial := func(context.Context) (net.Conn, error) {
		if !up.Load() {
			return nil, errors.New("no such socket")
		}
		mine, theirs := net.Pipe()
		agents <- rawEnd{t, theirs}
		return mine, nil
	}
	cfg := Config{Dial: dial, Methods: map[string]Method{"/" + service + "/Meta": func(ctx context.Context, p []byte) ([]byte, error) {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(4 * time.Second):
			return p, nil
		}
	}}}
	bubble(t, cfg, func(t *testing.T, s *served, host rawEnd) {
		agents = make(chan rawEnd, 1) // of the bubble
		host.send(frame(1, typeRequest, 0, requestBody(t, "Meta", text("x"), 10*time.Second)))
		time.Sleep(6 * time.Second)
		up.Store(true)
		agent := <-agents
		_, body := agent.wait()
		req, err := parseRequest(body)
		if left := req.timeout; err != nil || left < 3700*time.Millisecond || left > 4*time.Second {
			t.Errorf("got %s, %v", left, err)
		}
		if n := s.relay.Running(); n != 1 {
			t.Errorf("%d calls running", n)
		}
		agent.send(frame(1, typeResponse, 0, nil))
		host.wait()
		if n := s.relay.Running(); n != 0 {
			t.Errorf("%d calls running", n)
		}
		// One that takes too long ends before its caller does.
		begin := time.Now()
		host.send(frame(3, typeRequest, 0, requestBody(t, "Meta", text("x"), 2*time.Second)))
		if got := waitResponse(host); got.code != codes.DeadlineExceeded || time.Since(begin) != 1800*time.Millisecond {
			t.Errorf("got %v after %s", got, time.Since(begin))
		}
		agent.Close()
	})
}

func TestErrorsOfMethods(t *testing.T) {
	path := socket(t)
	startAgent(t, path)
	for name, c := range map[string]struct {
		err  error
		code codes.Code
		text string
	}{
		"a status":         {status.Error(codes.InvalidArgument, "no OCI"), codes.InvalidArgument, "no OCI"},
		"a wrapped status": {fmt.Errorf("secret: %w", status.Error(codes.NotFound, "no volume")), codes.NotFound, "no volume"},
		"explained":        {podvm.Explain(errors.New("secret"), "no device"), codes.Unknown, "no device"},
		"any other":        {errors.New("secret"), codes.Unknown, "the forwarder cannot change this request"},
		"a deadline":       {fmt.Errorf("waiting: %w", context.DeadlineExceeded), codes.DeadlineExceeded, "the forwarder cannot change this request"},
		"bad text":         {status.Error(codes.Aborted, "\xff"), codes.Aborted, ""},
	} {
		t.Run(name, func(t *testing.T) {
			cl := client(t, Config{Dial: dialTo(path), Methods: map[string]Method{
				"/" + service + "/Meta": func(context.Context, []byte) ([]byte, error) { return nil, c.err },
			}})
			st := status.Convert(cl.Call(t.Context(), service, "Meta", text("x"), &bytesValue{}))
			if st.Code() != c.code || strings.ToValidUTF8(st.Message(), "") != strings.ToValidUTF8(c.text, "") && c.text != "" {
				t.Errorf("got %v", st)
			}
			if _, err := echo(t.Context(), cl, "x"); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestPanicOfAMethodFailsItsCallOnly(t *testing.T) {
	path := socket(t)
	startAgent(t, path)
	c := client(t, Config{Dial: dialTo(path), Methods: map[string]Method{
		"/" + service + "/Meta": func(_ context.Context, p []byte) ([]byte, error) { return p[:cap(p)+1], nil },
	}})
	if err := c.Call(t.Context(), service, "Meta", text("x"), &bytesValue{}); status.Code(err) != codes.Internal {
		t.Errorf("got %v", err)
	}
	if _, err := echo(t.Context(), c, "x"); err != nil {
		t.Error(err)
	}
}

func TestChangedCallThatGrowsTooLargeFails(t *testing.T) {
	path := socket(t)
	startAgent(t, path)
	c := client(t, Config{Dial: dialTo(path), Methods: map[string]Method{
		"/" + service + "/Meta": func(context.Context, []byte) ([]byte, error) { return make([]byte, maxBody), nil },
	}})
	if err := c.Call(t.Context(), service, "Meta", text("x"), &bytesValue{}); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("got %v", err)
	}
}

func TestHeldBackCallsAreCounted(t *testing.T) {
	t.Run("methods", func(t *testing.T) {
		bubble(t, Config{Dial: absent, Methods: map[string]Method{"/" + service + "/Meta": func(ctx context.Context, _ []byte) ([]byte, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}}}, func(t *testing.T, _ *served, host rawEnd) {
			for i := range uint32(maxMethods + 1) {
				host.send(frame(2*i+1, typeRequest, 0, requestBody(t, "Meta", text("x"), time.Hour)))
			}
			if got := waitResponse(host); got != (answer{2*maxMethods + 1, codes.ResourceExhausted, "too many calls at once"}) {
				t.Errorf("got %v", got)
			}
		})
	})
	t.Run("calls", func(t *testing.T) {
		bubble(t, Config{Dial: absent}, func(t *testing.T, _ *served, host rawEnd) {
			for i := range uint32(maxHeld + 1) {
				host.send(frame(2*i+1, typeRequest, 0, requestBody(t, "Echo", text("x"), time.Hour)))
			}
			if got := waitResponse(host); got != (answer{2*maxHeld + 1, codes.ResourceExhausted, "too many calls at once"}) {
				t.Errorf("got %v", got)
			}
		})
	})
	t.Run("bytes", func(t *testing.T) {
		bubble(t, Config{Dial: absent}, func(t *testing.T, _ *served, host rawEnd) {
			big := requestBody(t, "Echo", &bytesValue{Value: megabytes[:4<<20-100]}, time.Hour)
			for i := range uint32(5) {
				host.send(frame(2*i+1, typeRequest, 0, big))
			}
			got := waitResponse(host)
			if got.code != codes.ResourceExhausted || got.stream != 9 {
				t.Errorf("got %v", got)
			}
			// Data of a stream that is held back counts too.
			host.send(frame(11, typeRequest, flagRemoteOpen, nil), frame(11, typeData, 0, big))
			if got := waitResponse(host); got.code != codes.ResourceExhausted || got.stream != 11 {
				t.Errorf("got %v", got)
			}
			host.send(frame(11, typeData, 0, nil))
			if got := waitResponse(host); got != (answer{11, codes.InvalidArgument, "StreamID is no longer active"}) {
				t.Errorf("got %v", got)
			}
		})
	})
}

func TestOpenCallsAreCounted(t *testing.T) {
	agents := make(chan rawEnd, 1)
	host := rawEnd{t, serve(t, Config{Dial: rawAgents(t, agents)}, tcpPair).Conn}
	host.send(requestFrame(t, 1, "Block", text("x")))
	agent := <-agents
	agent.next()
	go func() {
		for i := range uint32(maxStreams) {
			_, _ = host.Write(requestFrame(t, 2*i+3, "Block", text("x")))
		}
	}()
	for range maxStreams - 1 {
		agent.next()
	}
	if got := host.response(); got != (answer{2*maxStreams + 1, codes.ResourceExhausted, "too many calls at once"}) {
		t.Errorf("got %v", got)
	}
	agent.send(frame(1, typeResponse, 0, nil))
	host.next()
	host.send(requestFrame(t, 2*maxStreams+3, "Block", text("x")))
	agent.next()
}

func TestNoGoroutineOrConnectionOutlivesServe(t *testing.T) {
	path := socket(t)
	a := startAgent(t, path)
	for name, end := range map[string]func(*served){
		"the host hangs up": func(s *served) { s.Close() },
		"the context ends":  func(s *served) { s.cancel() },
	} {
		t.Run(name, func(t *testing.T) {
			entered := make(chan struct{})
			s := serve(t, Config{Dial: dialTo(path), Methods: map[string]Method{
				"/" + service + "/Meta": func(ctx context.Context, _ []byte) ([]byte, error) {
					close(entered)
					<-ctx.Done()
					return nil, ctx.Err()
				},
			}}, tlsPair)
			host := rawEnd{t, s.Conn}
			host.send(requestFrame(t, 1, "Meta", text("x")), requestFrame(t, 3, "Block", text("x")))
			<-entered
			<-a.entered
			end(s)
			err := s.wait()
			if name == "the host hangs up" && err != nil || name != "the host hangs up" && !errors.Is(err, context.Canceled) {
				t.Errorf("got %v", err)
			}
		})
	}
}
