package snp

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/go-sev-guest/abi"
	"github.com/sealpod/sealpod/relyingparty/verifier"
)

// Config says what to trust and where to look. The zero value trusts AMD and
// asks nobody: guests must send their endorsement key.
type Config struct {
	// Roots are the roots of trust by product; nil means AMD's. With the roots
	// of a simulator here, AMD's are trusted only when they are here too.
	Roots map[string]Root
	// Sources find the VCEK of a guest that sent none, in order. The first that
	// implements Revocations is asked for revocation lists: what it has must be
	// current and what it cannot get refuses all evidence, but it may have none.
	// So nobody waits for AMD when an OfflineStore stands first.
	Sources []Source
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Verifier verifies the evidence of the TEE "snp".
type Verifier struct{ config Config }

var _ verifier.Verifier = (*Verifier)(nil)

// New returns a verifier for that configuration.
func New(c Config) (*Verifier, error) {
	if c.Roots == nil {
		roots, err := AMDRoots()
		if err != nil {
			return nil, err
		}
		c.Roots = roots
	}
	for product, r := range c.Roots {
		if product != Milan && product != Genoa && product != Turin {
			return nil, fmt.Errorf("root for %q: the products are %s, %s and %s", product, Milan, Genoa, Turin)
		}
		if r.ARK == nil {
			return nil, fmt.Errorf("root for %s has no ARK", product)
		}
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return &Verifier{c}, nil
}

// TEE implements verifier.Verifier.
func (*Verifier) TEE() string { return "snp" }

// Verify implements verifier.Verifier.
func (v *Verifier) Verify(ctx context.Context, raw json.RawMessage, want verifier.Expected) ([]verifier.Claims, error) {
	report, chain, err := parseEvidence(raw)
	if err != nil {
		return nil, err
	}
	r, err := v.VerifyReport(ctx, report, chain)
	if err != nil {
		return nil, err
	}
	if err := r.bound(want); err != nil {
		return nil, err
	}
	return []verifier.Claims{{Class: verifier.CPU, Values: r.Claims()}}, nil
}

// bound compares the report with what it must be bound to. A digest longer
// than HOST_DATA is cut to its 32 bytes, as the guest does.
func (r Report) bound(want verifier.Expected) error {
	if n := len(want.ReportData); n == 0 || n > len(r.ReportData) {
		return fmt.Errorf("%w: expected report data has %d bytes, SNP reports carry 1 to %d", verifier.ErrEvidence, n, len(r.ReportData))
	}
	if !bytes.Equal(padded(want.ReportData, len(r.ReportData)), r.ReportData) {
		return fmt.Errorf("%w: report_data is not that of this handshake: the report was made for another nonce or TEE key", verifier.ErrEvidence)
	}
	if want.InitData != nil && !bytes.Equal(padded(want.InitData, len(r.HostData)), r.HostData) {
		return fmt.Errorf("%w: HOST_DATA is not the digest of the init data sent along: the guest was started with other init data", verifier.ErrEvidence)
	}
	return nil
}

func padded(b []byte, size int) []byte {
	out := make([]byte, size)
	copy(out, b)
	return out
}

// VerifyReport verifies a report of ReportSize bytes in the layout of the
// hardware and the endorsement key it is signed with, which is in the chain or
// comes from the sources. The caller compares report data and host data.
// Evidence that does not hold is verifier.ErrEvidence; a missing key is
// ErrNoKey.
func (v *Verifier) VerifyReport(ctx context.Context, raw []byte, chain []Certificate) (Report, error) {
	r, err := parseReport(raw)
	if err != nil {
		return Report{}, err
	}
	key, err := v.endorsementKey(ctx, &r, raw, chain)
	if err != nil {
		return Report{}, err
	}
	root, ok := v.config.Roots[r.Product]
	if !ok {
		return Report{}, fmt.Errorf("%w: no root of trust is configured for %q", verifier.ErrEvidence, r.Product)
	}
	issuer, err := checkChain(key, r.signer, root, chain, v.config.Now())
	if err != nil {
		return Report{}, err
	}
	if err := checkSignature(raw, key); err != nil {
		return Report{}, err
	}
	if err := r.checkKey(key); err != nil {
		return Report{}, err
	}
	if r.vmpl != 0 {
		return Report{}, fmt.Errorf("%w: the report was asked for at VMPL %d, must be 0", verifier.ErrEvidence, r.vmpl)
	}
	// Last, so that only genuine reports make us ask somebody.
	if err := v.notRevoked(ctx, r, root, issuer, chain); err != nil {
		return Report{}, err
	}
	return r, nil
}

// endorsementKey returns the certificate the report should be signed with, not
// verified, and sets the product of reports that do not name it: the chain must
// then end at the root of that product.
func (v *Verifier) endorsementKey(ctx context.Context, r *Report, raw []byte, chain []Certificate) (*x509.Certificate, error) {
	kind := "VCEK"
	if r.signer == signedByVLEK {
		kind = "VLEK"
	}
	key, err := pick(chain, kind)
	if err != nil {
		return nil, err
	}
	if key == nil {
		if kind == "VLEK" {
			return nil, fmt.Errorf("%w: the report is signed by a VLEK, which the guest must send along", verifier.ErrEvidence)
		}
		if key, err = v.fetch(ctx, *r); err != nil {
			return nil, err
		}
	}
	if r.Product == "" {
		issuer := key.Issuer.CommonName
		r.Product = strings.TrimPrefix(strings.TrimPrefix(issuer, "SEV-"), "VLEK-")
		if isTurin(raw) != (r.Product == Turin) {
			return nil, fmt.Errorf("%w: the chip id is not that of a %q", verifier.ErrEvidence, r.Product)
		}
	}
	return key, nil
}

// fetch asks the sources in turn.
func (v *Verifier) fetch(ctx context.Context, r Report) (*x509.Certificate, error) {
	if onlyZeros(r.ChipID) {
		return nil, fmt.Errorf("%w: the host hides the id of the chip (MASK_CHIP_ID) and sent no VCEK", verifier.ErrEvidence)
	}
	products := []string{r.Product}
	if r.Product == "" {
		products = []string{Milan, Genoa} // those that had reports of version 2
	}
	failed := fmt.Errorf("%w: the guest sent none and no source is configured", ErrNoKey)
	for i, s := range v.config.Sources {
		if i == 0 {
			failed = nil
		}
		for _, product := range products {
			id := r.ChipID
			if product == Turin {
				id = id[:8]
			}
			key, err := fetchFrom(ctx, s, Chip{product, id, r.ReportedTCB})
			if err == nil {
				return key, nil
			}
			failed = errors.Join(failed, err)
		}
	}
	return nil, fmt.Errorf("fetching the VCEK: %w", failed)
}

// fetchFrom asks one source. A store may have the key of other firmware than the
// chip runs now; then the next source is to be asked.
func fetchFrom(ctx context.Context, s Source, chip Chip) (*x509.Certificate, error) {
	var der []byte
	var err error
	verifier.Wait(ctx, func() { der, err = s.VCEK(ctx, chip) })
	if err != nil {
		return nil, err
	}
	key, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	if tcb, err := keyTCB(key, chip.Product); err == nil && tcb != chip.TCB {
		return nil, fmt.Errorf("%w: one of other firmware, %+v", ErrNoKey, tcb)
	}
	return key, nil
}

// checkSignature verifies the signature of the report, ECDSA on P-384.
func checkSignature(raw []byte, key *x509.Certificate) error {
	if pub, ok := key.PublicKey.(*ecdsa.PublicKey); !ok || pub.Curve != elliptic.P384() {
		return fmt.Errorf("%w: the endorsement key is not on P-384", verifier.ErrEvidence)
	}
	signature, err := abi.ReportToSignatureDER(raw)
	if err != nil {
		return fmt.Errorf("%w: reading the signature of the report: %w", verifier.ErrEvidence, err)
	}
	if err := key.CheckSignature(x509.ECDSAWithSHA384, abi.SignedComponent(raw), signature); err != nil {
		return fmt.Errorf("%w: the report is not signed by its endorsement key: %w", verifier.ErrEvidence, err)
	}
	return nil
}

// checkKey compares what the endorsement key stands for with the report. A
// VLEK belongs to a cloud provider and names no chip.
func (r Report) checkKey(key *x509.Certificate) error {
	tcb, err := keyTCB(key, r.Product)
	if err != nil {
		return err
	}
	if tcb != r.ReportedTCB {
		return fmt.Errorf("%w: the report names firmware %+v, its endorsement key is for %+v", verifier.ErrEvidence, r.ReportedTCB, tcb)
	}
	if r.signer == signedByVLEK {
		return nil
	}
	size := len(r.ChipID)
	if r.Product == Turin {
		size = 8
	}
	chip, err := keyChip(key, size)
	if err != nil {
		return err
	}
	if !bytes.Equal(padded(chip, len(r.ChipID)), r.ChipID) && !onlyZeros(r.ChipID) {
		return fmt.Errorf("%w: the VCEK is of another chip than the report", verifier.ErrEvidence)
	}
	return nil
}
