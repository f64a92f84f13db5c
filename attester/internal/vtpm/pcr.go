package vtpm

import (
	"bytes"
	"errors"
	"fmt"
	"math/bits"

	"github.com/google/go-tpm/tpm2"

	"github.com/sealpod/sealpod/podvm"
)

// PCRCount is how many PCRs there are; PCRSize the length of one in bytes, in
// the SHA-256 bank, which is the only one used.
const (
	PCRCount = 24
	PCRSize  = 32
)

// ErrPCR says that a PCR or a digest for one is none.
var ErrPCR = errors.New("no such PCR, or a digest that is not 32 bytes")

// pcrBatch is how many PCRs one command reads at most.
// Source: TPM 2.0 library part 2, TPML_DIGEST.
const pcrBatch = 8

// allPCRs has a bit for each PCR.
const allPCRs = 1<<PCRCount - 1

func selection(mask uint32) tpm2.TPMLPCRSelection {
	return tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{
		Hash: tpm2.TPMAlgSHA256, PCRSelect: []byte{byte(mask), byte(mask >> 8), byte(mask >> 16)},
	}}}
}

// selected returns the PCRs of the SHA-256 bank that s selects, and whether it
// selects nothing else.
func selected(s tpm2.TPMLPCRSelection) (mask uint32, only bool) {
	if len(s.PCRSelections) != 1 || s.PCRSelections[0].Hash != tpm2.TPMAlgSHA256 || len(s.PCRSelections[0].PCRSelect) != 3 {
		return 0, false
	}
	b := s.PCRSelections[0].PCRSelect
	return uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16, true
}

// ReadPCR returns the value of a PCR, 32 bytes. Errors: ErrPCR, ErrAnswer.
func (c *Conn) ReadPCR(pcr uint32) ([]byte, error) {
	if pcr >= PCRCount {
		return nil, fmt.Errorf("reading PCR %d: %w", pcr, ErrPCR)
	}
	var values [PCRCount][]byte
	if _, err := c.readPCRs(1<<pcr, &values); err != nil {
		return nil, fmt.Errorf("reading PCR %d: %w", pcr, err)
	}
	return values[pcr], nil
}

// readPCRs reads some of the PCRs in mask into values, at least one, and
// returns which.
func (c *Conn) readPCRs(mask uint32, values *[PCRCount][]byte) (uint32, error) {
	ask := uint32(0)
	for rest := mask; rest != 0 && bits.OnesCount32(ask) < pcrBatch; rest &= rest - 1 {
		ask |= rest & -rest
	}
	out, err := tpm2.PCRRead{PCRSelectionIn: selection(ask)}.Execute(c)
	if err != nil {
		return 0, err
	}
	got, ok := selected(out.PCRSelectionOut)
	if !ok || got == 0 || got&^ask != 0 || bits.OnesCount32(got) != len(out.PCRValues.Digests) {
		return 0, fmt.Errorf("%w: %d values for %d PCRs of the SHA-256 bank", ErrAnswer, len(out.PCRValues.Digests), bits.OnesCount32(ask))
	}
	rest := got
	for _, d := range out.PCRValues.Digests {
		if len(d.Buffer) != PCRSize {
			return 0, fmt.Errorf("%w: a PCR of %d bytes", ErrAnswer, len(d.Buffer))
		}
		values[bits.TrailingZeros32(rest)] = bytes.Clone(d.Buffer)
		rest &= rest - 1
	}
	return got, nil
}

// readAllPCRs returns all values, which may be of several moments.
func (c *Conn) readAllPCRs() (values [PCRCount][]byte, err error) {
	for todo := uint32(allPCRs); todo != 0; {
		got, err := c.readPCRs(todo, &values)
		if err != nil {
			return values, fmt.Errorf("reading PCRs: %w", err)
		}
		todo &^= got
	}
	return values, nil
}

// Extend replaces the value of a PCR by SHA-256(value ‖ digest). digest is 32
// bytes. Errors: ErrPCR.
func (c *Conn) Extend(pcr uint32, digest []byte) error {
	if pcr >= PCRCount || len(digest) != PCRSize {
		return fmt.Errorf("extending PCR %d with %d bytes: %w", pcr, len(digest), ErrPCR)
	}
	_, err := tpm2.PCRExtend{
		PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(pcr), Auth: tpm2.PasswordAuth(nil)},
		Digests:   tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: digest}}},
	}.Execute(c)
	if err != nil {
		err = fmt.Errorf("extending PCR %d: %w", pcr, err)
	}
	if errors.Is(err, tpm2.TPMRCLocality) {
		return podvm.Explain(err, fmt.Sprintf("this guest may not extend PCR %d; choose another register, as PCR 23", pcr))
	}
	return err
}
