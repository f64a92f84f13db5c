package tdx

import (
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"slices"
	"sync"
	"syscall"
)

// Launch says what a TD is started with. The zero value starts a TD with an
// empty kernel and command line.
type Launch struct {
	// Firmware is measured into MRTD; nil is the simulator's own.
	Firmware []byte
	// Kernel, Initrd and CommandLine are booted directly; a nil Initrd is none.
	Kernel, Initrd []byte
	CommandLine    string
	// InitData is the digest that the host sets as MRCONFIGID, cut or padded
	// with zeros to 48 bytes; nil leaves MRCONFIGID zero.
	InitData []byte
	// Debug makes a TD whose memory the host may read.
	Debug bool
	// StaleTCB launches the TD with a TDX module that is out of date.
	StaleTCB bool
	// Migratable makes a TD that the host may move to another machine.
	Migratable bool
	// Paravisor launches a TD like those of Azure: what is measured into MRTD is
	// a paravisor, which measures the rest into a TPM of its own and leaves RTMRs
	// and CCEL empty.
	Paravisor bool
}

// The attributes of TDs. Source: ABI, ATTRIBUTES and XFAM.
const (
	attributeDebug         = 0x01 // of byte 0
	attributeSEPTVEDisable = 0x10 // of byte 3
	attributeMigratable    = 0x20 // of byte 3
)

var features = [8]byte{0xE7, 0x00, 0x06} // x87, SSE, AVX, AVX-512, AMX

// TD is a running trust domain. It is safe for concurrent use.
type TD struct {
	platform *Platform
	ccel     []byte
	values   map[string]any

	mu     sync.Mutex // of report.RTMR
	report tdReport
}

// NewTD builds a TD and boots it.
func (p *Platform) NewTD(l Launch) *TD {
	if l.Firmware == nil {
		l.Firmware = []byte("simulated TDX virtual firmware")
		if l.Paravisor {
			l.Firmware = []byte("simulated paravisor")
		}
	}
	events := l.bootEvents()
	r := tdReport{
		ReportType: [4]byte{teeTDX}, CPUSVN: [16]byte(slices.Repeat([]byte{componentSVN}, 16)),
		Valid:     [8]byte{0xFF, 0x01}, // which fields of TEE_TCB_INFO hold values
		TEETCBSVN: tcbSVN(moduleSVN), MRSEAM: sha512.Sum384([]byte("simulated TDX module")),
		XFAM: features, MRTD: buildTD(l.Firmware), RTMR: Replay(events...),
	}
	r.TDAttributes[3] |= attributeSEPTVEDisable
	copy(r.MRConfigID[:], l.InitData)
	if l.Debug {
		r.TDAttributes[0] |= attributeDebug
	}
	if l.Migratable {
		r.TDAttributes[3] |= attributeMigratable
	}
	if l.StaleTCB {
		r.TEETCBSVN = tcbSVN(staleModule)
	}
	if p.version == 5 {
		r.TEETCBSVN2 = r.TEETCBSVN // the module was not updated since
	}
	kernel, line := KernelEvent(l.Kernel).Digest, commandLineEvent(l.CommandLine).Digest
	list := func(b []byte) []any { return []any{hex.EncodeToString(b)} }
	return &TD{platform: p, ccel: pad(EventLog(events...)), report: r, values: map[string]any{
		"mr_td": list(r.MRTD[:]), "rtmr_1": list(r.RTMR[1][:]), "rtmr_2": list(r.RTMR[2][:]), "xfam": list(r.XFAM[:]),
		"tdvfkernel": hex.EncodeToString(kernel[:]), "tdvfkernelparams": hex.EncodeToString(line[:]),
	}}
}

// tcbSVN is TEE_TCB_SVN with that version of the TDX module.
func tcbSVN(module byte) [16]byte {
	out := [16]byte(slices.Repeat([]byte{componentSVN}, 16))
	out[0], out[1] = module, moduleGeneration
	return out
}

// ReferenceValues returns what the TD measured until its boot was over, by the
// names that the default attestation policy for CPUs asks for. The caller may
// change the map.
func (t *TD) ReferenceValues() map[string]any {
	out := map[string]any{}
	for name, v := range t.values {
		if list, ok := v.([]any); ok {
			v = slices.Clone(list)
		}
		out[name] = v
	}
	return out
}

// CCEL returns the event log of the firmware as the ACPI table CCEL has it,
// 64 KiB with a filler.
func (t *TD) CCEL() []byte { return slices.Clone(t.ccel) }

// MRConfigID returns what the host set at launch.
func (t *TD) MRConfigID() [DigestSize]byte { return t.report.MRConfigID }

// MRTD returns the measurement of what the TD was built from.
func (t *TD) MRTD() [DigestSize]byte { return t.report.MRTD }

// RTMR returns RTMR0 to RTMR3; i is 0 to 3.
func (t *TD) RTMR(i int) [DigestSize]byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.report.RTMR[i]
}

// Extend extends RTMR0 to RTMR3 with a digest. Other numbers are EINVAL.
func (t *TD) Extend(i int, digest [DigestSize]byte) error {
	if i < 0 || i >= len(t.report.RTMR) {
		return fmt.Errorf("extending RTMR%d: %w", i, syscall.EINVAL)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.report.RTMR[i] = extend(t.report.RTMR[i], digest)
	return nil
}

// Report returns a TDREPORT over that report data.
func (t *TD) Report(reportData [ReportDataSize]byte) [ReportSize]byte {
	return t.now(reportData).seal(t.platform.keys.report)
}

// Body returns the body of a quote over that report data, for Platform.Parts.
func (t *TD) Body(reportData [ReportDataSize]byte) Body { return t.now(reportData).body() }

// now returns the report of this moment, without what the CPU adds.
func (t *TD) now(reportData [ReportDataSize]byte) *tdReport {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.report
	r.ReportData = reportData
	return &r
}
