// Package tdx makes evidence of Intel TDX guests: a quote over report data, and
// the event log that explains the quote's measurement registers.
//
// Data path: attester.Detect chooses it; the attestation agent hands its
// evidence to callers and to the KBS, whose verifier checks the quote and
// replays the log over the four RTMRs. The registers it offers are what package
// eventlog extends.
//
// Trust: the quote comes back through the host and is checked by the verifier,
// not here. Registers are read from the TDX module through the kernel. Init
// data is compared with what the module says was set at launch.
//
// It verifies no quote, and talks to no quoting service but through the kernel.
//
// Sources: guest-components attestation-agent/attester/src/tdx at 8246e5e0;
// Linux drivers/virt/coco/tdx-guest and Documentation/ABI/testing/configfs-tsm-report,
// sysfs-devices-virtual-misc-tdx_guest at 6.16; Intel TDX module 1.5 ABI.
package tdx

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/google/go-configfs-tsm/configfs/configfsi"

	"github.com/sealpod/sealpod/attester/eventlog"
	"github.com/sealpod/sealpod/attester/internal/gate"
	"github.com/sealpod/sealpod/attester/internal/tsm"
	"github.com/sealpod/sealpod/podvm"
)

// TEE is the wire name.
const TEE = "tdx"

// provider is what the kernel's TDX driver calls itself in configfs.
const provider = "tdx_guest"

// What BindInitData tells apart.
var (
	// ErrInitData says that the init data is not what the guest was launched with.
	ErrInitData = errors.New("init data differs from MRCONFIGID")
	// ErrNoInitData says, beside ErrInitData, that the guest was launched with
	// none: MRCONFIGID is zero.
	ErrNoInitData = errors.New("MRCONFIGID is zero")
)

// Evidence is the wire form of TDX evidence.
type Evidence struct {
	// Quote is a DCAP quote as the platform made it; padded standard base64.
	Quote []byte `json:"quote"`
	// CCEventLog is the result of eventlog.Combined, null when there is none;
	// padded standard base64.
	CCEventLog []byte `json:"cc_eventlog"`
}

// Attester makes TDX evidence. It is safe for concurrent use; one quote is made
// at a time, which is all the kernel does. Make it with New.
type Attester struct {
	host    podvm.Host
	reports *tsm.Reporter
	gate    gate.Gate
	report0 func() ([]byte, error) // the TDREPORT over zeros
}

// New returns an attester of the guest below host.
func New(host podvm.Host) *Attester { return newAttester(host, tsm.HostClient(host)) }

func newAttester(host podvm.Host, client configfsi.Client) *Attester {
	return &Attester{
		host:    host,
		reports: tsm.New(client, provider),
		gate:    gate.New(),
		report0: func() ([]byte, error) { return getReport0(host.Path(device)) },
	}
}

// TEE returns the wire name.
func (a *Attester) TEE() string { return TEE }

// Evidence returns a quote over reportData, at most 64 bytes that are padded
// with zeros, and the event log. No event is recorded in between. ctx ends the
// wait for other callers; the kernel bounds the wait for a quote, to 30 s.
//
// Errors: tsm.ErrReportData for longer data and those of (*tsm.Reporter).Get;
// eventlog.ErrCCEL.
func (a *Attester) Evidence(ctx context.Context, reportData []byte) (json.RawMessage, error) {
	data, err := tsm.PadReportData(reportData)
	if err != nil {
		return nil, podvm.Explain(err, "TDX report data must not be longer than 64 bytes")
	}
	quote, log, err := a.collect(ctx, data)
	if err != nil {
		return nil, err
	}
	out, err := json.Marshal(Evidence{Quote: quote, CCEventLog: log})
	if err != nil {
		return nil, fmt.Errorf("encoding evidence: %w", err)
	}
	return out, nil
}

func (a *Attester) collect(ctx context.Context, data [tsm.ReportDataSize]byte) (quote, log []byte, err error) {
	if err := a.gate.Lock(ctx); err != nil {
		return nil, nil, err
	}
	defer a.gate.Unlock()
	report, err := a.reports.Get(ctx, data, false)
	switch {
	case errors.Is(err, tsm.ErrUnavailable):
		return nil, nil, podvm.Explain(err, "this kernel makes no TDX quotes: it takes Linux 6.7, its TDX guest driver and configfs")
	case err != nil:
		return nil, nil, podvm.Explain(err, "the platform gave no TDX quote")
	}
	if log, err = eventlog.Combined(a.host); err != nil {
		return nil, nil, err
	}
	return report.Out, log, nil
}

// BindInitData compares digest, cut or padded with zeros to 48 bytes, with
// MRCONFIGID, which the host set at launch. Errors: ErrInitData, with
// ErrNoInitData when the host set nothing.
func (a *Attester) BindInitData(_ context.Context, digest []byte) error {
	launched, err := a.mrConfigID()
	if err != nil {
		return err
	}
	want := make([]byte, registerSize)
	copy(want, digest)
	switch {
	case bytes.Equal(want, launched):
		return nil
	case bytes.Equal(launched, make([]byte, registerSize)):
		return podvm.Explain(fmt.Errorf("%w: init data %x: %w", ErrInitData, want, ErrNoInitData),
			"this guest was launched without init data (MRCONFIGID is zero)")
	default:
		return podvm.Explain(fmt.Errorf("%w: init data %x, launched with %x", ErrInitData, want, launched),
			"the init data is not the one this guest was launched with (MRCONFIGID)")
	}
}
