package tpm

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"

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
	var in struct {
		Key   string `json:"ak_public"`
		Quote struct {
			Signature string   `json:"signature"`
			Message   string   `json:"message"`
			PCRs      []string `json:"pcrs"`
		} `json:"tpm_quote"`
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	if err := d.Decode(&in); err != nil {
		return nil, fmt.Errorf("not the JSON of such evidence: %s", podvm.Printable(err.Error(), 200))
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("data after the evidence")
	}
	if in.Key == "" {
		return nil, errors.New("no ak_public: this is not the evidence of a guest with a TPM")
	}
	der, err := base64.StdEncoding.Strict().DecodeString(in.Key)
	if err != nil {
		return nil, fmt.Errorf("decoding ak_public: %w", err)
	}
	e := &evidence{}
	if e.key, e.der, err = parseKey(der); err != nil {
		return nil, fmt.Errorf("ak_public: %w", err)
	}
	signature, err := base64.StdEncoding.Strict().DecodeString(in.Quote.Signature)
	if err != nil {
		return nil, fmt.Errorf("decoding signature: %w", err)
	}
	if e.quote.Signature, err = tpmquote.ParseSignature(signature); err != nil {
		return nil, fmt.Errorf("signature: %w", err)
	}
	if e.quote.Message, err = base64.StdEncoding.Strict().DecodeString(in.Quote.Message); err != nil {
		return nil, fmt.Errorf("decoding message: %w", err)
	}
	for i, text := range in.Quote.PCRs {
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
