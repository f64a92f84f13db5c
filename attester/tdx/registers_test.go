package tdx

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-tdx-guest/testing/testdata"
	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/attester/eventlog"
)

// register n of the sysfs tree holds 48 times the byte n.
func sysfs() map[string]string {
	out := map[string]string{measurements + "/mrconfigid": string(bytes.Repeat([]byte{9}, 48))}
	for i := range uint32(4) {
		out[rtmrPath(i+1)] = string(bytes.Repeat([]byte{byte(i)}, 48))
	}
	return out
}

func TestRegistersFromSysfs(t *testing.T) {
	a, _ := guest(t, quotes(nil), sysfs())
	r := a.Registers()
	for i := range uint32(4) {
		got, err := r.Read(i + 1)
		if err != nil || !bytes.Equal(got, bytes.Repeat([]byte{byte(i)}, 48)) {
			t.Errorf("RTMR%d: %x, %v", i, got, err)
		}
	}
	for _, i := range []uint32{0, 5, 1 << 31} {
		if _, err := r.Read(i); !errors.Is(err, eventlog.ErrRegister) {
			t.Errorf("reading register %d: %v", i, err)
		}
		if err := r.Extend(i, make([]byte, 48)); !errors.Is(err, eventlog.ErrRegister) {
			t.Errorf("extending register %d: %v", i, err)
		}
	}
}

// The kernel extends on write; what is written must be the digest and go to
// the right file.
func TestExtendWritesTheDigest(t *testing.T) {
	a, _ := guest(t, quotes(nil), sysfs())
	digest := bytes.Repeat([]byte{0xdd}, 48)
	if err := a.Registers().Extend(3, digest); err != nil {
		t.Fatal(err)
	}
	for name, content := range sysfs() {
		want := []byte(content)
		if filepath.Base(name) == "rtmr2:sha384" {
			want = digest
		}
		if got, err := os.ReadFile(a.host.Path(name)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %x, %v", name, got, err)
		}
	}
	if err := a.Registers().Extend(3, digest[:47]); !errors.Is(err, ErrSize) {
		t.Errorf("a short digest: %v", err)
	}
	if err := os.Remove(a.host.Path(rtmrPath(1))); err != nil {
		t.Fatal(err)
	}
	if err := a.Registers().Extend(1, digest); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a register that is gone: %v", err)
	}
}

// A real TDREPORT stands in for the files of newer kernels; values are those
// an independent reading of the structure gives.
func TestRegistersFromTheReport(t *testing.T) {
	a, _ := guest(t, quotes(nil), nil)
	asked := 0
	a.report0 = func() ([]byte, error) { asked++; return testdata.RawReport, nil }
	if a.Registers() != nil {
		t.Error("a kernel without the files is said to extend registers")
	}
	tdinfo := testdata.RawReport[512:]
	for i := range uint32(4) {
		// attributes 8, xfam 8, then 48 each: MRTD, MRCONFIGID, MROWNER,
		// MROWNERCONFIG, RTMR0.
		want := tdinfo[16+(4+int(i))*48:][:48]
		if got, err := a.readRTMR(i + 1); err != nil || !bytes.Equal(got, want) {
			t.Errorf("RTMR%d: %x, %v", i, got, err)
		}
	}
	if got, err := a.mrConfigID(); err != nil || !bytes.Equal(got, tdinfo[16+48:][:48]) {
		t.Errorf("MRCONFIGID: %x, %v", got, err)
	}
	if asked != 5 {
		t.Errorf("%d reports", asked)
	}
	a.report0 = func() ([]byte, error) { return testdata.RawReport[:700], nil }
	if _, err := a.readRTMR(1); !errors.Is(err, ErrSize) {
		t.Errorf("a short report: %v", err)
	}
}

func TestReportDevice(t *testing.T) {
	if report0Command != 0xc4405401 { // as the kernel's header has it
		t.Errorf("command %#x", report0Command)
	}
	a, _ := guest(t, quotes(nil), nil)
	if _, err := a.mrConfigID(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no device: %v", err)
	}
	a, _ = guest(t, quotes(nil), map[string]string{device: ""})
	if _, err := a.mrConfigID(); !errors.Is(err, unix.ENOTTY) {
		t.Errorf("not a TDX device: %v", err)
	}
}
