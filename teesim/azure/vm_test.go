package azure

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/sealpod/sealpod/podvm/testenv"
	"github.com/sealpod/sealpod/teesim/snp"
	"github.com/sealpod/sealpod/teesim/tdx"
)

func TestPCRs(t *testing.T) {
	m := boot(t, Options{Kernel: []byte("k"), CommandLine: "quiet", Initrd: []byte("i")})
	// As systemd-measure computes it from files with those sections.
	var want [32]byte
	for _, data := range []string{".linux\x00", "k", ".cmdline\x00", "quiet", ".initrd\x00", "i"} {
		digest := sha256.Sum256([]byte(data))
		want = sha256.Sum256(append(want[:], digest[:]...))
	}
	if got, err := m.PCR(11); err != nil || !bytes.Equal(got, want[:]) {
		t.Errorf("PCR 11 is %x, %v, want %x", got, err, want)
	}
	for pcr := range 24 {
		got, err := m.PCR(pcr)
		want := replay(m.boot, pcr)
		if pcr >= 17 && pcr <= 22 { // of a launch that did not take place
			want = [32]byte(bytes.Repeat([]byte{0xff}, 32))
		}
		if err != nil || !bytes.Equal(got, want[:]) {
			t.Errorf("PCR %d is %x, %v, want %x", pcr, got, err, want)
		}
		if set := want != [32]byte{}; pcr < 8 && !set {
			t.Errorf("boot left PCR %d alone", pcr)
		}
	}
	for _, pcr := range []int{-1, 24} {
		if _, err := m.PCR(pcr); err == nil {
			t.Errorf("there is a PCR %d", pcr)
		}
	}
	g := dial(t, m)
	for pcr, free := range map[int]bool{8: true, 11: true, 23: true, 17: false, 22: false} {
		if err := extend(g, measurement{pcr: pcr, digest: want}); (err == nil) != free {
			t.Errorf("extending PCR %d: %v", pcr, err)
		}
	}
}

func TestReferenceValues(t *testing.T) {
	base := Options{Kernel: []byte("k"), CommandLine: "quiet"}
	pcr := func(m machine, name string) string { return m.ReferenceValues()[name].([]string)[0] }
	good := boot(t, base)
	actual, err := good.PCR(11)
	if err != nil {
		t.Fatal(err)
	}
	if got := pcr(good, "tdx_pcr11"); got != hex.EncodeToString(actual) {
		t.Errorf("tdx_pcr11 is %s, PCR 11 %x", got, actual)
	}
	if image, err := good.PCR(4); err != nil || pcr(good, "tdx_pcr04") != hex.EncodeToString(image) {
		t.Errorf("tdx_pcr04 is %s, PCR 4 %x, %v", pcr(good, "tdx_pcr04"), image, err)
	}
	if names := slices.Sorted(maps.Keys(good.ReferenceValues())); !slices.Equal(names, []string{"mr_td", "tdx_pcr04", "tdx_pcr11", "xfam"}) {
		t.Errorf("TDX has %v", names)
	}
	for name, change := range map[string]func(*Options){
		"kernel":       func(o *Options) { o.Kernel = []byte("other") },
		"command line": func(o *Options) { o.CommandLine = "debug" },
		"initrd":       func(o *Options) { o.Initrd = []byte{} },
	} {
		o := base
		change(&o)
		if other := replay(measureBoot(o), kernelPCR); bytes.Equal(other[:], actual) {
			t.Errorf("another %s has the same PCR 11", name)
		}
	}

	base.Hardware = snpHardware(t, snp.Launch{})
	amd := boot(t, base)
	if pcr(amd, "snp_pcr11") != hex.EncodeToString(actual) {
		t.Error("the same kernel has another PCR 11 on SNP")
	}
	var names []string
	for name, value := range amd.ReferenceValues() {
		names = append(names, name)
		if list, ok := value.([]string); !ok || len(list) != 1 || list[0] == "" {
			t.Errorf("%s is %#v, want a list of one text", name, value)
		}
	}
	slices.Sort(names)
	want := []string{"abi_major", "abi_minor", "measurement", "single_socket", "smt_allowed", "smt_enabled",
		"snp_pcr04", "snp_pcr11", "tcb_bootloader", "tcb_microcode", "tcb_snp", "tcb_tee", "tsme_enabled"}
	if !slices.Equal(names, want) {
		t.Errorf("SNP has %v, want %v", names, want)
	}
}

// What guests may not do to the paravisor's report and keys.
func TestTheGuestCannotChangeTheReport(t *testing.T) {
	m := boot(t, Options{Refresh: time.Hour})
	g := dial(t, m)
	before := readReport(t, g)
	name, err := nvName(g, hclIndex)
	if err != nil {
		t.Fatal(err)
	}
	index := tpm2.NamedHandle{Handle: hclIndex, Name: name}
	for what, attack := range map[string]func() error{
		"write as owner":    func() error { return writeNV(g, empty(tpm2.TPMRHOwner), hclIndex, []byte("HCLB")) },
		"write as platform": func() error { return writeNV(g, empty(tpm2.TPMRHPlatform), hclIndex, []byte("HCLB")) },
		"write without password": func() error {
			return writeNV(g, tpm2.AuthHandle{Handle: hclIndex, Name: name, Auth: tpm2.PasswordAuth(nil)}, hclIndex, []byte("HCLB"))
		},
		"remove as owner": func() error {
			_, err := tpm2.NVUndefineSpace{AuthHandle: empty(tpm2.TPMRHOwner), NVIndex: index}.Execute(g)
			return err
		},
		"remove as platform": func() error {
			_, err := tpm2.NVUndefineSpace{AuthHandle: empty(tpm2.TPMRHPlatform), NVIndex: index}.Execute(g)
			return err
		},
		"lock it": func() error {
			_, err := tpm2.NVWriteLock{AuthHandle: empty(tpm2.TPMRHOwner), NVIndex: index}.Execute(g)
			return err
		},
		"take the platform": func() error {
			_, err := tpm2.HierarchyChangeAuth{AuthHandle: empty(tpm2.TPMRHPlatform)}.Execute(g)
			return err
		},
		"clear the TPM": func() error {
			_, err := tpm2.Clear{AuthHandle: empty(tpm2.TPMRHLockout)}.Execute(g)
			return err
		},
	} {
		if err := attack(); err == nil {
			t.Errorf("the guest can %s", what)
		}
	}
	if after := readReport(t, g); !bytes.Equal(after, before) {
		t.Error("the report has changed")
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	m := boot(t, Options{})
	process, url := m.VM.tpm.cmd.Process, m.IMDS()
	if st, err := os.Stat(m.tpm()); err != nil || st.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("the TPM is %v, %v", st.Mode(), err)
	}
	idle := dial(t, m)
	for range 2 {
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := process.Signal(os.Interrupt); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("swtpm still runs: %v", err)
	}
	if err := ping(idle); err == nil {
		t.Error("a client is still served")
	}
	if r, err := http.Get(url); err == nil {
		r.Body.Close()
		t.Error("the metadata service still answers")
	}
	if _, err := m.PCR(0); !errors.Is(err, ErrTPM) {
		t.Errorf("reading a PCR: %v", err)
	}
	if err := m.Err(); err != nil {
		t.Errorf("Close counts as a failure: %v", err)
	}
}

// As when this process is killed.
func TestTheTPMEndsWithOurConnection(t *testing.T) {
	testenv.Tool(t, "swtpm")
	tpm, err := startTPM(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	// Once it answers it waits for the next command.
	if err := tpm.Do(func(x transport.TPM) error { _, err := x.Send(startupCommand); return err }); err != nil {
		t.Fatal(err)
	}
	tpm.conn.Close()
	select {
	case <-tpm.gone:
	case <-time.After(time.Minute):
		t.Error("it runs on")
	}
	if err := tpm.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}

func TestADeadTPMIsNoticed(t *testing.T) {
	m := boot(t, Options{})
	g := dial(t, m)
	if err := ping(g); err != nil || m.Err() != nil {
		t.Fatal(err, m.Err())
	}
	if err := m.VM.tpm.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	waitUntil(t, func() bool { return m.Err() != nil })
	if !errors.Is(m.Err(), ErrTPM) || !strings.Contains(m.Err().Error(), "killed") {
		t.Errorf("got %v", m.Err())
	}
	if _, err := g.Read(make([]byte, 1)); err == nil {
		t.Error("the guest got an answer")
	}
	waitUntil(t, func() bool { _, err := os.Stat(m.tpm()); return errors.Is(err, fs.ErrNotExist) })
}

// waitUntil returns when cond holds, and fails the test when that takes a minute.
func waitUntil(t *testing.T, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("still waiting after a minute")
		}
	}
}

// fakeTPM puts a script in the place of swtpm.
func fakeTPM(t *testing.T, script string) {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	if err := os.WriteFile(filepath.Join(dir, "swtpm"), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
}

func TestStartThatFails(t *testing.T) {
	for name, tt := range map[string]struct {
		prepare func(t *testing.T, o *Options) context.Context
		want    error
		text    string
	}{
		"without swtpm": {func(t *testing.T, _ *Options) context.Context {
			t.Setenv("PATH", "")
			return t.Context()
		}, ErrNoTPM, "Debian package swtpm"},
		"with an swtpm that ends": {func(t *testing.T, _ *Options) context.Context {
			fakeTPM(t, "echo no more space >&2; exit 3")
			return t.Context()
		}, ErrTPM, `exit status 3) and said "no more space`},
		"with one that answers nonsense": {func(t *testing.T, _ *Options) context.Context {
			fakeTPM(t, "exec yes >&3")
			return t.Context()
		}, ErrTPM, "tag 0x790a"},
		"with one that never answers": {func(t *testing.T, _ *Options) context.Context {
			fakeTPM(t, "exec sleep 1000")
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			t.Cleanup(cancel)
			return ctx
		}, context.DeadlineExceeded, ""},
		"in a long directory": {func(t *testing.T, o *Options) context.Context {
			o.Root = "/" + strings.Repeat("x", 100)
			return t.Context()
		}, ErrPath, "of 107 bytes"},
		"where the socket cannot be": {func(t *testing.T, o *Options) context.Context {
			testenv.Tool(t, "swtpm")
			if err := os.WriteFile(o.Root+"/dev", nil, 0o600); err != nil {
				t.Fatal(err)
			}
			return t.Context()
		}, nil, "offering the TPM"},
		"without a directory for its state": {func(t *testing.T, o *Options) context.Context {
			testenv.Tool(t, "swtpm")
			o.Dir += "/missing"
			return t.Context()
		}, fs.ErrNotExist, "the TPM's directory"},
		"on hardware that fails": {func(t *testing.T, o *Options) context.Context {
			testenv.Tool(t, "swtpm")
			o.Hardware.Report = func([64]byte) ([]byte, error) { return nil, errors.New("no hardware") }
			return t.Context()
		}, nil, "preparing the TPM: getting the hardware's report: no hardware"},
	} {
		t.Run(name, func(t *testing.T) {
			root, err := os.MkdirTemp("", "az")
			if err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(root)
			state := t.TempDir()
			o := Options{Root: root, Dir: state, Hardware: tdxHardware(t, tdx.Launch{})}
			v, err := Start(tt.prepare(t, &o), o)
			if v != nil || err == nil || !strings.Contains(err.Error(), tt.text) || tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("got %v, %v", v, err)
			}
			if left, err := os.ReadDir(state); err != nil || len(left) != 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		})
	}
}

// The attestation key is one that signs nothing but what the TPM attests.
func TestKeys(t *testing.T) {
	m := boot(t, Options{})
	g := dial(t, m)
	for _, handle := range []tpm2.TPMHandle{akHandle, ekHandle} {
		if _, err := (tpm2.ReadPublic{ObjectHandle: handle}).Execute(g); err != nil {
			t.Errorf("%#x: %v", uint32(handle), err)
		}
	}
	public, err := tpm2.ReadPublic{ObjectHandle: akHandle}.Execute(g)
	if err != nil {
		t.Fatal(err)
	}
	forged := sha256.Sum256([]byte("\xffTCG a forged quote"))
	_, err = tpm2.Sign{
		KeyHandle: tpm2.AuthHandle{Handle: akHandle, Name: public.Name, Auth: tpm2.PasswordAuth(nil)},
		Digest:    tpm2.TPM2BDigest{Buffer: forged[:]},
		InScheme:  tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
		Validation: tpm2.TPMTTKHashCheck{
			Tag: tpm2.TPMSTHashCheck, Hierarchy: tpm2.TPMRHNull,
		},
	}.Execute(g)
	if err == nil {
		t.Error("the attestation key signs what is not of the TPM")
	}
}
