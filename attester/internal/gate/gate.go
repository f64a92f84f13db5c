// Package gate is a lock that gives up with its context.
//
// Data path: an attester holds it while a device makes evidence, so that the
// wait for a slow device ends with the caller's deadline, and so that nothing
// changes a register or a log in between.
//
// Trust: it sees no outside bytes.
package gate

import (
	"context"
	"fmt"
)

// Gate is a lock. Make it with New.
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
		return fmt.Errorf("waiting for the device: %w", ctx.Err())
	}
}

// Unlock opens the gate, which the caller must hold.
func (g Gate) Unlock() { <-g }
