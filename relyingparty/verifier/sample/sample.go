// Package sample verifies the evidence of guests without a TEE. Nothing
// vouches for such evidence: whoever can reach the relying party can make it.
// It serves to try the whole data path on any machine.
//
// Trust: only the binding to the handshake is checked. The claims say "sample"
// loudly; the built-in resource policy opens nothing to them.
//
// Source: trustee deps/verifier/src/sample and sample_device at 78962cd4.
package sample

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/sealpod/sealpod/relyingparty/verifier"
)

// evidence is {"svn":"1","report_data":<padded standard base64>}. Members not
// known are ignored.
type evidence struct {
	SVN        *string `json:"svn"`
	ReportData *string `json:"report_data"`
}

// CPU verifies the evidence of the TEE "sample".
type CPU struct{}

// TEE implements verifier.Verifier.
func (CPU) TEE() string { return "sample" }

// Verify implements verifier.Verifier. The claims are those of an imaginary
// machine; init data is repeated, not verified.
func (CPU) Verify(_ context.Context, raw json.RawMessage, want verifier.Expected) ([]verifier.Claims, error) {
	e, err := check(raw, want)
	if err != nil {
		return nil, err
	}
	values := map[string]any{
		"svn":              *e.SVN,
		"report_data":      *e.ReportData,
		"launch_digest":    "abcde",
		"platform_version": map[string]any{"major": 1, "minor": 4},
		"debug":            false,
	}
	if want.InitData != nil {
		values["init_data"] = base64.StdEncoding.EncodeToString(want.InitData)
	}
	return []verifier.Claims{{Class: verifier.CPU, Values: values}}, nil
}

// Device verifies the evidence of the device "sampledevice".
type Device struct{}

// TEE implements verifier.Verifier.
func (Device) TEE() string { return "sampledevice" }

// Verify implements verifier.Verifier.
func (Device) Verify(_ context.Context, raw json.RawMessage, want verifier.Expected) ([]verifier.Claims, error) {
	e, err := check(raw, want)
	if err != nil {
		return nil, err
	}
	values := map[string]any{"svn": *e.SVN, "report_data": *e.ReportData}
	return []verifier.Claims{{Class: verifier.GPU, Values: values}}, nil
}

// check reads the evidence and compares its report data, which has no padding.
func check(raw json.RawMessage, want verifier.Expected) (evidence, error) {
	var e evidence
	d := json.NewDecoder(bytes.NewReader(raw))
	if err := d.Decode(&e); err != nil {
		return e, fmt.Errorf("%w: reading sample evidence: %w", verifier.ErrEvidence, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return e, fmt.Errorf("%w: data after sample evidence", verifier.ErrEvidence)
	}
	if e.SVN == nil || e.ReportData == nil {
		return e, fmt.Errorf("%w: sample evidence without svn or report_data", verifier.ErrEvidence)
	}
	got, err := base64.StdEncoding.Strict().DecodeString(*e.ReportData)
	if err != nil {
		return e, fmt.Errorf("%w: report_data: %w", verifier.ErrEvidence, err)
	}
	if len(want.ReportData) == 0 || !bytes.Equal(got, want.ReportData) {
		return e, fmt.Errorf("%w: report_data is not that of this handshake: it must cover the nonce, the TEE key and the additional evidence", verifier.ErrEvidence)
	}
	return e, nil
}
