package azure

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// paravisor keeps the HCL report in the TPM, with the report data that the guest
// wrote last.
type paravisor struct {
	tpm      *softTPM
	hardware Hardware
	key      jwk
	password []byte // of the platform hierarchy
	vmID     string
	delay    time.Duration
	log      *slog.Logger
	// written has room for one: the guest wrote since the last look.
	written chan struct{}
}

// notice takes note that the guest wrote report data. Without a delay the report
// is new when it returns.
func (p *paravisor) notice() {
	if p.delay <= 0 {
		p.renew()
		return
	}
	select {
	case p.written <- struct{}{}:
	default: // a renewal is due, and will read what is there then
	}
}

// run renews the report, a delay after the guest wrote, until ctx ends.
func (p *paravisor) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.written:
		}
		timer := time.NewTimer(p.delay)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
			p.renew()
		}
	}
}

// renew puts the guest's report data into the report. What the guest made
// unreadable leaves the report as it is.
func (p *paravisor) renew() {
	start := time.Now()
	err := p.tpm.Do(func(t transport.TPM) error {
		data, err := readReportData(t)
		if err != nil {
			return err
		}
		return p.write(t, data)
	})
	if err != nil {
		p.log.Warn("The HCL report stays as it is", "err", err)
		return
	}
	p.log.Debug("Renewed the HCL report", "dur", time.Since(start))
}

// write makes a report with the guest's report data and stores it.
func (p *paravisor) write(t transport.TPM, reportData []byte) error {
	report, err := hclReport(p.hardware, p.key, p.vmID, reportData, hclSize)
	if err != nil {
		return err
	}
	index, err := tpm2.NVReadPublic{NVIndex: hclIndex}.Execute(t)
	if err != nil {
		return fmt.Errorf("finding the HCL report: %w", err)
	}
	name := index.NVName
	const chunk = 1024 // TPM2_PT_NV_BUFFER_MAX of libtpms 0.9
	for offset := 0; offset < len(report); offset += chunk {
		_, err := tpm2.NVWrite{
			AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHPlatform, Auth: tpm2.PasswordAuth(p.password)},
			NVIndex:    tpm2.NamedHandle{Handle: hclIndex, Name: name},
			Data:       tpm2.TPM2BMaxNVBuffer{Buffer: report[offset:min(offset+chunk, len(report))]},
			Offset:     uint16(offset),
		}.Execute(t)
		if err != nil {
			return fmt.Errorf("writing the HCL report: %w", err)
		}
	}
	return nil
}

// readReportData returns what the guest wrote, at most 64 bytes. It needs the
// guest's owner password to be empty, as upstream's guests leave it.
func readReportData(t transport.TPM) ([]byte, error) {
	index, err := tpm2.NVReadPublic{NVIndex: reportDataIndex}.Execute(t)
	if err != nil {
		return nil, fmt.Errorf("finding the report data: %w", err)
	}
	public, err := index.NVPublic.Contents()
	if err != nil {
		return nil, fmt.Errorf("finding the report data: %w", err)
	}
	out, err := tpm2.NVRead{
		AuthHandle: empty(tpm2.TPMRHOwner),
		NVIndex:    tpm2.NamedHandle{Handle: reportDataIndex, Name: index.NVName},
		Size:       min(public.DataSize, userDataSize),
	}.Execute(t)
	if err != nil {
		return nil, fmt.Errorf("reading the report data: %w", err)
	}
	return out.Data.Buffer, nil
}

// isReportData says whether a command writes the guest's report data.
func isReportData(cmd []byte) bool {
	const indexOffset = headerSize + 4 // behind the handle that authorises
	index, ok := handleAt(cmd, indexOffset)
	return ok && tpm2.TPMCC(codeOf(cmd)) == tpm2.TPMCCNVWrite && index == reportDataIndex
}
