package sysfs

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-configfs-tsm/configfs/linuxtsm"
	"github.com/google/go-configfs-tsm/report"
	sevabi "github.com/google/go-sev-guest/abi"
	sevclient "github.com/google/go-sev-guest/client"
	tdxabi "github.com/google/go-tdx-guest/abi"
	tdxclient "github.com/google/go-tdx-guest/client"
	tdxpb "github.com/google/go-tdx-guest/proto/tdx"
	"github.com/google/go-tdx-guest/rtmr"
	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm/testenv"
	"github.com/sealpod/sealpod/teesim/snp"
	"github.com/sealpod/sealpod/teesim/tdx"
)

// guestEnv names the tree that a guest has as its /sys.
const guestEnv = "SEALPOD_TEST_SYS"

// inGuest runs the rest of a test as a program of a guest: in a process of its
// own whose /sys is tree. There it returns true; where the tree is served it
// returns false when that process is done.
func inGuest(t *testing.T, tree func(*testing.T) Tree) bool {
	if sys := os.Getenv(guestEnv); sys != "" {
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount(sys, "/sys", "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
		return true
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), guestEnv+"="+mountTree(t, tree(t)))
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}}
	}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, syscall.EPERM) {
		testenv.Missing(t, "needs a mount namespace: "+err.Error())
	}
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Errorf("in the guest: %v\n%s", err, out)
	}
	return false
}

// simulatedTDX and simulatedSNP are guests of simulated platforms.
func simulatedTDX(t testing.TB) Tree {
	t.Helper()
	p, err := tdx.Open("", tdx.Options{})
	if err != nil {
		t.Fatal(err)
	}
	td := p.NewTD(tdx.Launch{})
	return Tree{
		Reports: td.Reports(), Measurements: td.Registers(),
		Files: map[string][]byte{"firmware/acpi/tables/data/CCEL": td.CCEL()},
	}
}

func simulatedSNP(t testing.TB) Tree {
	t.Helper()
	c, err := snp.Open("", snp.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return Tree{Reports: c.Device(snp.NewGuest(snp.Launch{})), Dirs: []string{"devices/platform/sev-guest"}}
}

func nonce() (b [64]byte) {
	copy(b[:], bytes.Repeat([]byte("nonce..."), 8))
	return b
}

// go-configfs-tsm's own client on the paths of the kernel.
func TestGoConfigfsTSM(t *testing.T) {
	if !inGuest(t, func(t *testing.T) Tree { return simulatedSNP(t) }) {
		return
	}
	client, err := linuxtsm.MakeClient()
	if err != nil {
		t.Fatal(err)
	}
	in := nonce()
	r, err := report.Get(client, &report.Request{InBlob: in[:], GetAuxBlob: true, Privilege: &report.Privilege{Level: 1}})
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := sevabi.ReportToProto(r.OutBlob)
	if err != nil {
		t.Fatal(err)
	}
	if r.Provider != "sev_guest\n" || !bytes.Equal(parsed.GetReportData(), in[:]) || parsed.GetVmpl() != 1 || len(r.AuxBlob) == 0 {
		t.Errorf("%q, %d bytes of certificates, %v", r.Provider, len(r.AuxBlob), parsed)
	}
	open, err := report.Create(client, &report.Request{InBlob: in[:]})
	if err != nil {
		t.Fatal(err)
	}
	if floor, err := open.PrivilegeLevelFloor(); floor != 0 || err != nil {
		t.Errorf("floor %d, %v", floor, err)
	}
	if err := open.Destroy(); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir("/sys/" + reportPath); err != nil || len(left) != 0 {
		t.Errorf("left %v, %v", left, err)
	}
}

// What go-configfs-tsm calls a race is one here too.
func TestGoConfigfsTSMSeesARace(t *testing.T) {
	if !inGuest(t, func(t *testing.T) Tree { return simulatedSNP(t) }) {
		return
	}
	client, err := linuxtsm.MakeClient()
	if err != nil {
		t.Fatal(err)
	}
	in := nonce()
	r, err := report.Create(client, &report.Request{InBlob: in[:]})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Destroy()
	entries, err := os.ReadDir("/sys/" + reportPath)
	if err != nil || len(entries) != 1 {
		t.Fatal(entries, err)
	}
	write(t, "/sys/"+reportPath+"/"+entries[0].Name()+"/privlevel", []byte("2"))
	if _, err := r.Get(); report.GetGenerationErr(err) == nil {
		t.Errorf("got %v", err)
	}
}

// go-tdx-guest's own client gets a quote and extends a register.
func TestGoTDXGuest(t *testing.T) {
	if !inGuest(t, func(t *testing.T) Tree { return simulatedTDX(t) }) {
		return
	}
	p, err := tdxclient.GetQuoteProvider()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.IsSupported(); err != nil {
		t.Fatal(err)
	}
	digest := bytes.Repeat([]byte{1}, 48)
	if err := rtmr.ExtendDigestSysfs(3, digest); err != nil {
		t.Fatal(err)
	}
	raw, err := tdxclient.GetRawQuote(p, nonce())
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := tdxabi.QuoteToProto(raw)
	if err != nil {
		t.Fatal(err)
	}
	body, in := parsed.(*tdxpb.QuoteV4).GetTdQuoteBody(), nonce()
	if !bytes.Equal(body.GetReportData(), in[:]) || string(body.GetRtmrs()[3]) != extended(zeros, string(digest)) {
		t.Errorf("%v", body)
	}
	if now := read(t, "/sys/"+registerPath+"/rtmr3:sha384"); now != string(body.GetRtmrs()[3]) {
		t.Errorf("the register is %x", now)
	}
}

// go-sev-guest's own client gets a report and its certificates.
func TestGoSEVGuest(t *testing.T) {
	if !inGuest(t, func(t *testing.T) Tree { return simulatedSNP(t) }) {
		return
	}
	p, err := sevclient.GetQuoteProvider()
	if err != nil {
		t.Fatal(err)
	}
	in := nonce()
	raw, err := p.GetRawQuote(in)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := sevabi.ReportCertsToProto(raw)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(parsed.GetReport().GetReportData(), in[:]) || len(parsed.GetCertificateChain().GetVcekCert()) == 0 {
		t.Errorf("%v", parsed)
	}
	if _, err := p.(sevclient.LeveledQuoteProvider).GetRawQuoteAtLevel(in, 3); err != nil {
		t.Error(err)
	}
}
