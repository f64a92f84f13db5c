package azure

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// paravisor keeps the HCL report in the TPM. It renews it when the guest starts
// to read it, with the report data that is in the guest's index then, but not
// sooner after the last time than it rests.
// Source: openvmm vm/devices/tpm/tpm_device/src/lib.rs at 1488a37b,
// refresh_device_attestation_data_on_nv_read.
type paravisor struct {
	hardware Hardware
	key      jwk
	password []byte // of the HCL report's index
	vmID     string
	rest     time.Duration
	log      *slog.Logger
	renewed  time.Time // under the TPM's lock
}

// before is called with each command before the TPM gets it. What the guest made
// unreadable leaves the report as it is.
func (p *paravisor) before(t transport.TPM, cmd []byte) {
	start := time.Now()
	if !startsReport(cmd) || start.Sub(p.renewed) < p.rest {
		return
	}
	if err := p.renew(t); err != nil {
		p.log.Warn("The HCL report stays as it is", "err", err)
		return
	}
	p.log.Debug("Renewed the HCL report", "dur", time.Since(start))
}

// startsReport says whether a command reads the first byte of the HCL report.
// Reading on must not renew it: the parts would not fit together.
func startsReport(cmd []byte) bool {
	const indexOffset = headerSize + 4 // behind the handle that authorises
	index, ok := handleAt(cmd, indexOffset)
	// The offset in the index is the last parameter.
	return ok && tpm2.TPMCC(codeOf(cmd)) == tpm2.TPMCCNVRead && index == hclIndex && binary.BigEndian.Uint16(cmd[len(cmd)-2:]) == 0
}

// renew writes a report with the guest's report data.
func (p *paravisor) renew(t transport.TPM) error {
	data, err := readReportData(t)
	if err != nil {
		return fmt.Errorf("reading the report data: %w", err)
	}
	report, err := hclReport(p.hardware, p.key, p.vmID, data, hclSize)
	if err != nil {
		return err
	}
	index, err := tpm2.NVReadPublic{NVIndex: hclIndex}.Execute(t)
	if err != nil {
		return fmt.Errorf("finding the HCL report: %w", err)
	}
	const chunk = 1024 // TPM2_PT_NV_BUFFER_MAX of libtpms 0.9
	for offset := 0; offset < len(report); offset += chunk {
		_, err := tpm2.NVWrite{
			AuthHandle: tpm2.AuthHandle{Handle: hclIndex, Name: index.NVName, Auth: tpm2.PasswordAuth(p.password)},
			NVIndex:    tpm2.NamedHandle{Handle: hclIndex, Name: index.NVName},
			Data:       tpm2.TPM2BMaxNVBuffer{Buffer: report[offset:min(offset+chunk, len(report))]},
			Offset:     uint16(offset),
		}.Execute(t)
		if err != nil {
			return fmt.Errorf("writing the HCL report: %w", err)
		}
	}
	p.renewed = time.Now()
	return nil
}

// readReportData returns what the guest wrote, at most 64 bytes, and nothing
// when it wrote nothing. It needs the guest's owner password to be empty, as
// upstream's guests leave it.
func readReportData(t transport.TPM) ([]byte, error) {
	index, err := tpm2.NVReadPublic{NVIndex: reportDataIndex}.Execute(t)
	if errors.Is(err, tpm2.TPMRCHandle) {
		return nil, nil // no such index
	}
	if err != nil {
		return nil, err
	}
	public, err := index.NVPublic.Contents()
	if err != nil {
		return nil, err
	}
	out, err := tpm2.NVRead{
		AuthHandle: empty(tpm2.TPMRHOwner),
		NVIndex:    tpm2.NamedHandle{Handle: reportDataIndex, Name: index.NVName},
		Size:       min(public.DataSize, userDataSize),
	}.Execute(t)
	if errors.Is(err, tpm2.TPMRCNVUninitialized) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return out.Data.Buffer, nil
}
