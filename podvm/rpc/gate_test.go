package rpc

import (
	"context"
	"log/slog"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sealpod/sealpod/api/datahub"
)

func TestCallsBeyondTheQueueAreRefusedAtOnce(t *testing.T) {
	g := &gate{log: slog.New(slog.DiscardHandler), slots: make(chan struct{}, 1), idle: make(chan struct{})}
	for range 1 + maxWaiting {
		if err := g.enter(); err != nil {
			t.Fatal(err)
		}
	}
	_, err := g.intercept(t.Context(), nil, &ttrpc.UnaryServerInfo{}, func(context.Context, func(any) error) (any, error) {
		t.Error("the call runs")
		return nil, nil
	})
	if status.Code(err) != codes.ResourceExhausted {
		t.Fatalf("got %v", err)
	}
	g.leave()
	if err := g.enter(); err != nil {
		t.Fatalf("with room again: %v", err)
	}
}

// slowHub takes a while to clean up after a call that is cut off.
type slowHub struct {
	entered chan struct{}
	undone  atomic.Bool
}

func (h *slowHub) GetResource(ctx context.Context, _ *datahub.GetResourceRequest) (*datahub.GetResourceResponse, error) {
	close(h.entered)
	<-ctx.Done()
	time.Sleep(20 * time.Millisecond) // stands for work
	h.undone.Store(true)
	return nil, ctx.Err()
}

func TestServeWaitsForCallsItCutsOff(t *testing.T) {
	h := &slowHub{entered: make(chan struct{})}
	ctx, cancel := context.WithCancel(t.Context())
	path := filepath.Join(t.TempDir(), "s.sock")
	l, err := Listen(ctx, path)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() {
		served <- serve(ctx, l, slog.New(slog.DiscardHandler), time.Millisecond, func(s *ttrpc.Server) {
			datahub.RegisterGetResourceServiceService(s, h)
		})
	}()
	called, c := make(chan struct{}), client(t, path)
	go func() {
		defer close(called)
		_, _ = get(t.Context(), c, "x")
	}()
	<-h.entered
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
	if !h.undone.Load() {
		t.Error("Serve returned while a call it cut off was still running")
	}
	<-called
}

// A handler that waits to the end has the time to say why: its caller stops
// listening at its deadline.
func TestHandlersEndBeforeTheirCallersDo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(slog.New(slog.DiscardHandler))
		for left, early := range map[time.Duration]time.Duration{50 * time.Second: toAnswer, time.Second: time.Second / 10} {
			ctx, cancel := context.WithTimeout(t.Context(), left)
			_, err := g.run(ctx, "m", func(ctx context.Context) (any, error) {
				<-ctx.Done()
				return nil, status.Error(codes.Internal, "why")
			})
			if end, _ := ctx.Deadline(); time.Until(end) != early || ctx.Err() != nil || status.Convert(err).Message() != "why" {
				t.Errorf("%v, %s before the deadline of %s", err, time.Until(end), left)
			}
			cancel()
		}
	})
}
