package azvtpm

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"

	wire "github.com/sealpod/sealpod/attester/azvtpm"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/relyingparty/verifier/internal/octets"
	"github.com/sealpod/sealpod/relyingparty/verifier/internal/tpmquote"
)

const (
	// maxEvidence bounds the JSON of one guest. Without an event log it has
	// 16 KiB, or 40 KiB in version 0.
	maxEvidence = 1 << 20
	// maxHCL bounds the HCL report; Azure's has 2600 bytes.
	maxHCL = 64 << 10
	// userDataVersion is the first version with report data in the claims of
	// the HCL report.
	userDataVersion = 2
)

// evidence is evidence of any version.
type evidence struct {
	version int
	quote   tpmquote.Evidence
	hcl     wire.HCL
	// hardware is the TD quote or the DER certificate of the VCEK.
	hardware []byte
	eventLog []byte // nil when there is none
}

// parseEvidence reads the evidence of one kind, in version 0, 1 or 2. Members
// not known are ignored.
func parseEvidence(raw json.RawMessage, kind wire.Kind) (*evidence, error) {
	if len(raw) > maxEvidence {
		return nil, fmt.Errorf("%d bytes, at most %d are read", len(raw), maxEvidence)
	}
	var head struct {
		Version *int `json:"version"`
	}
	if err := decode(raw, &head); err != nil {
		return nil, err
	}
	e, hcl := &evidence{}, []byte(nil)
	var err error
	switch {
	case head.Version == nil:
		hcl, err = e.parseNumbers(raw, kind)
	case *head.Version == 1 || *head.Version == 2:
		e.version = *head.Version
		hcl, err = e.parseText(raw, kind)
	default:
		err = fmt.Errorf("version %d, known are 1, 2 and the one without a number: update the relying party", *head.Version)
	}
	if err != nil {
		return nil, err
	}
	if len(e.hardware) == 0 {
		return nil, fmt.Errorf("no %s: this is not the evidence of %s", map[wire.Kind]string{wire.SNP: "vcek", wire.TDX: "td_quote"}[kind], kind.TEE())
	}
	if len(hcl) > maxHCL {
		return nil, fmt.Errorf("HCL report of %d bytes, at most %d are read", len(hcl), maxHCL)
	}
	if e.hcl, err = wire.ParseHCL(hcl); err != nil {
		return nil, err
	}
	if e.hcl.Kind != kind {
		return nil, fmt.Errorf("HCL report of type %d (%s), must be %d (%s)", e.hcl.Kind, e.hcl.Kind.TEE(), kind, kind.TEE())
	}
	return e, nil
}

// parseText reads versions 1 and 2 and returns the HCL report.
func (e *evidence) parseText(raw json.RawMessage, kind wire.Kind) (hcl []byte, err error) {
	var in struct {
		wire.Evidence
		EventLog *string `json:"cc_eventlog"`
	}
	if err := decode(raw, &in); err != nil {
		return nil, err
	}
	e.quote = tpmquote.Evidence{Message: in.TPMQuote.Message, Signature: in.TPMQuote.Signature}
	for _, p := range in.TPMQuote.PCRs {
		e.quote.PCRs = append(e.quote.PCRs, p)
	}
	e.hardware = in.VCEK
	if kind == wire.TDX {
		e.hardware = in.TDQuote
	}
	if in.EventLog != nil && e.version >= userDataVersion {
		if e.eventLog, err = base64.StdEncoding.Strict().DecodeString(*in.EventLog); err != nil {
			return nil, fmt.Errorf("decoding cc_eventlog: %w", err)
		}
	}
	return in.HCLReport, nil
}

// quoteNumbers is the quote of version 0.
type quoteNumbers struct {
	Message   octets.Array   `json:"message"`
	Signature octets.Array   `json:"signature"`
	PCRs      []octets.Array `json:"pcrs"`
}

// parseNumbers reads version 0, which has arrays of numbers and, for SNP, other
// names and the VCEK as PEM. It returns the HCL report.
func (e *evidence) parseNumbers(raw json.RawMessage, kind wire.Kind) (hcl []byte, err error) {
	var quote quoteNumbers
	if kind == wire.TDX {
		var in struct {
			Quote   quoteNumbers `json:"tpm_quote"`
			HCL     octets.Array `json:"hcl_report"`
			TDQuote octets.Array `json:"td_quote"`
		}
		err = decode(raw, &in)
		quote, hcl, e.hardware = in.Quote, in.HCL, in.TDQuote
	} else {
		var in struct {
			Quote  quoteNumbers `json:"quote"`
			Report octets.Array `json:"report"`
			VCEK   string       `json:"vcek"`
		}
		err = decode(raw, &in)
		quote, hcl = in.Quote, in.Report
		if block, _ := pem.Decode([]byte(in.VCEK)); block != nil {
			e.hardware = block.Bytes
		}
	}
	e.quote = tpmquote.Evidence{Message: quote.Message, Signature: quote.Signature}
	for _, p := range quote.PCRs {
		e.quote.PCRs = append(e.quote.PCRs, p)
	}
	return hcl, err
}

// decode reads one JSON value and nothing behind it.
func decode(raw json.RawMessage, to any) error {
	d := json.NewDecoder(bytes.NewReader(raw))
	if err := d.Decode(to); err != nil {
		return fmt.Errorf("not the JSON of such evidence: %s", podvm.Printable(err.Error(), 200))
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("data after the evidence")
	}
	return nil
}
