package snp

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"

	"github.com/google/go-sev-guest/abi"
	"github.com/sealpod/sealpod/relyingparty/verifier"
)

// ReportSize is the length of a report in bytes, its signature included.
const ReportSize = abi.ReportSize

// The products, as they are called in certificates and at AMD's key server.
const (
	Milan = "Milan"
	Genoa = "Genoa"
	Turin = "Turin"
)

// The keys that sign reports, as in bits 2 to 4 of KEY_INFO.
const (
	signedByVCEK = 0
	signedByVLEK = 1
)

// TCB are the versions of the firmware that a report names.
type TCB struct {
	// FMC is of Turin only and 0 elsewhere.
	FMC                             uint8
	Bootloader, TEE, SNP, Microcode uint8
}

// Report is a verified report: the fields that a caller may need.
type Report struct {
	// Version is 2 to 5.
	Version uint32
	// Product is Milan, Genoa or Turin.
	Product  string
	Policy   uint64
	Platform uint64
	// ReportData has 64 bytes, Measurement 48, HostData 32 and ChipID 64.
	ReportData, Measurement, HostData, ChipID []byte
	ReportedTCB                               TCB

	vmpl   uint32
	signer uint32
}

// parseReport reads the fields of a report. Its product stays empty in version
// 2, which does not name it.
func parseReport(raw []byte) (Report, error) {
	if len(raw) != ReportSize {
		return Report{}, fmt.Errorf("%w: the report has %d bytes, not %d", verifier.ErrEvidence, len(raw), ReportSize)
	}
	r := Report{
		Version:     binary.LittleEndian.Uint32(raw),
		Policy:      binary.LittleEndian.Uint64(raw[0x08:]),
		Platform:    binary.LittleEndian.Uint64(raw[0x40:]),
		ReportData:  bytes.Clone(raw[0x50:0x90]),
		Measurement: bytes.Clone(raw[0x90:0xC0]),
		HostData:    bytes.Clone(raw[0xC0:0xE0]),
		ChipID:      bytes.Clone(raw[0x1A0:0x1E0]),
		ReportedTCB: parseTCB(raw[0x180:0x188], isTurin(raw)),
		vmpl:        binary.LittleEndian.Uint32(raw[0x30:]),
		signer:      binary.LittleEndian.Uint32(raw[0x48:]) >> 2 & 7,
	}
	if r.Version < 2 || r.Version > 5 {
		return Report{}, fmt.Errorf("%w: report version %d, known are 2 to 5: update the relying party or the firmware of the host", verifier.ErrEvidence, r.Version)
	}
	if r.Version >= 3 {
		if r.Product = product(raw[0x188], raw[0x189]); r.Product == "" {
			return Report{}, fmt.Errorf("%w: CPU family %#x model %#x is not Milan, Genoa or Turin", verifier.ErrEvidence, raw[0x188], raw[0x189])
		}
	}
	if r.signer != signedByVCEK && r.signer != signedByVLEK {
		return Report{}, fmt.Errorf("%w: the report is not signed by a VCEK or VLEK (key %d)", verifier.ErrEvidence, r.signer)
	}
	return r, nil
}

// product is the product of a CPU, empty when it is not known.
func product(family, model uint8) string {
	switch {
	case family == 0x19 && model <= 0xF:
		return Milan
	case family == 0x19 && (model >= 0x10 && model <= 0x1F || model >= 0xA0 && model <= 0xAE):
		return Genoa
	case family == 0x1A && model <= 0x11:
		return Turin
	}
	return ""
}

// isTurin says whether the TCB versions of a report are laid out as in Turin.
// A report of version 2 shows it by its chip id, which Turin has 8 bytes of.
func isTurin(raw []byte) bool {
	if binary.LittleEndian.Uint32(raw) >= 3 {
		return raw[0x188] == 0x1A
	}
	return onlyZeros(raw[0x1A8:0x1E0]) && !onlyZeros(raw[0x1A0:0x1A8])
}

func onlyZeros(b []byte) bool { return len(bytes.Trim(b, "\x00")) == 0 }

func parseTCB(b []byte, turin bool) TCB {
	if turin {
		return TCB{FMC: b[0], Bootloader: b[1], TEE: b[2], SNP: b[3], Microcode: b[7]}
	}
	return TCB{Bootloader: b[0], TEE: b[1], SNP: b[6], Microcode: b[7]}
}

// Claims returns what the report says, in the names of trustee.
func (r Report) Claims() map[string]any {
	bit := func(v uint64, n int) bool { return v>>n&1 == 1 }
	claims := map[string]any{
		"policy_abi_major":        int(r.Policy >> 8 & 0xFF),
		"policy_abi_minor":        int(r.Policy & 0xFF),
		"policy_smt_allowed":      bit(r.Policy, 16),
		"policy_migrate_ma":       bit(r.Policy, 18),
		"policy_debug_allowed":    bit(r.Policy, 19),
		"policy_single_socket":    bit(r.Policy, 20),
		"reported_tcb_bootloader": int(r.ReportedTCB.Bootloader),
		"reported_tcb_tee":        int(r.ReportedTCB.TEE),
		"reported_tcb_snp":        int(r.ReportedTCB.SNP),
		"reported_tcb_microcode":  int(r.ReportedTCB.Microcode),
		"platform_smt_enabled":    bit(r.Platform, 0),
		"platform_tsme_enabled":   bit(r.Platform, 1),
		"measurement":             hex.EncodeToString(r.Measurement),
		"chip_id":                 hex.EncodeToString(r.ChipID),
		"report_data":             hex.EncodeToString(r.ReportData),
		"init_data":               hex.EncodeToString(r.HostData),
	}
	if r.Product == Turin {
		claims["reported_tcb_fmc"] = int(r.ReportedTCB.FMC)
	}
	return claims
}
