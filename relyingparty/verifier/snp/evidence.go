package snp

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/sealpod/sealpod/relyingparty/verifier"
	"github.com/sealpod/sealpod/relyingparty/verifier/internal/octets"
)

const (
	// maxEvidence bounds the JSON of one guest: a report and a few certificates
	// as arrays of numbers.
	maxEvidence = 1 << 20
	// maxCertificates and maxCertificate bound the certificate table.
	maxCertificates = 16
	maxCertificate  = 16 << 10
)

// Certificate is an entry of the certificate table that a guest sends along.
type Certificate struct {
	// Type is "VCEK", "VLEK", "ASK", "ARK", "CRL" or anything else.
	Type string
	// DER is the certificate.
	DER []byte
}

// evidence is the JSON of the attester. Members not known are ignored: what
// counts is that the report, put together again, is signed.
type evidence struct {
	Report *reportJSON `json:"attestation_report"`
	Chain  []struct {
		Type json.RawMessage `json:"cert_type"`
		Data octets.Array    `json:"data"`
	} `json:"cert_chain"`
}

// reportJSON is the report as the sev crate writes it; pointers tell absent
// from zero.
type reportJSON struct {
	Version         *uint32      `json:"version"`
	GuestSVN        *uint32      `json:"guest_svn"`
	Policy          *uint64      `json:"policy"`
	FamilyID        octets.Array `json:"family_id"`
	ImageID         octets.Array `json:"image_id"`
	VMPL            *uint32      `json:"vmpl"`
	SigAlgo         *uint32      `json:"sig_algo"`
	CurrentTCB      *tcbJSON     `json:"current_tcb"`
	PlatInfo        *uint64      `json:"plat_info"`
	KeyInfo         *uint32      `json:"key_info"`
	ReportData      octets.Array `json:"report_data"`
	Measurement     octets.Array `json:"measurement"`
	HostData        octets.Array `json:"host_data"`
	IDKeyDigest     octets.Array `json:"id_key_digest"`
	AuthorKeyDigest octets.Array `json:"author_key_digest"`
	ReportID        octets.Array `json:"report_id"`
	ReportIDMA      octets.Array `json:"report_id_ma"`
	ReportedTCB     *tcbJSON     `json:"reported_tcb"`
	Family          *uint8       `json:"cpuid_fam_id"`
	Model           *uint8       `json:"cpuid_mod_id"`
	Step            *uint8       `json:"cpuid_step"`
	ChipID          octets.Array `json:"chip_id"`
	CommittedTCB    *tcbJSON     `json:"committed_tcb"`
	Current         *firmware    `json:"current"`
	Committed       *firmware    `json:"committed"`
	LaunchTCB       *tcbJSON     `json:"launch_tcb"`
	LaunchMIT       *uint64      `json:"launch_mit_vector"`
	CurrentMIT      *uint64      `json:"current_mit_vector"`
	Signature       *struct {
		R octets.Array `json:"r"`
		S octets.Array `json:"s"`
	} `json:"signature"`
}

type tcbJSON struct {
	FMC        *uint8 `json:"fmc"`
	Bootloader *uint8 `json:"bootloader"`
	TEE        *uint8 `json:"tee"`
	SNP        *uint8 `json:"snp"`
	Microcode  *uint8 `json:"microcode"`
}

type firmware struct {
	Major *uint8 `json:"major"`
	Minor *uint8 `json:"minor"`
	Build *uint8 `json:"build"`
}

// parseEvidence returns the report as the hardware made it and the
// certificates.
func parseEvidence(raw json.RawMessage) (report []byte, chain []Certificate, err error) {
	if len(raw) > maxEvidence {
		return nil, nil, fmt.Errorf("%w: SNP evidence of %d bytes, at most %d are read", verifier.ErrEvidence, len(raw), maxEvidence)
	}
	var e evidence
	d := json.NewDecoder(bytes.NewReader(raw))
	if err := d.Decode(&e); err != nil {
		return nil, nil, fmt.Errorf("%w: reading SNP evidence: %w", verifier.ErrEvidence, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, nil, fmt.Errorf("%w: data after SNP evidence", verifier.ErrEvidence)
	}
	if e.Report == nil {
		return nil, nil, fmt.Errorf("%w: no attestation_report: this is not the evidence of an SNP guest", verifier.ErrEvidence)
	}
	if len(e.Chain) > maxCertificates {
		return nil, nil, fmt.Errorf("%w: %d certificates, at most %d are read", verifier.ErrEvidence, len(e.Chain), maxCertificates)
	}
	for i, c := range e.Chain {
		var kind string // of {"OTHER":"uuid"} it stays empty
		_ = json.Unmarshal(c.Type, &kind)
		if len(c.Data) > maxCertificate {
			return nil, nil, fmt.Errorf("%w: certificate %d has %d bytes, at most %d are read", verifier.ErrEvidence, i, len(c.Data), maxCertificate)
		}
		chain = append(chain, Certificate{Type: kind, DER: c.Data})
	}
	if report, err = e.Report.bytes(); err != nil {
		return nil, nil, fmt.Errorf("%w: attestation_report: %w", verifier.ErrEvidence, err)
	}
	return report, chain, nil
}

// bytes lays the report out as the hardware does. Reserved bytes are zero, as
// they were when the hardware signed them.
func (r *reportJSON) bytes() ([]byte, error) {
	b := builder{out: make([]byte, ReportSize)}
	b.u32(0x00, "version", r.Version)
	b.u32(0x04, "guest_svn", r.GuestSVN)
	b.u64(0x08, "policy", r.Policy)
	b.raw(0x10, 16, "family_id", r.FamilyID)
	b.raw(0x20, 16, "image_id", r.ImageID)
	b.u32(0x30, "vmpl", r.VMPL)
	b.u32(0x34, "sig_algo", r.SigAlgo)
	b.u64(0x40, "plat_info", r.PlatInfo)
	b.u32(0x48, "key_info", r.KeyInfo)
	b.raw(0x50, 64, "report_data", r.ReportData)
	b.raw(0x90, 48, "measurement", r.Measurement)
	b.raw(0xC0, 32, "host_data", r.HostData)
	b.raw(0xE0, 48, "id_key_digest", r.IDKeyDigest)
	b.raw(0x110, 48, "author_key_digest", r.AuthorKeyDigest)
	b.raw(0x140, 32, "report_id", r.ReportID)
	b.raw(0x160, 32, "report_id_ma", r.ReportIDMA)
	b.raw(0x1A0, 64, "chip_id", r.ChipID)
	if b.err != nil {
		return nil, b.err
	}
	if *r.Version >= 3 {
		b.u8(0x188, "cpuid_fam_id", r.Family)
		b.u8(0x189, "cpuid_mod_id", r.Model)
		b.u8(0x18A, "cpuid_step", r.Step)
	}
	turin := isTurin(b.out)
	b.tcb(0x38, "current_tcb", r.CurrentTCB, turin)
	b.tcb(0x180, "reported_tcb", r.ReportedTCB, turin)
	b.tcb(0x1E0, "committed_tcb", r.CommittedTCB, turin)
	b.tcb(0x1F0, "launch_tcb", r.LaunchTCB, turin)
	b.firmware(0x1E8, "current", r.Current)
	b.firmware(0x1EC, "committed", r.Committed)
	if r.LaunchMIT != nil {
		b.u64(0x1F8, "launch_mit_vector", r.LaunchMIT)
	}
	if r.CurrentMIT != nil {
		b.u64(0x200, "current_mit_vector", r.CurrentMIT)
	}
	if r.Signature == nil {
		return nil, errors.New("no signature")
	}
	b.raw(0x2A0, 72, "signature.r", r.Signature.R)
	b.raw(0x2E8, 72, "signature.s", r.Signature.S)
	return b.out, b.err
}

// builder writes fields and keeps the first error.
type builder struct {
	out []byte
	err error
}

func (b *builder) fail(name, what string) {
	if b.err == nil {
		b.err = fmt.Errorf("%s %s", name, what)
	}
}

func (b *builder) u8(at int, name string, v *uint8) {
	if v == nil {
		b.fail(name, "is missing")
		return
	}
	b.out[at] = *v
}

func (b *builder) u32(at int, name string, v *uint32) {
	if v == nil {
		b.fail(name, "is missing")
		return
	}
	binary.LittleEndian.PutUint32(b.out[at:], *v)
}

func (b *builder) u64(at int, name string, v *uint64) {
	if v == nil {
		b.fail(name, "is missing")
		return
	}
	binary.LittleEndian.PutUint64(b.out[at:], *v)
}

func (b *builder) raw(at, size int, name string, v octets.Array) {
	if len(v) != size {
		b.fail(name, fmt.Sprintf("has %d bytes, not %d", len(v), size))
		return
	}
	copy(b.out[at:], v)
}

func (b *builder) firmware(at int, name string, v *firmware) {
	if v == nil {
		b.fail(name, "is missing")
		return
	}
	b.u8(at, name+".build", v.Build)
	b.u8(at+1, name+".minor", v.Minor)
	b.u8(at+2, name+".major", v.Major)
}

func (b *builder) tcb(at int, name string, v *tcbJSON, turin bool) {
	if v == nil {
		b.fail(name, "is missing")
		return
	}
	if turin {
		b.u8(at, name+".fmc", v.FMC)
		at++ // the rest of the low half is one byte further up
	} else if v.FMC != nil {
		b.fail(name+".fmc", "is of a later product than the report")
	}
	b.u8(at, name+".bootloader", v.Bootloader)
	b.u8(at+1, name+".tee", v.TEE)
	if turin {
		b.u8(at+2, name+".snp", v.SNP)
		b.u8(at+6, name+".microcode", v.Microcode)
		return
	}
	b.u8(at+6, name+".snp", v.SNP)
	b.u8(at+7, name+".microcode", v.Microcode)
}
