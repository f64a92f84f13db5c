package azvtpm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/sealpod/sealpod/attester/eventlog"
	"github.com/sealpod/sealpod/attester/internal/vtpm"
	"github.com/sealpod/sealpod/podvm"
)

// Where Azure's virtual TPM keeps things.
// Source: az-cvm-vtpm 0.8.1 src/vtpm.
const (
	reportIndex     = 0x01400001 // NV: the HCL report
	reportDataIndex = 0x01400002 // NV: report data, for the paravisor
	keyHandle       = 0x81000003 // the attestation key
)

// ErrReportData says that report data is longer than 64 bytes.
var ErrReportData = errors.New("report data is longer than 64 bytes")

// Attester makes evidence of an Azure confidential VM. It is safe for
// concurrent use. Make it with New.
type Attester struct {
	kind     Kind
	tpm      *vtpm.TPM
	metadata *metadata
	patience time.Duration // with the paravisor
}

// New returns an attester of the guest below host, which Detect said is of
// kind.
func New(host podvm.Host, kind Kind) *Attester {
	return &Attester{kind: kind, tpm: vtpm.New(host), metadata: newMetadata(host), patience: patience}
}

// Detect returns the kind of Azure confidential VM that the guest below host
// is, 0 if it is none. It leaves out the first byte of the report: reading that
// makes the paravisor renew it, which keeps the first evidence waiting.
//
// Errors: those of package vtpm when there is a TPM that cannot be used; ErrHCL
// when there is a report of an unknown kind.
func Detect(ctx context.Context, host podvm.Host) (Kind, error) {
	var kind Kind
	err := vtpm.New(host).Do(ctx, func(c *vtpm.Conn) error {
		raw, err := c.ReadNVFrom(reportIndex, 1)
		if err != nil {
			return err
		}
		h, err := ParseHCL(append([]byte(hclMagic[:1]), raw...))
		kind = h.Kind
		return err
	})
	if errors.Is(err, vtpm.ErrNoTPM) || errors.Is(err, vtpm.ErrNoIndex) {
		return 0, nil
	}
	return kind, err
}

// TEE returns the wire name.
func (a *Attester) TEE() string { return a.kind.TEE() }

// Evidence returns evidence over reportData as it is, at most 64 bytes, or less
// if the TPM says so; the 48 of the KBS handshake fit. A call has the TPM alone
// from the writing of report data to the quote, so that calls never mix theirs
// and no event is recorded in between; what the metadata service adds belongs
// to the report it is asked about. ctx ends the waiting: for other callers, for
// the paravisor (10 s at most), and for the metadata service.
//
// Errors: ErrReportData, ErrStale, ErrHCL, ErrMetadata, those of package vtpm.
func (a *Attester) Evidence(ctx context.Context, reportData []byte) (json.RawMessage, error) {
	if len(reportData) > ReportDataSize {
		return nil, podvm.Explain(fmt.Errorf("%w: %d", ErrReportData, len(reportData)),
			"report data of an Azure VM must not be longer than 64 bytes")
	}
	e := Evidence{Version: EvidenceVersion}
	var h HCL
	err := a.tpm.Do(ctx, func(c *vtpm.Conn) (err error) {
		if e.HCLReport, h, err = a.report(ctx, c, reportData); err != nil {
			return err
		}
		e.TPMQuote, err = quote(c, reportData)
		return err
	})
	if err != nil {
		return nil, vtpm.Explain(err, "the virtual TPM gave no evidence")
	}
	if a.kind == TDX {
		e.TDQuote, err = a.metadata.tdQuote(ctx, h.Report)
	} else {
		e.VCEK, err = a.metadata.vcek(ctx)
	}
	if err != nil {
		return nil, err
	}
	out, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("encoding evidence: %w", err)
	}
	return out, nil
}

func quote(c *vtpm.Conn, reportData []byte) (TPMQuote, error) {
	q, err := c.Quote(keyHandle, reportData)
	if err != nil {
		return TPMQuote{}, err
	}
	out := TPMQuote{Signature: q.Signature, Message: q.Message}
	for _, pcr := range q.PCRs {
		out.PCRs = append(out.PCRs, pcr)
	}
	return out, nil
}

// BindInitData ties digest, which must be of 32 bytes, to PCR 8. Doing it again
// changes nothing until the next boot. Errors: vtpm.ErrInitData.
func (a *Attester) BindInitData(ctx context.Context, digest []byte) error {
	return a.tpm.BindInitData(ctx, digest)
}

// Registers returns the PCRs. The guest may not extend 17 to 22.
func (a *Attester) Registers() eventlog.Registers { return a.tpm.Registers() }
