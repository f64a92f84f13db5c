package rest

import (
	"context"
	"errors"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

func TestProbeNeedsNoFreeConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, probe := pipes{make(chan net.Conn), make(chan struct{})}, NewProbe()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		h, err := New(Config{Features: "all", CDHAddr: "unix:///nonexistent/c", AAAddr: "unix:///nonexistent/a"})
		if err != nil {
			t.Fatal(err)
		}
		go func() { done <- Serve(ctx, p, probe, h, h.log) }()
		for range maxConns + 1 {
			defer p.dial().Close()
		}
		synctest.Wait()
		start := time.Now()
		if err := probe.Answers(ctx); err != nil || time.Since(start) != 0 {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := probe.Answers(t.Context()); !errors.Is(err, net.ErrClosed) {
			t.Errorf("a server that has ended: %v", err)
		}
	})
}

func TestProbeThatNobodyServes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := NewProbe().Answers(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	})
}
