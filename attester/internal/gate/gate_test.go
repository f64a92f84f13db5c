package gate

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/sealpod/sealpod/podvm"
)

func TestGate(t *testing.T) {
	g := New()
	if err := g.Lock(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	waiting := make(chan error)
	go func() { waiting <- g.Lock(ctx) }()
	cancel()
	if err := <-waiting; !errors.Is(err, context.Canceled) || podvm.Cause(err) != "the device is busy with other calls" {
		t.Errorf("waiting with a context that ends: %v", err)
	}
	g.Unlock()
	if err := g.Lock(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("an open gate with a context that has ended: %v", err)
	}
	if err := g.Lock(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestGateExcludes(t *testing.T) {
	g, n := New(), 0
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if err := g.Lock(t.Context()); err != nil {
				t.Error(err)
				return
			}
			defer g.Unlock()
			n++ // the race detector watches
		})
	}
	wg.Wait()
	if n != 50 {
		t.Errorf("%d", n)
	}
}
