package snp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
)

// ReportSize is the length of an attestation report in bytes.
const ReportSize = 1184

// ErrReport says that a report has a form the evidence cannot carry.
var ErrReport = errors.New("invalid SNP report")

// Octets is bytes that are an array of numbers in JSON.
type Octets []byte

// MarshalJSON returns the bytes as [1,2,3].
func (o Octets) MarshalJSON() ([]byte, error) {
	out := append(make([]byte, 0, 4*len(o)+2), '[')
	for i, b := range o {
		if i > 0 {
			out = append(out, ',')
		}
		out = strconv.AppendUint(out, uint64(b), 10)
	}
	return append(out, ']'), nil
}

// Report is an attestation report. Pointers are nil where the report's version
// or CPU family has no such value.
type Report struct {
	Version         uint32    `json:"version"`
	GuestSVN        uint32    `json:"guest_svn"`
	Policy          uint64    `json:"policy"`
	FamilyID        Octets    `json:"family_id"` // 16 bytes
	ImageID         Octets    `json:"image_id"`  // 16 bytes
	VMPL            uint32    `json:"vmpl"`
	SigAlgo         uint32    `json:"sig_algo"`
	CurrentTCB      TCB       `json:"current_tcb"`
	PlatInfo        uint64    `json:"plat_info"`
	KeyInfo         uint32    `json:"key_info"`
	ReportData      Octets    `json:"report_data"`       // 64 bytes
	Measurement     Octets    `json:"measurement"`       // 48 bytes
	HostData        Octets    `json:"host_data"`         // 32 bytes
	IDKeyDigest     Octets    `json:"id_key_digest"`     // 48 bytes
	AuthorKeyDigest Octets    `json:"author_key_digest"` // 48 bytes
	ReportID        Octets    `json:"report_id"`         // 32 bytes
	ReportIDMA      Octets    `json:"report_id_ma"`      // 32 bytes
	ReportedTCB     TCB       `json:"reported_tcb"`
	CPUFamily       *uint8    `json:"cpuid_fam_id"` // from version 3 on, as the two below
	CPUModel        *uint8    `json:"cpuid_mod_id"`
	CPUStepping     *uint8    `json:"cpuid_step"`
	ChipID          Octets    `json:"chip_id"` // 64 bytes
	CommittedTCB    TCB       `json:"committed_tcb"`
	Current         Firmware  `json:"current"`
	Committed       Firmware  `json:"committed"`
	LaunchTCB       TCB       `json:"launch_tcb"`
	LaunchMIT       *uint64   `json:"launch_mit_vector"` // from version 5 on
	CurrentMIT      *uint64   `json:"current_mit_vector"`
	Signature       Signature `json:"signature"`
}

// TCB is the security versions of a platform's firmware.
type TCB struct {
	FMC        *uint8 `json:"fmc"` // nil before Turin
	Bootloader uint8  `json:"bootloader"`
	TEE        uint8  `json:"tee"`
	SNP        uint8  `json:"snp"`
	Microcode  uint8  `json:"microcode"`
}

// Firmware is a version of the SNP firmware.
type Firmware struct {
	Major uint8 `json:"major"`
	Minor uint8 `json:"minor"`
	Build uint8 `json:"build"`
}

// Signature is ECDSA over P-384, both numbers little-endian as in the report.
type Signature struct {
	R Octets `json:"r"` // 72 bytes
	S Octets `json:"s"` // 72 bytes
}

// ParseReport takes a report apart. What it drops must be zero, since a
// verifier puts the report together again from what is left: ErrReport when
// Report could not bring back the same bytes. The result holds parts of b.
func ParseReport(b []byte) (Report, error) {
	if len(b) != ReportSize {
		return Report{}, fmt.Errorf("%w: %d bytes", ErrReport, len(b))
	}
	c := codec{raw: b}
	var r Report
	if err := c.layout(&r); err != nil {
		return Report{}, err
	}
	if !bytes.Equal(r.Bytes(), b) {
		return Report{}, fmt.Errorf("%w: version %d has values the evidence cannot carry", ErrReport, r.Version)
	}
	return r, nil
}

// Bytes returns the report as the secure processor made it. r must come from
// ParseReport.
func (r Report) Bytes() []byte {
	c := codec{raw: make([]byte, ReportSize), write: true}
	_ = c.layout(&r) // only reading fails
	return c.raw
}

// codec moves values between a report and its bytes, one way or the other, so
// that every offset is written once.
type codec struct {
	raw   []byte
	write bool
}

// layout visits every value at its offset.
// Source: AMD 56860 (SEV-SNP firmware ABI), ATTESTATION_REPORT.
func (c codec) layout(r *Report) error {
	c.u32(0x00, &r.Version)
	c.u32(0x04, &r.GuestSVN)
	c.u64(0x08, &r.Policy)
	c.octets(0x10, 16, &r.FamilyID)
	c.octets(0x20, 16, &r.ImageID)
	c.u32(0x30, &r.VMPL)
	c.u32(0x34, &r.SigAlgo)
	c.u64(0x40, &r.PlatInfo)
	c.u32(0x48, &r.KeyInfo)
	c.octets(0x50, 64, &r.ReportData)
	c.octets(0x90, 48, &r.Measurement)
	c.octets(0xc0, 32, &r.HostData)
	c.octets(0xe0, 48, &r.IDKeyDigest)
	c.octets(0x110, 48, &r.AuthorKeyDigest)
	c.octets(0x140, 32, &r.ReportID)
	c.octets(0x160, 32, &r.ReportIDMA)
	if r.Version >= 3 {
		c.optional8(0x188, &r.CPUFamily)
		c.optional8(0x189, &r.CPUModel)
		c.optional8(0x18a, &r.CPUStepping)
	}
	c.octets(0x1a0, 64, &r.ChipID)
	c.firmware(0x1e8, &r.Current)
	c.firmware(0x1ec, &r.Committed)
	if r.Version >= 5 {
		c.optional64(0x1f8, &r.LaunchMIT)
		c.optional64(0x200, &r.CurrentMIT)
	}
	c.octets(0x2a0, 72, &r.Signature.R)
	c.octets(0x2e8, 72, &r.Signature.S)
	turin, err := r.turin()
	if err != nil {
		return err
	}
	c.tcb(0x38, turin, &r.CurrentTCB)
	c.tcb(0x180, turin, &r.ReportedTCB)
	c.tcb(0x1e0, turin, &r.CommittedTCB)
	c.tcb(0x1f0, turin, &r.LaunchTCB)
	return nil
}

// turin tells which layout TCBs have: that of family 0x1a, or that of 0x19
// (Milan and Genoa). Version 2 has no family; there Turin shows by a chip ID of
// 8 bytes, and a masked one shows nothing.
// Source: virtee/sev src/firmware/guest/types/snp.rs and src/lib.rs at v6.3.0.
func (r *Report) turin() (bool, error) {
	zero := func(b []byte) bool { return bytes.Count(b, []byte{0}) == len(b) }
	switch {
	case r.Version < 2:
		return false, fmt.Errorf("%w: version %d", ErrReport, r.Version)
	case r.Version == 2 && zero(r.ChipID):
		return false, fmt.Errorf("%w: version 2 with a masked chip ID does not tell the CPU", ErrReport)
	case r.Version == 2:
		return zero(r.ChipID[8:]), nil
	case *r.CPUFamily == 0x19:
		return false, nil
	case *r.CPUFamily == 0x1a:
		return true, nil
	}
	return false, fmt.Errorf("%w: CPU family %#x", ErrReport, *r.CPUFamily)
}

func (c codec) tcb(at int, turin bool, t *TCB) {
	if turin {
		c.optional8(at, &t.FMC)
		c.u8(at+1, &t.Bootloader)
		c.u8(at+2, &t.TEE)
		c.u8(at+3, &t.SNP)
	} else {
		c.u8(at, &t.Bootloader)
		c.u8(at+1, &t.TEE)
		c.u8(at+6, &t.SNP)
	}
	c.u8(at+7, &t.Microcode)
}

func (c codec) firmware(at int, f *Firmware) {
	c.u8(at, &f.Build)
	c.u8(at+1, &f.Minor)
	c.u8(at+2, &f.Major)
}

func (c codec) u8(at int, v *uint8) {
	if c.write {
		c.raw[at] = *v
	} else {
		*v = c.raw[at]
	}
}

func (c codec) u32(at int, v *uint32) {
	if c.write {
		binary.LittleEndian.PutUint32(c.raw[at:], *v)
	} else {
		*v = binary.LittleEndian.Uint32(c.raw[at:])
	}
}

func (c codec) u64(at int, v *uint64) {
	if c.write {
		binary.LittleEndian.PutUint64(c.raw[at:], *v)
	} else {
		*v = binary.LittleEndian.Uint64(c.raw[at:])
	}
}

func (c codec) octets(at, n int, v *Octets) {
	if c.write {
		copy(c.raw[at:at+n], *v)
	} else {
		*v = c.raw[at : at+n : at+n]
	}
}

func (c codec) optional8(at int, v **uint8) {
	if !c.write {
		*v = new(uint8)
	}
	c.u8(at, *v)
}

func (c codec) optional64(at int, v **uint64) {
	if !c.write {
		*v = new(uint64)
	}
	c.u64(at, *v)
}
