package relay

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// Frames that no good client sends have the answer Go's ttrpc server gives, or
// one that is as safe, and the connection goes on.
func TestBadFramesFromTheHost(t *testing.T) {
	path := socket(t)
	startAgent(t, path)
	echoed := requestBody(t, "Echo", text("x"), 0)
	const even, reused = "StreamID must be odd for client initiated streams", "StreamID cannot be re-used and must increment"
	for name, c := range map[string]struct {
		frames []byte // after one good call on stream 11
		want   []answer
	}{
		"even":                {frame(12, typeRequest, 0, echoed), []answer{{12, codes.InvalidArgument, even}}},
		"zero":                {frame(0, typeRequest, 0, echoed), []answer{{0, codes.InvalidArgument, even}}},
		"even data":           {frame(12, typeData, 0, echoed), []answer{{12, codes.InvalidArgument, even}}},
		"even, unknown type":  {frame(12, 9, 0, nil), []answer{{12, codes.InvalidArgument, even}}},
		"reused":              {frame(11, typeRequest, 0, echoed), []answer{{11, codes.InvalidArgument, reused}}},
		"lower":               {frame(9, typeRequest, 0, echoed), []answer{{9, codes.InvalidArgument, reused}}},
		"data, never open":    {frame(13, typeData, 0, echoed), []answer{{13, codes.InvalidArgument, "StreamID is no longer active"}}},
		"data, unary, over":   {frame(11, typeData, 0, echoed), []answer{{11, codes.InvalidArgument, "StreamID is no longer active"}}},
		"a response":          {frame(13, typeResponse, 0, nil), nil},
		"unknown types":       {append(frame(13, 0, 0, nil), frame(15, 255, 255, echoed)...), nil},
		"empty request":       {frame(13, typeRequest, 0, nil), []answer{{13, codes.Unimplemented, "service "}}},
		"highest":             {frame(1<<32-1, typeRequest, 0, echoed), []answer{{1<<32 - 1, codes.OK, "x"}}},
		"several at once":     {append(frame(12, typeRequest, 0, echoed), frame(9, typeRequest, 0, echoed)...), []answer{{12, codes.InvalidArgument, even}, {9, codes.InvalidArgument, reused}}},
		"good between bad":    {append(append(frame(12, typeData, 0, nil), frame(13, typeRequest, 0, echoed)...), frame(14, typeData, 0, nil)...), []answer{{12, codes.InvalidArgument, even}, {14, codes.InvalidArgument, even}, {13, codes.OK, "x"}}},
		"data, unary, open":   {append(frame(13, typeRequest, 0, requestBody(t, "Echo", text("y"), 0)), frame(13, typeData, flagRemoteClosed|flagNoData, nil)...), []answer{{13, codes.InvalidArgument, "StreamID is no longer active"}, {13, codes.OK, "y"}}},
		"stream, then closed": {append(frame(13, typeRequest, flagRemoteClosed, requestBody(t, "Count", wrapperspb.UInt32(0), 0)), frame(13, typeData, 0, nil)...), []answer{{13, codes.InvalidArgument, "StreamID is no longer active"}}},
	} {
		t.Run(name, func(t *testing.T) {
			host := rawHost(t, path)
			host.alive(11)
			host.send(c.frames)
			left := map[answer]bool{}
			for _, want := range c.want {
				left[want] = true
			}
			for len(left) > 0 {
				h, body := host.next()
				if h.kind == typeData {
					continue // the end of a stream
				}
				got := parseAnswer(t, h, body)
				if !left[got] {
					t.Fatalf("got %v, want one of %v", got, c.want)
				}
				delete(left, got)
			}
			if name == "highest" {
				return // there is none after it
			}
			if name == "stream, then closed" {
				return // its end is still to come
			}
			host.alive(21)
		})
	}
	t.Run("malformed", func(t *testing.T) {
		host := rawHost(t, path)
		host.send(frame(1, typeRequest, 0, []byte{0x0a, 0x7f, 'x'}))
		if got := host.response(); got.code != codes.InvalidArgument || !strings.HasPrefix(got.text, "unmarshal request error") {
			t.Errorf("got %v", got)
		}
		host.alive(3)
	})
	t.Run("garbage", func(t *testing.T) {
		host := rawHost(t, path)
		host.send([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n")) // 1.2 GB on an odd stream
		_ = host.Conn.(*net.TCPConn).CloseWrite()
		if b, err := io.ReadAll(host); len(b) > 0 || err != nil {
			t.Errorf("got %q, %v", b, err)
		}
	})
}

func TestFramesAreCutAnywhere(t *testing.T) {
	path := socket(t)
	startAgent(t, path)
	host := rawHost(t, path)
	for i := range uint32(60) {
		f := requestFrame(t, 2*i+1, "Echo", text("cut"))
		at := int(i) % len(f)
		host.send(f[:at])
		time.Sleep(time.Millisecond)
		host.send(f[at:])
		if got := host.response(); got != (answer{2*i + 1, codes.OK, "cut"}) {
			t.Fatalf("cut at %d: %v", at, got)
		}
	}
}

func TestOversizeFramesFromTheHost(t *testing.T) {
	path := socket(t)
	startAgent(t, path)
	host := rawHost(t, path)
	host.alive(1)
	for i, size := range []int{maxBody + 1, 5 << 20, 2*maxBody + 12345} {
		stream := uint32(2*i + 3)
		go func() {
			_, _ = host.Write(appendHeader(nil, header{uint32(size), stream, typeRequest, 0}))
			_, _ = host.Write(make([]byte, size))
			_, _ = host.Write(requestFrame(t, stream+100, "Echo", text("next")))
		}()
		if got := host.response(); got.stream != stream || got.code != codes.ResourceExhausted || !strings.Contains(got.text, "exceed maximum message size of 4194304") {
			t.Errorf("%d bytes: got %v", size, got)
		}
		if got := host.response(); got != (answer{stream + 100, codes.OK, "next"}) {
			t.Errorf("after %d bytes: got %v", size, got)
		}
	}
	// On an open stream it is that stream's end, and the agent learns of it.
	host.send(frame(201, typeRequest, flagRemoteOpen, requestBody(t, "Talk", text("a"), 0)))
	if h, _ := host.next(); h.stream != 201 || h.kind != typeData {
		t.Fatalf("got %v", h)
	}
	go func() {
		_, _ = host.Write(appendHeader(nil, header{maxBody + 1, 201, typeData, 0}))
		_, _ = host.Write(make([]byte, maxBody+1))
	}()
	if got := host.response(); got.stream != 201 || got.code != codes.ResourceExhausted {
		t.Errorf("got %v", got)
	}
	host.alive(203)
}

func TestLargestFramesPass(t *testing.T) {
	path := socket(t)
	startAgent(t, path)
	c := client(t, Config{Dial: dialTo(path)})
	// 4 MiB less what the envelopes take.
	said := strings.Repeat("x", maxBody-60)
	if got, err := echo(t.Context(), c, said); err != nil || got != said {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func TestOversizeReplyFailsItsStreamOnly(t *testing.T) {
	agents := make(chan rawEnd, 1)
	host := rawEnd{t, serve(t, Config{Dial: rawAgents(t, agents)}, tcpPair).Conn}
	host.send(requestFrame(t, 1, "A", text("x")), requestFrame(t, 3, "B", text("x")))
	agent := <-agents
	agent.next()
	agent.next()
	go func() {
		_, _ = agent.Write(appendHeader(nil, header{9 << 20, 1, typeResponse, 0}))
		_, _ = agent.Write(make([]byte, 9<<20))
		// For a stream that is not open it is nothing at all.
		_, _ = agent.Write(appendHeader(nil, header{5 << 20, 7, typeResponse, 0}))
		_, _ = agent.Write(make([]byte, 5<<20))
		_, _ = agent.Write(frame(3, typeResponse, 0, nil))
	}()
	if got := host.response(); got.stream != 1 || got.code != codes.ResourceExhausted {
		t.Errorf("got %v", got)
	}
	if got := host.response(); got.stream != 3 || got.code != codes.OK {
		t.Errorf("got %v", got)
	}
}

func TestBadFramesFromTheAgent(t *testing.T) {
	agents := make(chan rawEnd, 1)
	host := rawEnd{t, serve(t, Config{Dial: rawAgents(t, agents)}, tcpPair).Conn}
	host.send(requestFrame(t, 5, "A", text("x")))
	agent := <-agents
	agent.next()
	agent.send(
		frame(2, typeResponse, 0, nil), // never opened
		frame(3, typeData, 0, []byte("x")),
		frame(1, 9, 0, []byte("new")), // passes: it belongs to a stream
		frame(1, typeResponse, 0, nil),
		frame(1, typeResponse, 0, nil), // over
	)
	if h, body := host.next(); h != (header{3, 5, 9, 0}) || string(body) != "new" {
		t.Errorf("got %v %q", h, body)
	}
	if got := host.response(); got.stream != 5 {
		t.Errorf("got %v", got)
	}
	host.send(requestFrame(t, 7, "A", text("x")))
	agent.next()
	agent.send(frame(3, typeResponse, 0, nil))
	if got := host.response(); got.stream != 7 {
		t.Errorf("got %v", got)
	}
}

// An agent that dies within a reply, at any byte of it, leaves no byte of it
// behind: the host gets a whole answer and its connection serves the next agent.
func TestAgentThatDiesWithinAReply(t *testing.T) {
	for _, size := range []int{20, 300, 200 << 10} {
		reply := frame(1, typeResponse, 0, make([]byte, size))
		for _, cut := range []int{1, 9, 10, 11, size / 2, len(reply) - 1} {
			agents := make(chan rawEnd, 2)
			host := rawEnd{t, serve(t, Config{Dial: rawAgents(t, agents)}, tcpPair).Conn}
			host.send(requestFrame(t, 1, "A", text("x")))
			agent := <-agents
			agent.next()
			agent.send(reply[:cut])
			agent.Close()
			if got := host.response(); got != (answer{1, codes.Unavailable, "agent connection is lost"}) {
				t.Fatalf("%d of %d bytes: got %v", cut, len(reply), got)
			}
			host.send(requestFrame(t, 3, "A", text("x")))
			agent = <-agents
			agent.next()
			agent.send(frame(1, typeResponse, 0, nil))
			if got := host.response(); got != (answer{3, codes.OK, ""}) {
				t.Fatalf("the next call: got %v", got)
			}
		}
	}
}

func TestStreamDataAfterItsAgentIsLost(t *testing.T) {
	path := socket(t)
	a := startAgent(t, path)
	c := client(t, Config{Dial: dialTo(path)})
	s, err := c.NewStream(t.Context(), &ttrpc.StreamDesc{StreamingClient: true, StreamingServer: true}, service, "Talk", nil)
	if err := errors.Join(err, s.SendMsg(text("a")), s.RecvMsg(&bytesValue{})); err != nil {
		t.Fatal(err)
	}
	a.stop()
	if err := s.RecvMsg(&bytesValue{}); status.Code(err) != codes.Unavailable {
		t.Errorf("got %v", err)
	}
	_ = s.SendMsg(text("b"))
	startAgent(t, path)
	if _, err := echo(t.Context(), c, "x"); err != nil {
		t.Error(err)
	}
}

func TestHostThatDoesNotReadIsCutOff(t *testing.T) {
	bubble(t, Config{Dial: func(context.Context) (net.Conn, error) {
		mine, theirs := net.Pipe()
		go func() {
			defer theirs.Close()
			for {
				h, _, err := readFrame(theirs)
				if err != nil {
					return
				}
				_, _ = theirs.Write(frame(h.stream, typeResponse, 0, nil))
			}
		}()
		return mine, nil
	}}, func(t *testing.T, s *served, host rawEnd) {
		begin := time.Now()
		host.send(requestFrame(t, 1, "A", text("x")))
		if err := s.wait(); !errors.Is(err, ErrNotReading) {
			t.Errorf("got %v", err)
		}
		if took := time.Since(begin); took < hostTime/2 || took > hostTime {
			t.Errorf("after %s", took)
		}
	})
}

func TestHalfFramesAreCutOffAndSilenceIsNot(t *testing.T) {
	for _, n := range []int{1, 9, 10, 15, 70 << 10} {
		bubble(t, Config{Dial: absent}, func(t *testing.T, s *served, host rawEnd) {
			host.send(frame(2, typeRequest, 0, nil))
			waitResponse(host)
			time.Sleep(72 * time.Hour)
			host.send(frame(4, typeRequest, 0, nil)[:5])
			time.Sleep(time.Second)
			host.send(frame(4, typeRequest, 0, nil)[5:])
			waitResponse(host)
			time.Sleep(72 * time.Hour)
			begin := time.Now()
			host.send(frame(1, typeRequest, 0, make([]byte, 80<<10))[:n])
			if err := s.wait(); !errors.Is(err, ErrHalfFrame) {
				t.Errorf("%d bytes: got %v", n, err)
			}
			if took := time.Since(begin); took < hostTime || took > hostTime+2*time.Second {
				t.Errorf("%d bytes: after %s", n, took)
			}
		})
	}
}

// A length of 4 GiB is read past for as long as a frame may take at most.
func TestEndlessFrameIsCutOff(t *testing.T) {
	bubble(t, Config{Dial: absent}, func(t *testing.T, s *served, host rawEnd) {
		begin := time.Now()
		var wg sync.WaitGroup
		defer wg.Wait()
		wg.Go(func() {
			chunk := appendHeader(nil, header{1<<32 - 1, 1, typeRequest, 0})
			for {
				if _, err := host.Write(chunk); err != nil {
					return
				}
				chunk = make([]byte, 1000)
				time.Sleep(time.Second)
			}
		})
		if err := s.wait(); !errors.Is(err, ErrHalfFrame) {
			t.Errorf("got %v", err)
		}
		if took := time.Since(begin); took > hostTime+time.Minute+5*time.Second {
			t.Errorf("after %s", took)
		}
	})
}

// An agent that stands still within a reply is as good as dead.
func TestAgentThatStandsStill(t *testing.T) {
	bubble(t, Config{Dial: func(context.Context) (net.Conn, error) {
		mine, theirs := net.Pipe()
		go func() {
			_, _, _ = readFrame(theirs)
			_, _ = theirs.Write(frame(1, typeResponse, 0, make([]byte, 100))[:50])
		}()
		return mine, nil
	}}, func(t *testing.T, _ *served, host rawEnd) {
		begin := time.Now()
		host.send(requestFrame(t, 1, "A", text("x")))
		if got := waitResponse(host); got.code != codes.Unavailable || time.Since(begin) > agentTime+time.Second {
			t.Errorf("got %v after %s", got, time.Since(begin))
		}
	})
	// So is one that does not take a request.
	bubble(t, Config{Dial: func(context.Context) (net.Conn, error) {
		mine, _ := net.Pipe()
		return mine, nil
	}}, func(t *testing.T, _ *served, host rawEnd) {
		host.send(frame(1, typeRequest, 0, requestBody(t, "A", text("x"), 40*time.Second)))
		if got := waitResponse(host); got.code != codes.DeadlineExceeded && got.code != codes.Unavailable {
			t.Errorf("got %v", got)
		}
	})
}

// The time a frame may take is that of its size, wherever it is cut.
func TestLargeFrameWhoseHeaderIsCut(t *testing.T) {
	bubble(t, Config{Dial: absent}, func(t *testing.T, s *served, host rawEnd) {
		f := frame(2, typeRequest, 0, make([]byte, maxBody))
		host.send(f[:3])
		time.Sleep(hostTime / 2)
		host.send(f[3:100])
		time.Sleep(hostTime/2 + 30*time.Second)
		host.send(f[100:])
		if got := waitResponse(host); got.stream != 2 || got.code != codes.InvalidArgument {
			t.Errorf("got %v", got)
		}
	})
}
