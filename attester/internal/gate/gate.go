// Package gate is a lock that gives up with its context.
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
	"fmt"

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
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("waiting for the device: %w", err)
	}
	select {
	case g <- struct{}{}:
		return nil
	case <-ctx.Done():
		return podvm.Explain(fmt.Errorf("waiting for the device: %w", ctx.Err()), "the device is busy with other calls")
	}
}

// Unlock opens the gate, which the caller must hold.
func (g Gate) Unlock() { <-g }
