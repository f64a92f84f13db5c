package kbs

import (
	"bytes"
	"crypto"
	"encoding/json"
	"fmt"

	"github.com/gowebpki/jcs"
)

// ReportData returns the digest that evidence of *devices* carries: h over the
// canonical JSON (RFC 8785) of {nonce, tee-pubkey}.
// Source: guest-components kbs_protocol/src/client/rcar_client.rs at 8246e5e0.
func ReportData(h crypto.Hash, rd RuntimeData) ([]byte, error) {
	return canonicalDigest(h, rd)
}

// ReportDataWithDevices returns the digest that the *primary* evidence carries:
// h over the canonical JSON of {additional-evidence, nonce, tee-pubkey}.
// additional is TEEEvidence.Additional as it is sent, and takes part even when
// it is "".
func ReportDataWithDevices(h crypto.Hash, rd RuntimeData, additional string) ([]byte, error) {
	return canonicalDigest(h, struct {
		Additional string `json:"additional-evidence"`
		RuntimeData
	}{additional, rd})
}

// canonicalDigest hashes the canonical form of v, never encoding/json's own
// output, which escapes characters RFC 8785 leaves alone.
func canonicalDigest(h crypto.Hash, v any) ([]byte, error) {
	if !h.Available() {
		return nil, fmt.Errorf("hashing report data: hash %d is not linked in", h)
	}
	var b bytes.Buffer
	if err := json.NewEncoder(&b).Encode(v); err != nil {
		return nil, fmt.Errorf("encoding report data: %w", err)
	}
	text, err := jcs.Transform(b.Bytes())
	if err != nil {
		return nil, fmt.Errorf("canonicalising report data: %w", err)
	}
	d := h.New()
	d.Write(text)
	return d.Sum(nil), nil
}
