package relay

import (
	"context"
	"net"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
)

// A call of which nothing was sent does not fail with an agent that hung up just
// when it was found, whichever of the two ends is noticed first.
func TestAgentGoneBeforeItIsTaken(t *testing.T) {
	path := socket(t)
	startAgent(t, path)
	for range 200 {
		mine, theirs := tcpPair(t)
		s := newSession(t.Context(), New(Config{Dial: dialTo(path)}), mine)
		dead, other := net.Pipe()
		other.Close()
		c := newCall(header{stream: 1, kind: typeRequest}, requestBody(t, "Echo", text("x"), 0), request{}, nil, time.Now())
		s.keep(c)
		s.waiting, s.connecting = []*call{c}, true
		if s.adopt(dead) {
			t.Fatal("an agent that is gone has taken a call")
		}
		s.owned.Go(s.connect)
		if got := (rawEnd{t, theirs}).response(); got != (answer{1, codes.OK, "x"}) {
			t.Fatalf("got %v", got)
		}
		s.end(errHungUp)
		s.owned.Wait()
		theirs.Close()
	}
}

// deaf is a connection whose peer has stopped reading for good, but not hung up.
type deaf struct {
	net.Conn
	now atomic.Bool
}

func (d *deaf) Write(p []byte) (int, error) {
	if d.now.Load() {
		return 0, syscall.EPIPE
	}
	return d.Conn.Write(p)
}

// What an agent that reads no more has still to say is waited for, but not for
// ever: its calls fail then, and its connection is closed.
func TestAgentThatOnlyReadsNoMore(t *testing.T) {
	var dials int
	var first *deaf
	var agents chan rawEnd
	bubble(t, Config{Dial: func(context.Context) (net.Conn, error) {
		mine, theirs := net.Pipe()
		agents <- rawEnd{t, theirs}
		if dials++; dials == 1 {
			first = &deaf{Conn: mine}
			return first, nil
		}
		return mine, nil
	}}, func(t *testing.T, _ *served, host rawEnd) {
		agents = make(chan rawEnd, 2)
		host.send(requestFrame(t, 1, "A", text("x")), requestFrame(t, 3, "A", text("x")))
		a := <-agents
		a.wait()
		a.wait()
		first.now.Store(true)
		begin := time.Now()
		host.send(requestFrame(t, 5, "A", text("x")))
		b := <-agents
		if h, _ := b.wait(); h.stream != 1 {
			t.Errorf("got %v", h)
		}
		a.send(frame(3, typeResponse, 0, nil))
		if got := waitResponse(host); got.stream != 3 || got.code != codes.OK {
			t.Errorf("got %v", got)
		}
		_ = host.SetReadDeadline(begin.Add(time.Hour))
		if got := waitResponse(host); got.stream != 1 || got.code != codes.Unavailable || time.Since(begin) != farewellTime {
			t.Errorf("got %v after %s", got, time.Since(begin))
		}
		if _, err := a.Write(frame(1, typeResponse, 0, nil)); err == nil {
			t.Error("the connection is open")
		}
		b.Close()
	})
}

// A call that the first agent did not take has no more time for it.
func TestTakenBackCallHasTheTimeThatIsLeft(t *testing.T) {
	var dials int
	var agents chan rawEnd
	bubble(t, Config{Dial: func(context.Context) (net.Conn, error) {
		mine, theirs := net.Pipe()
		if dials++; dials > 1 {
			agents <- rawEnd{t, theirs}
		}
		return mine, nil
	}}, func(t *testing.T, _ *served, host rawEnd) {
		agents = make(chan rawEnd, 2)
		begin := time.Now()
		host.send(frame(1, typeRequest, 0, requestBody(t, "A", text("x"), 40*time.Second)))
		a := <-agents
		_, body := a.wait()
		req, err := parseRequest(body)
		if took := time.Since(begin); err != nil || req.timeout > 40*time.Second-took {
			t.Errorf("%s left after %s, %v", req.timeout, took, err)
		}
		a.Close()
	})
}

// A call is running until its answer is with the host.
func TestAnswerOnItsWayIsRunning(t *testing.T) {
	var agents chan rawEnd
	bubble(t, Config{Dial: func(context.Context) (net.Conn, error) {
		mine, theirs := net.Pipe()
		agents <- rawEnd{t, theirs}
		return mine, nil
	}}, func(t *testing.T, s *served, host rawEnd) {
		agents = make(chan rawEnd, 1)
		host.send(frame(1, typeRequest, 0, requestBody(t, "A", text("x"), time.Minute)))
		a := <-agents
		a.wait()
		a.send(frame(1, typeResponse, 0, nil))
		synctest.Wait()
		if n := s.relay.Running(); n != 1 {
			t.Errorf("%d calls running", n)
		}
		host.wait()
		synctest.Wait()
		if n := s.relay.Running(); n != 0 {
			t.Errorf("%d calls running", n)
		}
		a.Close()
	})
}

// A host that stands still for a while, or a network that does, ends nothing: the
// adaptor never comes back to a pod whose connection was closed.
func TestHostThatStandsStillForAWhile(t *testing.T) {
	const pause = 2 * time.Minute // TCP's own probes give up at this time or later
	var agents chan rawEnd
	bubble(t, Config{Dial: func(context.Context) (net.Conn, error) {
		mine, theirs := net.Pipe()
		agents <- rawEnd{t, theirs}
		return mine, nil
	}}, func(t *testing.T, _ *served, host rawEnd) {
		agents = make(chan rawEnd, 1)
		f := requestFrame(t, 1, "A", text("x"))
		host.send(f[:20])
		time.Sleep(pause)
		host.send(f[20:])
		a := <-agents
		a.wait()
		a.send(frame(1, typeResponse, 0, make([]byte, 1000)))
		time.Sleep(pause)
		_ = host.SetReadDeadline(time.Time{})
		if h, body, err := readFrame(host); err != nil || h.stream != 1 || len(body) != 1000 {
			t.Errorf("got %v with %d bytes, %v", h, len(body), err)
		}
		a.Close()
	})
}
