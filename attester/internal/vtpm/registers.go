package vtpm

import (
	"context"
	"fmt"

	"github.com/sealpod/sealpod/attester/eventlog"
)

// Registers returns the PCRs as registers for an event log. Their lock is the
// TPM's, so no event falls into the making of a quote.
func (t *TPM) Registers() eventlog.Registers { return &registers{tpm: t} }

// registers are the PCRs; conn is there under the lock only.
type registers struct {
	tpm  *TPM
	conn *Conn
}

func (r *registers) Lock(ctx context.Context) error {
	c, err := r.tpm.lock(ctx)
	if err != nil {
		return err
	}
	// An event that has begun is finished, whatever its caller does: it is a few
	// commands, each of which is bounded.
	c.ctx = context.WithoutCancel(ctx)
	r.conn = c
	return nil
}

func (r *registers) Unlock() {
	c := r.conn
	r.conn = nil
	_ = r.tpm.unlock(c) // whatever was written was answered
}

func (r *registers) Read(index uint32) ([]byte, error) {
	if err := checkRegister(index); err != nil {
		return nil, err
	}
	return r.conn.ReadPCR(index)
}

func (r *registers) Extend(index uint32, digest []byte) error {
	if err := checkRegister(index); err != nil {
		return err
	}
	return r.conn.Extend(index, digest)
}

func checkRegister(index uint32) error {
	if index >= PCRCount {
		return fmt.Errorf("%w: PCR %d", eventlog.ErrRegister, index)
	}
	return nil
}
