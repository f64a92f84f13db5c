package sysfs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sealpod/sealpod/attester/snp"
	"github.com/sealpod/sealpod/attester/tdx"
	"github.com/sealpod/sealpod/podvm"
)

// evidence is what a guest makes: tdx.Attester and snp.Attester.
type evidence interface {
	Evidence(ctx context.Context, reportData []byte) (json.RawMessage, error)
}

// guests are simulated machines with the attester of each.
var guests = map[string]func(testing.TB) (evidence, string){
	"tdx": func(t testing.TB) (evidence, string) {
		sys := mountTree(t, simulatedTDX(t))
		return tdx.New(podvm.Host{Root: filepath.Dir(sys)}), sys
	},
	"snp": func(t testing.TB) (evidence, string) {
		sys := mountTree(t, simulatedSNP(t))
		return snp.New(podvm.Host{Root: filepath.Dir(sys)}), sys
	},
}

func openFiles(t testing.TB) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}

// A thousand evidences leave no configfs entry and no file descriptor behind, in
// the guest or in what simulates it, which here are one process.
func TestAThousandEvidencesLeaveNothingBehind(t *testing.T) {
	for name, start := range guests {
		t.Run(name, func(t *testing.T) {
			calls := 1000
			if testing.Short() {
				calls = 50 // the run as an ordinary user
			}
			attester, sys := start(t)
			in := nonce()
			if _, err := attester.Evidence(t.Context(), in[:]); err != nil {
				t.Fatal(err)
			}
			before := openFiles(t)
			for range calls {
				if _, err := attester.Evidence(t.Context(), in[:]); err != nil {
					t.Fatal(err)
				}
			}
			if after := openFiles(t); after != before {
				t.Errorf("%d files open, before %d", after, before)
			}
			if left, err := os.ReadDir(filepath.Join(sys, reportPath)); err != nil || len(left) != 0 {
				t.Errorf("left %v, %v", left, err)
			}
		})
	}
}

// An event extends a register through the file system and is in the next quote.
func TestTheTDXAttesterExtends(t *testing.T) {
	sys := mountTree(t, simulatedTDX(t))
	a := tdx.New(podvm.Host{Root: filepath.Dir(sys)})
	regs := a.Registers()
	if regs == nil {
		t.Fatal("no registers")
	}
	before, err := regs.Read(4)
	if err != nil {
		t.Fatal(err)
	}
	if err := regs.Extend(4, []byte(digest)); err != nil {
		t.Fatal(err)
	}
	if now, err := regs.Read(4); err != nil || string(now) != extended(string(before), digest) {
		t.Errorf("%x, %v", now, err)
	}
	if err := a.BindInitData(t.Context(), nil); err != nil {
		t.Errorf("MRCONFIGID: %v", err)
	}
}

// Many programs at once, on entries of their own, get what they asked for.
func TestManyProgramsAtOnce(t *testing.T) {
	tree, p, _ := tdxTree()
	sys := mountTree(t, tree)
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for j := range 10 {
				e := filepath.Join(sys, reportPath, fmt.Sprint(i))
				in := bytes.Repeat([]byte{byte('a' + i), byte('0' + j)}, 32)
				if err := errors.Join(os.Mkdir(e, 0o755), os.WriteFile(e+"/inblob", in, 0)); err != nil {
					t.Error(err)
					return
				}
				if out, err := os.ReadFile(e + "/outblob"); string(out) != "report "+string(in)+" level 0" || err != nil {
					t.Errorf("%q, %v", out, err)
				}
				if g, err := os.ReadFile(e + "/generation"); string(g) != "1\n" || err != nil {
					t.Errorf("generation %q, %v", g, err)
				}
				if err := syscall.Rmdir(e); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if p.most.Load() != 1 {
		t.Errorf("%d reports were made at once", p.most.Load())
	}
	if left, err := os.ReadDir(filepath.Join(sys, reportPath)); err != nil || len(left) != 0 {
		t.Errorf("left %v, %v", left, err)
	}
}

// Many programs on one entry: whoever finds the generation unchanged around
// its read has the report over what it wrote, or another of the same writes.
func TestManyProgramsOnOneEntry(t *testing.T) {
	tree, _, _ := tdxTree()
	e := makeEntry(t, mountTree(t, tree), "shared")
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			in := bytes.Repeat([]byte{byte('a' + i)}, 64)
			for range 20 {
				if err := os.WriteFile(e+"/inblob", in, 0); err != nil {
					t.Error(err)
				}
				before, err1 := os.ReadFile(e + "/generation")
				out, err2 := os.ReadFile(e + "/outblob")
				again, err3 := os.ReadFile(e + "/outblob")
				after, err4 := os.ReadFile(e + "/generation")
				if err := errors.Join(err1, err2, err3, err4); err != nil {
					t.Error(err)
					return
				}
				if len(out) != len(report0) || !bytes.Equal(out[7:71], bytes.Repeat(out[7:8], 64)) {
					t.Errorf("a mixed report: %q", out)
				}
				if bytes.Equal(before, after) && !bytes.Equal(out, again) {
					t.Errorf("two reports of generation %s", after)
				}
			}
		})
	}
	wg.Wait()
	if g := read(t, e+"/generation"); g != "160\n" {
		t.Errorf("generation %q", g)
	}
}

// bare is the least a program does for a report, on paths of this machine.
func bare(entry string, aux bool, in []byte) error {
	if err := syscall.Mkdir(entry, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(entry+"/inblob", in, 0); err != nil {
		return err
	}
	if _, err := os.ReadFile(entry + "/outblob"); err != nil {
		return err
	}
	if aux {
		if _, err := os.ReadFile(entry + "/auxblob"); err != nil {
			return err
		}
	}
	return syscall.Rmdir(entry)
}

// BenchmarkEvidence measures what the guest adds to the time a report takes:
// added-ms is one evidence less the least any program does, device-ms, for a
// report on the same mount, taken by turns.
func BenchmarkEvidence(b *testing.B) {
	for name, start := range guests {
		b.Run(name, func(b *testing.B) {
			attester, sys := start(b)
			in, entry := nonce(), filepath.Join(sys, reportPath, "bare")
			var device, whole time.Duration
			for b.Loop() {
				from := time.Now()
				if err := bare(entry, name == "snp", in[:]); err != nil {
					b.Fatal(err)
				}
				middle := time.Now()
				if _, err := attester.Evidence(b.Context(), in[:]); err != nil {
					b.Fatal(err)
				}
				device += middle.Sub(from)
				whole += time.Since(middle)
			}
			ms := func(d time.Duration) float64 { return d.Seconds() * 1e3 / float64(b.N) }
			b.ReportMetric(ms(device), "device-ms")
			b.ReportMetric(ms(whole), "evidence-ms")
			b.ReportMetric(ms(whole-device), "added-ms")
		})
	}
}
