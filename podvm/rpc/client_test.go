package rpc

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/ttrpc"

	"github.com/sealpod/sealpod/api/datahub"
)

// A peer that was stopped, not killed: its kernel accepts connections and a few
// bytes, and that is all. Each caller is told at its own deadline, whatever the
// others wait for.
func TestAPeerThatHangsHoldsNobodyBeyondTheirDeadlines(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c := client(t, path)
	long, cancel := context.WithCancel(t.Context())
	defer cancel()
	big := make(chan error, 1)
	go func() { // more than a socket takes: the write does not end
		_, err := get(long, c, strings.Repeat("x", 3<<20))
		big <- err
	}()
	for range 5 {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		small := make(chan error, 1)
		go func() { _, err := get(ctx, c, "x"); small <- err }()
		select {
		case err := <-small:
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("a caller with a deadline: %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("a caller waits for another's request to be taken")
		}
		cancel()
	}
	cancel()
	select {
	case err := <-big:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("the caller who gave up: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("a caller who gave up waits for its request to be taken")
	}
}

// patientHub serves until its caller has gone.
type patientHub struct{ entered, ended chan struct{} }

func (h patientHub) GetResource(ctx context.Context, _ *datahub.GetResourceRequest) (*datahub.GetResourceResponse, error) {
	h.entered <- struct{}{}
	<-ctx.Done()
	h.ended <- struct{}{}
	return nil, ctx.Err()
}

// A call its caller has given up does not go on at the peer, where it would take
// the place of another.
func TestGivingUpEndsTheCallAtThePeer(t *testing.T) {
	h := patientHub{make(chan struct{}, 1), make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(t.Context())
	path := filepath.Join(t.TempDir(), "s.sock")
	l, err := Listen(ctx, path)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() {
		served <- Serve(ctx, l, slog.New(slog.DiscardHandler), func(s *ttrpc.Server) {
			datahub.RegisterGetResourceServiceService(s, h)
		})
	}()
	defer func() { cancel(); <-served }()
	c := client(t, path)
	for range 3 {
		call, giveUp := context.WithCancel(ctx)
		answer := make(chan error, 1)
		go func() { _, err := get(call, c, "x"); answer <- err }()
		<-h.entered
		giveUp()
		if err := <-answer; !errors.Is(err, context.Canceled) {
			t.Errorf("the caller: %v", err)
		}
		select {
		case <-h.ended:
		case <-time.After(10 * time.Second):
			t.Fatal("the call goes on")
		}
	}
}

// A peer killed in the middle of an answer costs another try.
func TestAnAnswerCutShortIsAskedForAgain(t *testing.T) {
	for name, cut := range map[string][]byte{
		"in the header": frame(2, 0, nil)[:5],
		"in the body":   frame(2, 0, []byte("answer"))[:12],
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "s.sock")
			l, err := net.Listen("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			done := make(chan struct{})
			go func() {
				defer close(done)
				conn, err := l.Accept()
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = conn.Read(make([]byte, 4096))
				_, _ = conn.Write(cut)
				_ = l.Close()
				start(t, &hub{}, path) // as a service manager does
				_ = conn.Close()
			}()
			if got, err := get(t.Context(), client(t, path), "x"); err != nil || got != "x" {
				t.Errorf("%q, %v", got, err)
			}
			<-done
		})
	}
}

// Calls one after the other share a connection, and a burst leaves no more than
// maxIdle.
func TestConnectionsAreKept(t *testing.T) {
	h := &hub{entered: make(chan struct{}), release: make(chan struct{})}
	ctx, cancel := context.WithCancel(t.Context())
	path := filepath.Join(t.TempDir(), "s.sock")
	l, err := Listen(ctx, path)
	if err != nil {
		t.Fatal(err)
	}
	counted := &countingListener{Listener: l}
	served := make(chan error, 1)
	go func() {
		served <- Serve(ctx, counted, slog.New(slog.DiscardHandler), func(s *ttrpc.Server) {
			datahub.RegisterGetResourceServiceService(s, h)
		})
	}()
	defer func() { cancel(); <-served }()
	c := client(t, path)
	for range 100 {
		if _, err := get(ctx, c, "x"); err != nil {
			t.Fatal(err)
		}
	}
	if n := counted.n.Load(); n != 1 {
		t.Errorf("100 calls in turn made %d connections", n)
	}
	var all sync.WaitGroup
	for range 2 * maxIdle {
		all.Go(func() {
			if _, err := get(ctx, c, "block"); err != nil {
				t.Error(err)
			}
		})
		<-h.entered
	}
	close(h.release)
	all.Wait()
	if n := counted.n.Load(); n != 2*maxIdle || len(c.idle) != maxIdle {
		t.Errorf("%d calls at once made %d connections and left %d", 2*maxIdle, n, len(c.idle))
	}
}

type countingListener struct {
	net.Listener
	n atomic.Int64
}

func (l *countingListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err == nil {
		l.n.Add(1)
	}
	return conn, err
}
