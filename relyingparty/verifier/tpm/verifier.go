package tpm

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"

	"github.com/sealpod/sealpod/relyingparty/verifier"
	"github.com/sealpod/sealpod/relyingparty/verifier/internal/tpmquote"
)

// nonceSize is how long the attester makes report data before it goes into the
// quote, in bytes: longer ones are cut and shorter ones filled up with zeros.
// Source: guest-components attestation-agent/attester/src/tpm at 8246e5e0.
const nonceSize = 32

// Verifier verifies the evidence of the TEE "tpm".
type Verifier struct{}

var _ verifier.Verifier = (*Verifier)(nil)

// New returns a verifier. It trusts any attestation key; see the package.
func New() *Verifier { return &Verifier{} }

// TEE implements verifier.Verifier.
func (*Verifier) TEE() string { return "tpm" }

// Verify implements verifier.Verifier. The claims are ak_public, which is the
// attestation key as standard base64 of its DER SubjectPublicKeyInfo, and pcr00
// to pcr23.
func (*Verifier) Verify(_ context.Context, raw json.RawMessage, want verifier.Expected) ([]verifier.Claims, error) {
	e, err := parseEvidence(raw)
	if err != nil {
		return nil, fmt.Errorf("%w: reading TPM evidence: %w", verifier.ErrEvidence, err)
	}
	q, err := tpmquote.Verify(e.quote, e.key)
	if err != nil {
		return nil, err
	}
	if len(want.ReportData) == 0 {
		return nil, fmt.Errorf("%w: expected report data has 0 bytes", verifier.ErrEvidence)
	}
	var nonce [nonceSize]byte
	copy(nonce[:], want.ReportData)
	if err := q.CheckNonce(nonce[:]); err != nil {
		return nil, err
	}
	if err := q.CheckInitData(want.InitData); err != nil {
		return nil, err
	}
	claims := q.Claims()
	maps.Copy(claims, q.Bound())
	claims["ak_public"] = base64.StdEncoding.EncodeToString(e.der)
	return []verifier.Claims{{Class: verifier.CPU, Values: claims}}, nil
}
