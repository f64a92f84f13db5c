package tdx

import (
	"bytes"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"slices"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-eventlog/register"
	"github.com/google/go-eventlog/tcg"

	"github.com/sealpod/sealpod/teesim/sysfs"
)

// What a simulated /sys shows of a TD.
var (
	_ sysfs.Provider  = Reports{}
	_ sysfs.Registers = Registers{}
)

// TestFirmwareLogReplays reads the log with the library of Google: it leads to
// the registers, and ends at the filler.
func TestFirmwareLogReplays(t *testing.T) {
	td := open(t, Options{}).NewTD(Launch{Kernel: []byte("kernel"), Initrd: []byte("initrd"), CommandLine: "console=hvc0"})
	bank := register.RTMRBank{}
	for i := range 4 {
		value := td.RTMR(i)
		if (value == [48]byte{}) != (i == 3) {
			t.Errorf("RTMR%d is %x after boot", i, value)
		}
		bank.RTMRs = append(bank.RTMRs, register.RTMR{Index: i, Digest: value[:]})
	}
	ccel := td.CCEL()
	if len(ccel) != 64<<10 || !bytes.Equal(ccel[len(ccel)-8:], bytes.Repeat([]byte{0xFF}, 8)) {
		t.Errorf("%d bytes", len(ccel))
	}
	events, err := tcg.ParseAndReplay(ccel, bank.MRs(), tcg.ParseOpts{AllowPadding: true})
	if err != nil || len(events) < 15 {
		t.Fatalf("%d events, %v", len(events), err)
	}
	ccel[200] ^= 1
	if bytes.Equal(ccel, td.CCEL()) {
		t.Error("the caller can change the table")
	}
}

func TestWhatIsMeasuredWhere(t *testing.T) {
	p := open(t, Options{})
	base := Launch{Kernel: []byte("kernel"), CommandLine: "a"}
	good := p.NewTD(base).ReferenceValues()
	for name, c := range map[string]struct {
		change func(*Launch)
		values []string // that differ
	}{
		"nothing":      {func(*Launch) {}, nil},
		"kernel":       {func(l *Launch) { l.Kernel = []byte("Kernel") }, []string{"rtmr_1", "tdvfkernel"}},
		"command line": {func(l *Launch) { l.CommandLine = "b" }, []string{"rtmr_2", "tdvfkernelparams"}},
		"initrd":       {func(l *Launch) { l.Initrd = []byte("i") }, []string{"rtmr_2"}},
		"firmware":     {func(l *Launch) { l.Firmware = make([]byte, 5000) }, []string{"mr_td"}},
		"init data":    {func(l *Launch) { l.InitData = []byte("d") }, nil},
		"debug, stale": {func(l *Launch) { l.Debug, l.StaleTCB = true, true }, nil},
	} {
		l := base
		c.change(&l)
		var differ []string
		for name, v := range p.NewTD(l).ReferenceValues() {
			if list, ok := v.([]any); ok && list[0] != good[name].([]any)[0] || !ok && v != good[name] {
				differ = append(differ, name)
			}
		}
		slices.Sort(differ)
		if !slices.Equal(differ, c.values) {
			t.Errorf("%s: %v", name, differ)
		}
	}
}

// TestMRTD has the record of one page by hand.
func TestMRTD(t *testing.T) {
	h := sha512.New384()
	record := make([]byte, 128)
	copy(record, "MEM.PAGE.ADD")
	copy(record[16:], []byte{0x00, 0xF0, 0xFF, 0xFF}) // 4 GiB - 4 KiB
	h.Write(record)
	for chunk := range 16 {
		clear(record)
		copy(record, "MR.EXTEND")
		copy(record[16:], []byte{0x00, 0xF0 + byte(chunk), 0xFF, 0xFF})
		h.Write(record)
		content := make([]byte, 256)
		if chunk == 0 {
			content[0] = 'x'
		}
		h.Write(content)
	}
	if got := buildTD([]byte("x")); !bytes.Equal(got[:], h.Sum(nil)) {
		t.Errorf("%x", got)
	}
}

func TestRegisterFiles(t *testing.T) {
	td := open(t, Options{}).NewTD(Launch{InitData: bytes.Repeat([]byte{9}, 64)})
	r := td.Registers()
	for _, name := range r.Names() {
		if got, err := r.Read(name); err != nil || len(got) != 48 {
			t.Errorf("%s: %x, %v", name, got, err)
		}
	}
	if got, err := r.Read("mrconfigid"); err != nil || !bytes.Equal(got, bytes.Repeat([]byte{9}, 48)) {
		t.Errorf("mrconfigid: %x, %v", got, err)
	}
	digest := bytes.Repeat([]byte{1}, 48)
	if err := r.Write("rtmr3:sha384", digest); err != nil {
		t.Fatal(err)
	}
	want := sha512.Sum384(append(make([]byte, 48), digest...))
	if got, err := r.Read("rtmr3:sha384"); err != nil || !bytes.Equal(got, want[:]) {
		t.Errorf("%x, %v", got, err)
	}
	for _, c := range []struct {
		name string
		n    int
		err  error
	}{
		{"rtmr0:sha384", 47, syscall.EINVAL}, {"rtmr0:sha384", 49, syscall.EINVAL}, {"mrtd:sha384", 48, syscall.EACCES},
		{"mrconfigid", 48, syscall.EACCES}, {"rtmr4:sha384", 48, syscall.ENOENT}, {"rtmr0", 48, syscall.ENOENT}, {"", 48, syscall.ENOENT},
	} {
		if err := r.Write(c.name, make([]byte, c.n)); !errors.Is(err, c.err) {
			t.Errorf("%d bytes to %q: %v", c.n, c.name, err)
		}
	}
	for _, i := range []int{-1, 4} {
		if err := td.Extend(i, [48]byte{}); !errors.Is(err, syscall.EINVAL) {
			t.Errorf("RTMR%d: %v", i, err)
		}
	}
}

// TestManyAtOnce has quotes and extensions at the same time; every quote is of
// one moment.
func TestManyAtOnce(t *testing.T) {
	p := open(t, Options{})
	td := p.NewTD(Launch{})
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			for range 20 {
				if err := td.Extend(3, [48]byte{1}); err != nil {
					t.Error(err)
				}
			}
		})
		group.Go(func() {
			for range 10 {
				if _, err := p.Quote(td, [64]byte{}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	if td.RTMR(3) != Replay(slices.Repeat([]Event{{Register: 4, Digest: [48]byte{1}}}, 80)...)[3] {
		t.Error("an extension was lost")
	}
}

// TestAgentEvent has the digest that the attestation agent of
// guest-components at 8246e5e0 gives to one text.
func TestAgentEvent(t *testing.T) {
	e := AgentEvent(4, "domain operation content")
	if got := hex.EncodeToString(e.Digest[:4]); got != "dad5f0e2" || e.Type != 6 {
		t.Errorf("%s", got)
	}
}
