package vtpm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/sealpod/sealpod/podvm"
)

// InitDataPCR is the PCR that holds init data.
// Source: guest-components attester/src/{az_snp_vtpm,tpm} at 8246e5e0.
const InitDataPCR = 8

// ErrInitData says that init data cannot be tied to PCR 8: its digest is not of
// 32 bytes, or the PCR holds something else.
var ErrInitData = errors.New("init data cannot be bound to PCR 8")

// ErrDigestSize says, beside ErrInitData, that the digest is not of 32 bytes.
var ErrDigestSize = errors.New("not a SHA-256 digest")

// BindInitData ties digest to PCR 8, as (*Conn).BindInitData does, and explains
// what went wrong. Errors: ErrInitData and those of Do.
func (t *TPM) BindInitData(ctx context.Context, digest []byte) error {
	err := t.Do(ctx, func(c *Conn) error { return c.BindInitData(digest) })
	return Explain(err, "init data could not be written to the TPM")
}

// BindInitData makes PCR 8 SHA-256(32 zeros ‖ digest), which is what a verifier
// expects. The PCR itself tells what is to be done, so any number of starts
// between two boots bind once, whoever bound first and wherever one stopped.
//
// Errors: ErrInitData, beside it ErrDigestSize.
func (c *Conn) BindInitData(digest []byte) error {
	if len(digest) != PCRSize {
		return podvm.Explain(fmt.Errorf("%w: a digest of %d bytes: %w", ErrInitData, len(digest), ErrDigestSize),
			"init data of a machine with a vTPM must use the algorithm sha256")
	}
	unset := make([]byte, PCRSize)
	want := sha256.Sum256(append(unset, digest...))
	now, err := c.ReadPCR(InitDataPCR)
	if err != nil {
		return fmt.Errorf("binding init data: %w", err)
	}
	if bytes.Equal(now, unset) {
		if err := c.Extend(InitDataPCR, digest); err != nil {
			return fmt.Errorf("binding init data: %w", err)
		}
		if now, err = c.ReadPCR(InitDataPCR); err != nil {
			return fmt.Errorf("binding init data: %w", err)
		}
	}
	if !bytes.Equal(now, want[:]) {
		return podvm.Explain(fmt.Errorf("%w: it holds %x, want %x", ErrInitData, now, want),
			"PCR 8 holds something other than this init data; other init data was bound, or something else measured there, since boot")
	}
	return nil
}
