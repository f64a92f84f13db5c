package azvtpm

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
)

// EvidenceVersion is the version of Evidence: report data is in the HCL report
// as well as in the TPM's quote.
const EvidenceVersion = 2

// Evidence is the wire form of evidence, one of TDQuote and VCEK with it.
// Source: guest-components attester/src/{az_snp_vtpm,az_tdx_vtpm} at 8246e5e0.
type Evidence struct {
	Version  int      `json:"version"` // EvidenceVersion
	TPMQuote TPMQuote `json:"tpm_quote"`
	// HCLReport is the whole content of the NV index; see ParseHCL.
	HCLReport URLBase64 `json:"hcl_report"`
	// TDQuote is a DCAP quote over the TD report in the HCL report.
	TDQuote URLBase64 `json:"td_quote,omitempty"`
	// VCEK is the certificate of the key that signed the SNP report in the HCL
	// report, DER.
	VCEK URLBase64 `json:"vcek,omitempty"`
}

// TPMQuote is a quote over all PCRs by the attestation key in the HCL report.
type TPMQuote struct {
	// Signature is RSASSA-PKCS1-v1_5 with SHA-256 over Message, 256 bytes for
	// the RSA-2048 key of Azure.
	Signature Hex `json:"signature"`
	// Message is a TPMS_ATTEST whose extraData is the report data.
	Message Hex `json:"message"`
	// PCRs are the 24 values, 32 bytes each, of the SHA-256 bank.
	PCRs []Hex `json:"pcrs"`
}

// Hex is bytes that are lower-case hexadecimal in JSON; either case is read.
type Hex []byte

// MarshalText implements encoding.TextMarshaler.
func (h Hex) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, h), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (h *Hex) UnmarshalText(text []byte) error {
	out, err := hex.DecodeString(string(text))
	if err != nil {
		return fmt.Errorf("decoding hexadecimal: %w", err)
	}
	*h = out
	return nil
}

// URLBase64 is bytes that are padded URL-safe base64 in JSON.
type URLBase64 []byte

// MarshalText implements encoding.TextMarshaler.
func (u URLBase64) MarshalText() ([]byte, error) {
	return base64.URLEncoding.AppendEncode(nil, u), nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (u *URLBase64) UnmarshalText(text []byte) error {
	out, err := base64.URLEncoding.Strict().DecodeString(string(text))
	if err != nil {
		return fmt.Errorf("decoding base64: %w", err)
	}
	*u = out
	return nil
}
