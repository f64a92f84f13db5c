package rpc

import (
	"context"
	"io"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// mute accepts connections and never says a word.
func mute(t *testing.T, network, addr string) net.Listener {
	t.Helper()
	l, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { _, _ = io.Copy(io.Discard, c); _ = c.Close() })
		}
	})
	t.Cleanup(func() { _ = l.Close(); wg.Wait() })
	return l
}

func TestAnswers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.sock")
	h := &hub{entered: make(chan struct{}), release: make(chan struct{})}
	srv := start(t, h, path)
	if err := Answers(t.Context(), path); err != nil {
		t.Error(err)
	}
	t.Run("with every slot taken", func(t *testing.T) {
		var calls sync.WaitGroup
		for range maxCalls {
			calls.Go(func() {
				c := NewClient(path, time.Minute)
				defer c.Close()
				_, _ = get(context.Background(), c, "block")
			})
			<-h.entered
		}
		if err := Answers(t.Context(), path); err != nil {
			t.Error(err)
		}
		close(h.release)
		calls.Wait()
	})
	t.Run("not from a server that hangs", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		if err := Answers(ctx, mute(t, "unix", filepath.Join(t.TempDir(), "mute")).Addr().String()); err == nil {
			t.Error("it did not answer")
		}
	})
	if err := srv.stop(); err != nil {
		t.Fatal(err)
	}
	if err := Answers(t.Context(), path); err == nil {
		t.Error("it is gone")
	}
}

func TestAnswersGRPC(t *testing.T) {
	conn, stop := startGRPC(t, &hub{}, drainTime)
	if err := AnswersGRPC(t.Context(), conn.CanonicalTarget()[len("passthrough:///"):]); err != nil {
		t.Error(err)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if err := AnswersGRPC(t.Context(), conn.CanonicalTarget()[len("passthrough:///"):]); err == nil {
		t.Error("it is gone")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := AnswersGRPC(ctx, mute(t, "tcp", "127.0.0.1:0").Addr().String()); err == nil {
		t.Error("a server that hangs did not answer")
	}
}
