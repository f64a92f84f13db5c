package eventlog

import (
	"context"
	"crypto"
	_ "crypto/sha256" // for crypto.Hash
	_ "crypto/sha512"
	"errors"
	"fmt"

	"github.com/sealpod/sealpod/podvm"
)

// What can be wrong with a register.
var (
	// ErrRegister says that the TEE has no such register.
	ErrRegister = errors.New("no such register")
	// ErrLocality says that the register is not the guest's to extend.
	ErrLocality = errors.New("a register that guests cannot extend")
)

// Registers are measurement registers of a TEE. An index is the number that
// stands in log entries.
type Registers interface {
	// Lock keeps evidence from being made and registers from being extended
	// by anyone else of this process until Unlock, so that registers and log
	// agree in evidence. It gives up with ctx.
	Lock(ctx context.Context) error
	Unlock()
	// Read returns the value of a register, under the lock.
	Read(index uint32) ([]byte, error)
	// Extend replaces the value of a register by H(value ‖ digest), under the
	// lock.
	Extend(index uint32, digest []byte) error
}

// Algorithm is a digest algorithm of registers.
type Algorithm struct {
	ID   uint16 // TPM_ALG_ID
	Size int    // of a digest, in bytes
	hash crypto.Hash
}

// Algorithms of the platforms, and SM3, which is only named.
// Source: TCG Algorithm Registry, TPM_ALG_ID.
var (
	sha256 = Algorithm{ID: 0x0b, Size: 32, hash: crypto.SHA256}
	sha384 = Algorithm{ID: 0x0c, Size: 48, hash: crypto.SHA384}
	sm3    = Algorithm{ID: 0x12, Size: 32}
)

// sum returns H(parts one after the other).
func (a Algorithm) sum(parts ...[]byte) []byte {
	h := a.hash.New()
	for _, p := range parts {
		h.Write(p)
	}
	return h.Sum(nil)
}

// Platform says how one kind of TEE measures events.
type Platform struct {
	Algorithm Algorithm
	// DefaultPCR is for events that name none. Upstream's is 17 everywhere, which
	// no guest can extend in a TPM.
	DefaultPCR uint64
	// register returns the register in which events for a PCR are measured.
	register func(pcr uint64) (uint32, error)
}

// PlatformOf returns the platform of a TEE by wire name, and whether events can
// be measured there at all.
// Source: guest-components attester/src/{tdx,az_snp_vtpm,az_tdx_vtpm} at
// 8246e5e0; tpm has no mapping there and gets the identity.
func PlatformOf(tee string) (Platform, bool) {
	p, ok := map[string]Platform{
		"tdx":         {sha384, 17, tdxRegister},
		"az-tdx-vtpm": {sha256, 23, pcrRegister},
		"az-snp-vtpm": {sha256, 23, pcrRegister},
		"tpm":         {sha256, 23, pcrRegister},
	}[tee]
	return p, ok
}

// Register returns the register for a PCR. Errors: ErrRegister, ErrLocality.
func (p Platform) Register(pcr uint64) (uint32, error) { return p.register(pcr) }

// tdxRegister maps a PCR to the measurement register of TDX: 1 to 4 are RTMR0
// to RTMR3. Source: guest-components attester/src/tdx at 8246e5e0; UEFI 2.10,
// confidential computing, has the same numbers for PCR 1 to 15.
func tdxRegister(pcr uint64) (uint32, error) {
	switch {
	case pcr == 1 || pcr == 7:
		return 1, nil
	case 2 <= pcr && pcr <= 6:
		return 2, nil
	case 8 <= pcr && pcr <= 15:
		return 3, nil
	}
	return 4, nil
}

// pcrRegister is the identity on the PCRs of a TPM. 17 to 22 are those of a
// dynamic root of trust: Linux speaks to the TPM at locality 0, which cannot
// extend them.
// Source: TCG PC Client Platform TPM Profile, PCR attributes.
func pcrRegister(pcr uint64) (uint32, error) {
	switch {
	case pcr > 23:
		return 0, podvm.Explain(fmt.Errorf("%w: PCR %d", ErrRegister, pcr), "a TPM has PCRs 0 to 23")
	case 17 <= pcr && pcr <= 22:
		why := fmt.Sprintf("PCR %d cannot be extended from inside a guest: name another, "+
			"or set init_pcr = 23 in [eventlog_config] for events that name none", pcr)
		return 0, podvm.Explain(fmt.Errorf("%w: %s", ErrLocality, why), why)
	}
	return uint32(pcr), nil
}
