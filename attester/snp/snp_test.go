package snp

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/go-configfs-tsm/configfs/faketsm"
	"github.com/google/go-sev-guest/abi"
	labi "github.com/google/go-sev-guest/client/linuxabi"
	sevtest "github.com/google/go-sev-guest/testing"
	"github.com/google/go-sev-guest/verify/testdata"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/attester/internal/tsm"
	"github.com/sealpod/sealpod/attester/internal/tsmtest"
	"github.com/sealpod/sealpod/podvm"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func noDevice() (device, error) { return nil, fs.ErrNotExist }

// guest is one whose kernel answers through configfs.
func guest(d *tsmtest.Driver) (*Attester, *faketsm.ReportSubsystem) {
	client, sub := tsmtest.Fake(d)
	return newAttester(client, noDevice), sub
}

// reports is a driver that answers with one report and table.
func reports(report, table []byte) *tsmtest.Driver {
	return &tsmtest.Driver{
		Provider: "sev_guest\n",
		Out:      func([]byte) ([]byte, error) { return report, nil },
		Aux:      func() ([]byte, error) { return table, nil },
	}
}

func TestEvidenceThroughConfigfs(t *testing.T) {
	for _, name := range goldens {
		t.Run(name, func(t *testing.T) {
			raw, want := golden(t, name)
			a, sub := guest(reports(raw, nil))
			got, err := a.Evidence(t.Context(), []byte("data"))
			if err != nil || !bytes.Equal(got, want) || len(sub.Entries) != 0 {
				t.Errorf("%s, %v", got, err)
			}
		})
	}
}

// A real report with the certificate of the machine's key: the chain goes along.
func TestEvidenceWithCertificates(t *testing.T) {
	a, _ := guest(reports(testdata.AttestationBytes, table(vcek, string(testdata.VcekBytes))))
	out, err := a.Evidence(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	var e fromJSON
	if err := json.Unmarshal(out, &e); err != nil || len(e.Chain) != 1 || string(e.Chain[0].Type) != `"VCEK"` {
		t.Fatalf("%v, %v", e.Chain, err)
	}
	der := make([]byte, len(e.Chain[0].Data))
	for i, v := range e.Chain[0].Data {
		der[i] = byte(v)
	}
	if !bytes.Equal(der, testdata.VcekBytes) {
		t.Error("another certificate")
	}
	if _, err := x509.ParseCertificate(der); err != nil {
		t.Error(err)
	}
}

func TestReportData(t *testing.T) {
	raw, _ := golden(t, "milan-v3")
	for name, tt := range map[string]struct {
		n  int
		ok bool
	}{"none": {0, true}, "SHA-384": {48, true}, "64 bytes": {64, true}, "65 bytes": {65, false}} {
		t.Run(name, func(t *testing.T) {
			var asked []byte
			a, _ := guest(&tsmtest.Driver{Provider: "sev_guest\n", Out: func(in []byte) ([]byte, error) {
				asked = bytes.Clone(in)
				return raw, nil
			}})
			data := bytes.Repeat([]byte{0xab}, tt.n)
			_, err := a.Evidence(t.Context(), data)
			if !tt.ok {
				if !errors.Is(err, tsm.ErrReportData) || podvm.Cause(err) == "" || asked != nil {
					t.Errorf("got %v, asked %x", err, asked)
				}
				return
			}
			if err != nil || !bytes.Equal(asked, append(data, make([]byte, 64-tt.n)...)) {
				t.Errorf("%v, asked for %x", err, asked)
			}
		})
	}
}

func TestEvidenceFails(t *testing.T) {
	raw, _ := golden(t, "milan-v3")
	for name, tt := range map[string]struct {
		driver *tsmtest.Driver
		want   error
	}{
		"empty report":                 {reports(nil, nil), tsm.ErrEmpty},
		"short report":                 {reports(raw[:100], nil), ErrReport},
		"hostile certificate table":    {reports(raw, append(entry(vcek, 0xfffffff0, 0x20), make([]byte, 24)...)), ErrCertTable},
		"another TEE, and no device":   {&tsmtest.Driver{Provider: "tdx_guest\n"}, tsm.ErrProvider},
		"the device's own explanation": {&tsmtest.Driver{Provider: "tdx_guest\n"}, fs.ErrNotExist},
	} {
		t.Run(name, func(t *testing.T) {
			a, sub := guest(tt.driver)
			out, err := a.Evidence(t.Context(), nil)
			if !errors.Is(err, tt.want) || out != nil || podvm.Cause(err) == "" || len(sub.Entries) != 0 {
				t.Errorf("%s, %v, %d entries", out, err, len(sub.Entries))
			}
		})
	}
}

// sevDevice is go-sev-guest's fake device, which signs with made-up keys.
func sevDevice(t *testing.T) *sevtest.Device {
	t.Helper()
	product := abi.DefaultSevProduct()
	d, err := sevtest.TcDevice(sevtest.TestCases(), &sevtest.DeviceOptions{Now: time.Now(), Product: product})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// counting counts what is open.
type counting struct {
	device
	open *int
}

func (c counting) Close() error { *c.open--; return c.device.Close() }

// withDevice is a guest without configfs.
func withDevice(t *testing.T, d *sevtest.Device) (*Attester, *int) {
	t.Helper()
	open := new(int)
	return newAttester(tsm.HostClient(podvm.Host{Root: t.TempDir()}), func() (device, error) {
		*open++
		return counting{d, open}, d.Open("")
	}), open
}

// milanV3 is go-sev-guest's test case of a report that tells its CPU.
const milanV3 = "zeros milan v3"

func testCase(t *testing.T, name string) sevtest.TestCase {
	t.Helper()
	for _, tc := range sevtest.TestCases() {
		if tc.Name == name {
			return tc
		}
	}
	t.Fatal(name)
	return sevtest.TestCase{}
}

func TestEvidenceThroughTheDevice(t *testing.T) {
	d := sevDevice(t)
	a, open := withDevice(t, d)
	in := testCase(t, milanV3).Input
	for _, certs := range []bool{true, false} {
		if !certs {
			d.Certs = nil
		}
		out, err := a.Evidence(t.Context(), in[:])
		if err != nil {
			t.Fatal(err)
		}
		var e fromJSON
		if err := json.Unmarshal(out, &e); err != nil {
			t.Fatal(err)
		}
		data, err := json.Marshal(Octets(in[:]))
		if err != nil || !bytes.Equal(e.Report["report_data"], data) || string(e.Report["version"]) != "3" {
			t.Errorf("report data %s, version %s, %v", e.Report["report_data"], e.Report["version"], err)
		}
		if certs == (e.Chain == nil) {
			t.Errorf("%d certificates", len(e.Chain))
		}
	}
	if *open != 0 {
		t.Errorf("%d devices open", *open)
	}
}

func TestDeviceFails(t *testing.T) {
	a, open := withDevice(t, sevDevice(t))
	oom := testCase(t, "fw oom").Input
	if _, err := a.Evidence(t.Context(), oom[:]); !errors.Is(err, ErrFirmware) || !errors.Is(err, unix.EIO) || podvm.Cause(err) == "" {
		t.Errorf("got %v", err)
	}
	if *open != 0 {
		t.Errorf("%d devices open", *open)
	}
}

// full is a device whose host has more certificates than the kernel takes.
type full struct{ *sevtest.Device }

func (f full) Ioctl(command uintptr, request any) (uintptr, error) {
	if req, ok := request.(*labi.SnpUserGuestRequest); ok && command == labi.IocSnpGetExtendedReport {
		req.FwErr = invalidLength
		return 0, unix.EIO
	}
	return f.Device.Ioctl(command, request)
}

func TestTooManyCertificatesAreLeftOut(t *testing.T) {
	if invalidLength != uint64(abi.GuestRequestInvalidLength) {
		t.Error("another number")
	}
	d := sevDevice(t)
	a := newAttester(tsm.HostClient(podvm.Host{Root: t.TempDir()}), func() (device, error) { return full{d}, d.Open("") })
	in := testCase(t, milanV3).Input
	out, err := a.Evidence(t.Context(), in[:])
	if err != nil || !bytes.HasSuffix(out, []byte(`"cert_chain":null}`)) {
		t.Errorf("%s, %v", out, err)
	}
}

// failing answers with an ES result that is no success.
type failing struct{ *sevtest.Device }

func (failing) Ioctl(uintptr, any) (uintptr, error) { return uintptr(labi.EsVmmError), nil }

func TestVMMError(t *testing.T) {
	d := sevDevice(t)
	a := newAttester(tsm.HostClient(podvm.Host{Root: t.TempDir()}), func() (device, error) { return failing{d}, d.Open("") })
	if _, err := a.Evidence(t.Context(), nil); !errors.Is(err, ErrFirmware) {
		t.Errorf("got %v", err)
	}
}

func TestDeviceFile(t *testing.T) {
	host := podvm.Host{Root: t.TempDir()}
	a := New(host)
	if _, err := a.Evidence(t.Context(), nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no device: %v", err)
	}
	path := host.Path(devicePath)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	before := openFiles(t)
	for range 100 {
		if _, err := a.Evidence(t.Context(), nil); !errors.Is(err, unix.ENOTTY) {
			t.Fatalf("not an SNP device: %v", err)
		}
	}
	if after := openFiles(t); after > before {
		t.Errorf("%d files open, before %d", after, before)
	}
	d, err := openDevice(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Ioctl(labi.IocSnpGetReport, "junk"); err == nil {
		t.Error("junk for a request")
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}

func TestEvidenceLeavesNothingBehind(t *testing.T) {
	raw, _ := golden(t, "turin-v5")
	a, sub := guest(reports(raw, table(vcek, "x")))
	before := openFiles(t)
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			for range 100 {
				if _, err := a.Evidence(t.Context(), nil); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if after := openFiles(t); after > before || len(sub.Entries) != 0 {
		t.Errorf("%d files open, before %d; %d entries", after, before, len(sub.Entries))
	}
}

func TestWaitingEndsWithTheContext(t *testing.T) {
	a, _ := guest(reports(nil, nil))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.Evidence(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestBindInitData(t *testing.T) {
	fill := func(n int) []byte { return bytes.Repeat([]byte{0x5a}, n) }
	for name, tt := range map[string]struct {
		launched []byte // padded to 32
		digest   []byte
		want     error
	}{
		"SHA-256":           {fill(32), fill(32), nil},
		"SHA-384 is cut":    {fill(32), fill(48), nil},
		"short is padded":   {fill(20), fill(20), nil},
		"one byte differs":  {fill(32), append(fill(31), 0), ErrInitData},
		"nothing at launch": {nil, fill(32), ErrNoInitData},
	} {
		t.Run(name, func(t *testing.T) {
			raw, _ := golden(t, "milan-v3")
			clear(raw[0xc0:0xe0])
			copy(raw[0xc0:], tt.launched)
			a, _ := guest(reports(raw, nil))
			if err := a.BindInitData(t.Context(), tt.digest); !errors.Is(err, tt.want) || tt.want != nil && podvm.Cause(err) == "" {
				t.Errorf("got %v", err)
			}
		})
	}
	a, _ := guest(reports([]byte("short"), nil))
	if err := a.BindInitData(t.Context(), fill(32)); !errors.Is(err, ErrReport) {
		t.Errorf("a short report: %v", err)
	}
	a, _ = guest(reports(nil, nil))
	if err := a.BindInitData(t.Context(), fill(32)); !errors.Is(err, tsm.ErrEmpty) {
		t.Errorf("no report: %v", err)
	}
}

func BenchmarkEvidence(b *testing.B) {
	raw, _ := golden(b, "turin-v5")
	a, _ := guest(reports(raw, table(vcek, string(testdata.VcekBytes))))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := a.Evidence(b.Context(), make([]byte, 48)); err != nil {
			b.Fatal(err)
		}
	}
}
