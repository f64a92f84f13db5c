package tpm

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	wire "github.com/sealpod/sealpod/attester/tpm"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/relyingparty/verifier/internal/tpmquote"
)

// maxEvidence bounds the JSON of one guest, which has 3 KiB.
const maxEvidence = 64 << 10

// evidence is the attestation key and the quote that it should have signed.
type evidence struct {
	key   *rsa.PublicKey
	der   []byte // the key, as x509 writes it
	quote tpmquote.Evidence
}

// parseEvidence reads the JSON of the attester. Members not known are ignored.
func parseEvidence(raw json.RawMessage) (*evidence, error) {
	if len(raw) > maxEvidence {
		return nil, fmt.Errorf("%d bytes, at most %d are read", len(raw), maxEvidence)
	}
	var in wire.Evidence
	d := json.NewDecoder(bytes.NewReader(raw))
	if err := d.Decode(&in); err != nil {
		return nil, fmt.Errorf("not the JSON of such evidence: %s", podvm.Printable(err.Error(), 200))
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("data after the evidence")
	}
	if len(in.AKPublic) == 0 {
		return nil, errors.New("no ak_public: this is not the evidence of a guest with a TPM")
	}
	e := &evidence{quote: tpmquote.Evidence{Message: in.TPMQuote.Message}}
	var err error
	if e.key, e.der, err = parseKey(in.AKPublic); err != nil {
		return nil, fmt.Errorf("ak_public: %w", err)
	}
	if e.quote.Signature, err = tpmquote.ParseSignature(in.TPMQuote.Signature); err != nil {
		return nil, fmt.Errorf("signature: %w", err)
	}
	for i, text := range in.TPMQuote.PCRs {
		p, err := hex.DecodeString(text)
		if err != nil {
			return nil, fmt.Errorf("decoding PCR %d: %w", i, err)
		}
		e.quote.PCRs = append(e.quote.PCRs, p)
	}
	return e, nil
}

// parseKey reads a SubjectPublicKeyInfo of an RSA key and returns it also in the
// one form of DER that claims have.
func parseKey(der []byte) (*rsa.PublicKey, []byte, error) {
	pub, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil, nil, fmt.Errorf("parsing it: %w", err)
	}
	key, ok := pub.(*rsa.PublicKey)
	if !ok {
		return nil, nil, errors.New("not an RSA key")
	}
	out, err := x509.MarshalPKIXPublicKey(key)
	return key, out, err
}
