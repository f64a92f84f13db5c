package snp

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"math"
	"syscall"
	"testing"

	"github.com/google/go-sev-guest/abi"

	attester "github.com/sealpod/sealpod/attester/snp"
)

var data = [64]byte{1, 2, 3, 63: 64}

// TestReportsAreReadByOthers holds the layout against go-sev-guest's reader and
// against the attester, which refuses what it could not put together again.
func TestReportsAreReadByOthers(t *testing.T) {
	for _, product := range products {
		for _, version := range []uint32{2, 3, 5} {
			c := open(t, "", Options{Product: product, ReportVersion: version})
			g := NewGuest(Launch{InitData: []byte("0123456789abcdef0123456789abcdef")})
			raw, err := c.Report(g, data, 2)
			if err != nil {
				t.Fatal(err)
			}
			r, err := abi.ReportToProto(raw)
			if err != nil {
				t.Fatalf("%s, version %d: %v", product, version, err)
			}
			m := g.Measurement()
			if r.GetVersion() != version || r.GetVmpl() != 2 || r.GetPolicy() != g.policy || !bytes.Equal(r.GetReportData(), data[:]) ||
				!bytes.Equal(r.GetMeasurement(), m[:]) || string(r.GetHostData()) != "0123456789abcdef0123456789abcdef" ||
				!bytes.Equal(r.GetChipId()[:len(c.id)], c.id) || r.GetPlatformInfo() != 3 || r.GetSignatureAlgo() != 1 {
				t.Errorf("%s, version %d: %v", product, version, r)
			}
			mine, err := attester.ParseReport(raw)
			if err != nil {
				t.Fatalf("%s, version %d: %v", product, version, err)
			}
			tcb := mine.ReportedTCB
			got := TCB{Bootloader: tcb.Bootloader, TEE: tcb.TEE, SNP: tcb.SNP, Microcode: tcb.Microcode}
			if tcb.FMC != nil {
				got.FMC = *tcb.FMC
			}
			if got != c.TCB(g) || (tcb.FMC != nil) != (product == Turin) || (mine.CPUFamily != nil) != (version >= 3) || (mine.LaunchMIT != nil) != (version == 5) {
				t.Errorf("%s, version %d: %+v", product, version, mine)
			}
			vcek, err := c.VCEK(c.TCB(g))
			if err != nil {
				t.Fatal(err)
			}
			der, err := abi.ReportToSignatureDER(raw)
			if err != nil || vcek.CheckSignature(x509.ECDSAWithSHA384, abi.SignedComponent(raw), der) != nil {
				t.Errorf("%s, version %d: signature, %v", product, version, err)
			}
		}
	}
}

func TestVersionsOfReports(t *testing.T) {
	for product, want := range map[string]uint32{Milan: 3, Genoa: 3, Turin: 5} {
		if c := open(t, "", Options{Product: product}); c.version != want || c.Product() != product {
			t.Errorf("%s: %d", c.Product(), c.version)
		}
	}
}

func TestLaunchDecidesWhatTheReportSays(t *testing.T) {
	base := Launch{Firmware: []byte("f"), Kernel: []byte("k"), Initrd: []byte("i"), CommandLine: "c"}
	seen := map[[48]byte]string{}
	for name, change := range map[string]func(*Launch){
		"nothing": func(*Launch) {}, "firmware": func(l *Launch) { l.Firmware = nil }, "long firmware": func(l *Launch) { l.Firmware = make([]byte, 4097) },
		"kernel": func(l *Launch) { l.Kernel = nil }, "initrd": func(l *Launch) { l.Initrd = nil }, "command line": func(l *Launch) { l.CommandLine += "x" },
	} {
		l := base
		change(&l)
		m := NewGuest(l).Measurement()
		if other, ok := seen[m]; ok {
			t.Errorf("%s and %s measure the same", name, other)
		}
		seen[m] = name
	}
	g := NewGuest(base)
	for name, c := range map[string]struct {
		change func(*Launch)
		policy uint64
	}{
		"as it is": {func(*Launch) {}, 0x3001F}, "debug": {func(l *Launch) { l.Debug = true }, 0xB001F}, "migrate": {func(l *Launch) { l.Migrate = true }, 0x7001F},
	} {
		l := base
		c.change(&l)
		if h := NewGuest(l); h.policy != c.policy || h.Measurement() != g.Measurement() {
			t.Errorf("%s: policy %#x", name, h.policy)
		}
	}
	long := NewGuest(Launch{InitData: bytes.Repeat([]byte{7}, 48)})
	if host := long.HostData(); !bytes.Equal(host[:], bytes.Repeat([]byte{7}, 32)) {
		t.Errorf("%x", host)
	}
	old := base
	old.StaleTCB = true
	for _, product := range products {
		c := open(t, "", Options{Product: product})
		if stale := c.TCB(NewGuest(old)); stale == c.TCB(g) || stale.SNP >= c.TCB(g).SNP {
			t.Errorf("%s: %+v", product, stale)
		}
	}
}

func TestDevice(t *testing.T) {
	c := open(t, "", Options{})
	d := c.Device(NewGuest(Launch{}))
	if d.Name() != "sev_guest" {
		t.Error(d.Name())
	}
	out, aux, err := d.Report(t.Context(), data[:], 3)
	if err != nil || len(out) != ReportSize || out[0x30] != 3 || !bytes.Equal(out[0x50:0x90], data[:]) {
		t.Fatalf("%x, %v", out, err)
	}
	var table abi.CertTable
	if err := table.Unmarshal(aux); err != nil {
		t.Fatal(err)
	}
	ark, ask, _ := c.Roots()
	vcek, err := c.VCEK(c.product.current())
	if err != nil {
		t.Fatal(err)
	}
	for guid, want := range map[string]*x509.Certificate{abi.VcekGUID: vcek, abi.AskGUID: ask, abi.ArkGUID: ark} {
		if der, err := table.GetByGUIDString(guid); err != nil || !bytes.Equal(der, want.Raw) {
			t.Errorf("%s: %v", want.Subject.CommonName, err)
		}
	}
	for name, c := range map[string]struct {
		n    int
		vmpl uint
	}{"no data": {0, 0}, "63 bytes": {63, 0}, "65 bytes": {65, 0}, "VMPL 4": {64, 4}, "VMPL that overflows": {64, math.MaxUint32 + 1}} {
		if _, _, err := d.Report(t.Context(), make([]byte, c.n), c.vmpl); !errors.Is(err, syscall.EINVAL) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := c.Report(d.guest, data, 4); !errors.Is(err, ErrVMPL) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := d.Report(ctx, data[:], 0); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func BenchmarkReport(b *testing.B) {
	c, err := Open("", Options{})
	if err != nil {
		b.Fatal(err)
	}
	d := c.Device(NewGuest(Launch{}))
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := d.Report(b.Context(), data[:], 0); err != nil {
			b.Fatal(err)
		}
	}
}
