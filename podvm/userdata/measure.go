package userdata

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sealpod/sealpod/attester/tpm"
	"github.com/sealpod/sealpod/podvm"
)

// ErrMeasure says that the init data could not be measured.
var ErrMeasure = errors.New("the init data is not in PCR 8")

// How long the TPM may take altogether, and how often it is looked for when the
// firmware has one that the kernel does not show yet.
const (
	tpmTimeout = time.Minute
	tpmRetry   = 200 * time.Millisecond
)

// tpmTable is there when the firmware has a TPM 2.0.
// Source: TCG ACPI specification 1.4, section 8.
const tpmTable = "/sys/firmware/acpi/tables/TPM2"

// pcrDigest is how many bytes of a digest PCR 8 is extended with, as upstream.
const pcrDigest = 32

// measure makes PCR 8 SHA-256(32 zeros ‖ the first 32 bytes of digest). A PCR
// that has this value is left alone, so any number of runs extend it once per
// boot. A machine without TPM is no error; one whose TPM refuses, or holds
// something else, is, since evidence would vouch for other files than are in use.
//
// Errors: ErrMeasure.
func (p *provisioner) measure(ctx context.Context, digest []byte) error {
	if p.NoTPM {
		p.Log.Warn("The init data is not measured into PCR 8, as asked for")
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, tpmTimeout)
	defer cancel()
	chip := tpm.New(p.Host)
	err := chip.BindInitData(ctx, digest[:pcrDigest])
	if errors.Is(err, tpm.ErrNoTPM) && exists(p.Host, tpmTable) {
		p.Log.Info("The firmware has a TPM, waiting for the kernel to show it")
	}
	for errors.Is(err, tpm.ErrNoTPM) && exists(p.Host, tpmTable) {
		if p.pause(ctx, tpmRetry) != nil {
			return fmt.Errorf("%w: the firmware has a TPM and the kernel shows no device of it (a missing driver?): %w", ErrMeasure, err)
		}
		err = chip.BindInitData(ctx, digest[:pcrDigest])
	}
	switch {
	case errors.Is(err, tpm.ErrNoTPM):
		p.Log.Info("This machine has no TPM that init data could be measured into")
		return nil
	case errors.Is(err, tpm.ErrInitData):
		return podvm.Explain(fmt.Errorf("%w: %w", ErrMeasure, err),
			"PCR 8 holds something other than this init data: other init data was measured since boot, or a boot loader such as GRUB uses PCR 8 (--no-tpm is for such images)")
	case err != nil:
		return fmt.Errorf("%w: %w", ErrMeasure, err)
	}
	p.Log.Info("The init data is measured into PCR 8")
	return nil
}
