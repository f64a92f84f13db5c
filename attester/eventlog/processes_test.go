package eventlog

import (
	"context"
	"errors"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/sealpod/sealpod/attester/internal/gate"
	"github.com/sealpod/sealpod/podvm"
)

// process is registers as one of several processes has them: its lock keeps the
// others from nothing.
type process struct {
	gate.Gate
	bank *bank
	mu   *sync.Mutex
}

func (p process) Read(i uint32) ([]byte, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.bank.Read(i)
}

func (p process) Extend(i uint32, digest []byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.bank.Extend(i, digest)
}

// Two agents, one for ttrpc and one for gRPC, or one that is started while the
// last calls of another end, have one log. Neither takes the event in progress
// of the other for one that was interrupted.
func TestTwoProcessesShareTheLog(t *testing.T) {
	host, b, mu := podvm.Host{Root: t.TempDir()}, newBank(sha384), new(sync.Mutex)
	var agents sync.WaitGroup
	for range 3 {
		agents.Go(func() {
			o := options(host, b)
			o.Registers = process{gate.New(), b, mu}
			l, err := Open(t.Context(), o)
			if err != nil {
				t.Error(err)
				return
			}
			if err := l.BindInitData(t.Context(), someDigest); err != nil {
				t.Error(err)
				return
			}
			for range 10 {
				if err := l.Extend(t.Context(), "d", "o", "c", nil); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	agents.Wait()
	if n := agrees(t, host, b); n != 31 {
		t.Errorf("%d events", n)
	}
}

func TestALogInUseIsWaitedForWithinTheContext(t *testing.T) {
	host, b := podvm.Host{Root: t.TempDir()}, newBank(sha384)
	l, err := Open(t.Context(), options(host, b))
	if err != nil {
		t.Fatal(err)
	}
	other, err := os.Open(host.Path(Path))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := gate.LockFile(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := l.Extend(ctx, "d", "o", "c", nil); !errors.Is(err, context.DeadlineExceeded) || podvm.Cause(err) == "" {
		t.Errorf("got %v", err)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	if err := l.Extend(t.Context(), "d", "o", "c", nil); err != nil || agrees(t, host, b) != 1 {
		t.Error(err)
	}
}
