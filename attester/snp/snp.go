// Package snp makes evidence of AMD SEV-SNP guests: the attestation report,
// taken apart into JSON, and the certificates the host has for it.
//
// Data path: attester.Detect chooses it; the attestation agent hands its
// evidence to callers and to the KBS, whose verifier puts the report together
// again and checks its signature.
//
// Trust: the report is encrypted between the guest's kernel and the AMD secure
// processor, so it is what that processor said; the verifier checks all the
// same. The certificate table comes from the host and is hostile: it is parsed
// within bounds and passed on, never believed.
//
// It verifies no report and fetches no certificate.
//
// Sources: guest-components attestation-agent/attester/src/snp at 8246e5e0;
// virtee/sev src/firmware/{guest,host}/types/snp.rs at v6.3.0, whose types the
// JSON is; AMD 56860 (SEV-SNP firmware ABI) and 56421 (GHCB); Linux
// Documentation/virt/coco/sev-guest.rst.
package snp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/google/go-configfs-tsm/configfs/configfsi"

	"github.com/sealpod/sealpod/attester/internal/gate"
	"github.com/sealpod/sealpod/attester/internal/tsm"
	"github.com/sealpod/sealpod/podvm"
)

// TEE is the wire name.
const TEE = "snp"

// provider is what the kernel's SNP driver calls itself in configfs.
const provider = "sev_guest"

// What BindInitData tells apart.
var (
	// ErrInitData says that the init data is not what the guest was launched with.
	ErrInitData = errors.New("init data differs from HOST_DATA")
	// ErrNoInitData says, beside ErrInitData, that the guest was launched with
	// none.
	ErrNoInitData = errors.New("HOST_DATA is zero")
)

// Evidence is the wire form of SNP evidence.
type Evidence struct {
	Report Report `json:"attestation_report"`
	// CertChain is nil unless it has a VCEK or VLEK: the verifier fetches the
	// certificates when there are none, but fails on a chain without either.
	CertChain []Certificate `json:"cert_chain"`
}

// Attester makes SNP evidence. It is safe for concurrent use; one report is
// made at a time, which is all the kernel does. Make it with New.
type Attester struct {
	reports *tsm.Reporter
	gate    gate.Gate
	open    func() (device, error)
}

// New returns an attester of the guest below host.
func New(host podvm.Host) *Attester {
	return newAttester(tsm.HostClient(host), func() (device, error) { return openDevice(host.Path(devicePath)) })
}

func newAttester(client configfsi.Client, open func() (device, error)) *Attester {
	return &Attester{reports: tsm.New(client, provider), gate: gate.New(), open: open}
}

// TEE returns the wire name.
func (a *Attester) TEE() string { return TEE }

// Evidence returns a report over reportData, at most 64 bytes that are padded
// with zeros, and the host's certificates. ctx ends the wait for other callers;
// the kernel bounds the wait for a report.
//
// Errors: tsm.ErrReportData for longer data, ErrReport, ErrCertTable, and those
// of the kernel's interfaces.
func (a *Attester) Evidence(ctx context.Context, reportData []byte) (json.RawMessage, error) {
	data, err := tsm.PadReportData(reportData)
	if err != nil {
		return nil, podvm.Explain(err, "SNP report data must not be longer than 64 bytes")
	}
	raw, table, err := a.collect(ctx, data)
	if err != nil {
		return nil, err
	}
	report, err := ParseReport(raw)
	if err != nil {
		return nil, podvm.Explain(err, "the SNP attestation report is of an unknown kind")
	}
	chain, err := parseCertTable(table)
	if err != nil {
		return nil, podvm.Explain(err, "the host's certificate table for SNP is malformed")
	}
	out, err := json.Marshal(Evidence{Report: report, CertChain: chain})
	if err != nil {
		return nil, fmt.Errorf("encoding evidence: %w", err)
	}
	return out, nil
}

// BindInitData compares digest, cut or padded with zeros to 32 bytes, with
// HOST_DATA, which the host set at launch. Errors: ErrInitData, with
// ErrNoInitData when the host set nothing.
func (a *Attester) BindInitData(ctx context.Context, digest []byte) error {
	raw, _, err := a.collect(ctx, [tsm.ReportDataSize]byte{})
	if err != nil {
		return err
	}
	if len(raw) != ReportSize {
		return fmt.Errorf("%w: %d bytes", ErrReport, len(raw))
	}
	launched, want := raw[0xc0:0xe0], make([]byte, 32)
	copy(want, digest)
	switch {
	case bytes.Equal(want, launched):
		return nil
	case bytes.Equal(launched, make([]byte, len(want))):
		return podvm.Explain(fmt.Errorf("%w: init data %x: %w", ErrInitData, want, ErrNoInitData),
			"this guest was launched without init data (HOST_DATA is zero)")
	default:
		return podvm.Explain(fmt.Errorf("%w: init data %x, launched with %x", ErrInitData, want, launched),
			"the init data is not the one this guest was launched with (HOST_DATA)")
	}
}

// collect gets a report and the host's certificate table, which may be empty,
// from configfs or, on kernels without it, from the device.
func (a *Attester) collect(ctx context.Context, data [tsm.ReportDataSize]byte) (report, table []byte, err error) {
	if err := a.gate.Lock(ctx); err != nil {
		return nil, nil, err
	}
	defer a.gate.Unlock()
	r, err := a.reports.Get(ctx, data, true)
	if err == nil {
		return r.Out, r.Aux, nil
	}
	if errors.Is(err, tsm.ErrUnavailable) || errors.Is(err, tsm.ErrProvider) {
		var derr error
		if report, table, derr = a.fromDevice(data); derr == nil {
			return report, table, nil
		}
		err = errors.Join(err, derr)
	}
	return nil, nil, podvm.Explain(err, "the platform gave no SNP attestation report")
}
