package azvtpm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"github.com/sealpod/sealpod/attester/internal/gate"
	"github.com/sealpod/sealpod/attester/internal/vtpm"
	"github.com/sealpod/sealpod/podvm"
)

// How the paravisor is waited for. It renews its report when the index is read
// from the start, but not within 2 s of the last time; so the first reading is
// often fresh already, and 2 s after it one is for sure.
// Source: openvmm vm/devices/tpm/tpm_device at 1488a37b, REPORT_TIMER_PERIOD;
// upstream sleeps for 3 s.
const (
	patience  = 10 * time.Second
	firstPoll = 20 * time.Millisecond
	lastPoll  = 320 * time.Millisecond
)

// ErrStale says that the paravisor did not renew its report.
var ErrStale = errors.New("the HCL report is not about this report data")

// report gives reportData to the paravisor and returns the HCL report that has
// it, raw and parsed. No report data means any report. Errors: ErrStale,
// ErrHCL.
func (a *Attester) report(ctx context.Context, c *vtpm.Conn, reportData []byte) ([]byte, HCL, error) {
	if len(reportData) > 0 {
		if err := c.WriteNV(reportDataIndex, reportData); err != nil {
			return nil, HCL{}, err
		}
	}
	enough, cancel := context.WithTimeout(ctx, a.patience)
	defer cancel()
	for wait := firstPoll; ; wait = min(2*wait, lastPoll) {
		raw, err := c.ReadNV(reportIndex)
		if err != nil {
			return nil, HCL{}, err
		}
		h, err := ParseHCL(raw)
		if err == nil && h.Kind != a.kind {
			return nil, HCL{}, fmt.Errorf("%w: report type %d, was %d", ErrHCL, h.Kind, a.kind)
		}
		if err == nil {
			err = fresh(h, reportData)
		}
		if err == nil {
			return raw, h, nil
		}
		// A report of an older paravisor may be read while it is written, so
		// even a malformed one is read again.
		if gate.Wait(enough, wait) == nil {
			continue
		}
		if ctx.Err() != nil {
			return nil, HCL{}, fmt.Errorf("waiting for the paravisor: %w: %w", ctx.Err(), err)
		}
		return nil, HCL{}, podvm.Explain(fmt.Errorf("waiting %s for the paravisor: %w", a.patience, err),
			fmt.Sprintf("the paravisor did not put the report data into its report within %s", a.patience))
	}
}

// fresh checks that the claims are those the hardware signed, and about
// reportData, which the paravisor pads with zeros.
func fresh(h HCL, reportData []byte) error {
	sum := sha256.Sum256(h.Claims)
	if !bytes.Equal(sum[:], h.signedHash()) {
		return fmt.Errorf("%w: its claims are not those in the hardware report", ErrHCL)
	}
	if len(reportData) == 0 {
		return nil
	}
	var want, got [ReportDataSize]byte
	copy(want[:], reportData)
	copy(got[:], h.UserData)
	if h.UserData == nil || got != want {
		return fmt.Errorf("%w: it has %x", ErrStale, h.UserData)
	}
	return nil
}

// signedHash returns the hash of the claims in the hardware report: the first
// 32 bytes of its report data.
// Source: AMD 56860, ATTESTATION_REPORT; Intel TDX module 1.5 ABI, REPORTMACSTRUCT.
func (h HCL) signedHash() []byte {
	at := 0x50
	if h.Kind == TDX {
		at = 128
	}
	return h.Report[at : at+sha256.Size]
}
