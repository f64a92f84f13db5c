package snp

import (
	"context"
	"fmt"
	"syscall"

	"github.com/google/go-sev-guest/abi"
	"github.com/google/uuid"
)

// CertTable returns the certificate table that a host keeps for a guest: VCEK,
// ASK and ARK, in the form of AMD 56421 (GHCB) "SNP Extended Guest Request".
func (c *Chip) CertTable(g *Guest) ([]byte, error) {
	vcek, err := c.VCEK(c.TCB(g))
	if err != nil {
		return nil, err
	}
	ark, ask, _ := c.Roots()
	table := abi.CertTable{Entries: []abi.CertTableEntry{
		{GUID: uuid.MustParse(abi.VcekGUID), RawCert: vcek.Raw},
		{GUID: uuid.MustParse(abi.AskGUID), RawCert: ask.Raw},
		{GUID: uuid.MustParse(abi.ArkGUID), RawCert: ark.Raw},
	}}
	return table.Marshal(), nil
}

// Device is the driver of a guest's kernel, as configfs-tsm calls it.
type Device struct {
	chip  *Chip
	guest *Guest
}

// Device returns the driver of a guest on this chip.
func (c *Chip) Device(g *Guest) Device { return Device{c, g} }

// Name is what the driver registers as.
func (Device) Name() string { return "sev_guest" }

// Report returns the report and the certificate table for 64 bytes of report
// data at a VMPL from 0 to 3. Anything else is syscall.EINVAL, as in the kernel.
// Source: Linux v6.12 drivers/virt/coco/sev-guest/sev-guest.c, sev_report_new.
func (d Device) Report(ctx context.Context, inblob []byte, privlevel uint) (outblob, auxblob []byte, err error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	if len(inblob) != 64 || privlevel > maxVMPL {
		return nil, nil, fmt.Errorf("report data of %d bytes at VMPL %d: %w", len(inblob), privlevel, syscall.EINVAL)
	}
	if outblob, err = d.chip.Report(d.guest, [64]byte(inblob), uint32(privlevel)); err == nil {
		auxblob, err = d.chip.CertTable(d.guest)
	}
	return outblob, auxblob, err
}
