// Package sample makes evidence that proves nothing, for machines without a
// TEE: development, demonstrations and tests.
//
// Data path: attester.Detect falls back to it, at WARN, when no TEE is found
// and the allow-list permits it. A verifier accepts it only if its policy says
// so.
//
// Trust: none is deserved; anyone can make this evidence.
//
// Source: guest-components attestation-agent/attester/src/sample at 8246e5e0.
package sample

import (
	"context"
	"encoding/json"
	"fmt"
)

// Wire names of the two sample TEEs.
const (
	TEE       = "sample"       // a primary TEE
	DeviceTEE = "sampledevice" // a device
)

// Evidence is the wire form of sample evidence.
type Evidence struct {
	SVN string `json:"svn"` // "1" for sample, "2" for sampledevice
	// ReportData is what the evidence was asked for, unchanged and not padded;
	// padded standard base64 on the wire.
	ReportData []byte `json:"report_data"`
}

// Attester makes sample evidence. The zero value is not usable.
type Attester struct{ tee, svn string }

// New returns the primary attester.
func New() Attester { return Attester{TEE, "1"} }

// NewDevice returns the device attester.
func NewDevice() Attester { return Attester{DeviceTEE, "2"} }

// TEE returns the wire name.
func (a Attester) TEE() string { return a.tee }

// Evidence returns sample evidence over reportData, which may have any length.
func (a Attester) Evidence(_ context.Context, reportData []byte) (json.RawMessage, error) {
	if reportData == nil {
		reportData = []byte{} // encodes as "", not null
	}
	out, err := json.Marshal(Evidence{SVN: a.svn, ReportData: reportData})
	if err != nil {
		return nil, fmt.Errorf("encoding %s evidence: %w", a.tee, err)
	}
	return out, nil
}
