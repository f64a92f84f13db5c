// Package gate is locks that give up with their context: one within a process,
// and one between processes that share a device or a file.
//
// Data path: an attester holds it while a device makes evidence, so that the
// wait for a slow device ends with the caller's deadline, and so that nothing
// changes a register or a log in between. The attestation agent has one before
// it for callers who ask for evidence.
//
// Trust: it sees no outside bytes.
package gate

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm"
)

// Gate is a lock. Who waits for it gets it in the order of coming. Make it with
// New, or, for n holders at once, as a channel with room for n.
type Gate chan struct{}

// New returns an open gate.
func New() Gate { return make(Gate, 1) }

// Lock waits for the gate, but not longer than ctx. A ctx that has ended never
// gets it.
func (g Gate) Lock(ctx context.Context) error {
	if ctx.Err() == nil {
		select {
		case g <- struct{}{}:
			return nil
		case <-ctx.Done():
		}
	}
	return podvm.Explain(fmt.Errorf("waiting for the device: %w", ctx.Err()), "the device is busy with other calls")
}

// Unlock opens the gate, which the caller must hold.
func (g Gate) Unlock() { <-g }

// LockFile waits until no other process has f locked and locks it until it is
// closed, but waits no longer than ctx. Who waits is served in no order: it
// asks again every 20 ms.
func LockFile(ctx context.Context, f *os.File) error {
	for wait := time.Millisecond; ; wait = min(2*wait, 20*time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("locking %s: %w", f.Name(), err)
		}
		if err := Wait(ctx, wait); err != nil {
			return podvm.Explain(fmt.Errorf("locking %s: %w", f.Name(), err), "the device or the event log is in use by another process")
		}
	}
}

// Wait returns after d, or with ctx's error when that ends first.
func Wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
