package sysfs

import (
	"bytes"
	"context"
	"crypto/sha512"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"github.com/sealpod/sealpod/podvm/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake is a TEE whose reports say what they were asked for.
type fake struct {
	name string
	aux  []byte

	mu      sync.Mutex
	out     reporter // what makes the report instead, if set
	calls   atomic.Int64
	running atomic.Int64
	most    atomic.Int64 // calls at the same time
}

type reporter func(ctx context.Context, inblob []byte, privlevel uint) ([]byte, error)

// set has out make the reports.
func (f *fake) set(out reporter) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.out = out
}

func (f *fake) Name() string { return f.name }

func (f *fake) Report(ctx context.Context, inblob []byte, privlevel uint) ([]byte, []byte, error) {
	f.calls.Add(1)
	f.most.Store(max(f.most.Load(), f.running.Add(1)))
	defer f.running.Add(-1)
	f.mu.Lock()
	make := f.out
	f.mu.Unlock()
	if make != nil {
		out, err := make(ctx, inblob, privlevel)
		return out, f.aux, err
	}
	return fmt.Appendf(nil, "report %s level %d", inblob, privlevel), f.aux, nil
}

// fakeRegisters are SHA-384 registers in memory.
type fakeRegisters struct {
	mu     sync.Mutex
	values map[string][]byte
}

func newRegisters() *fakeRegisters {
	r := &fakeRegisters{values: map[string][]byte{"mrconfigid": bytes.Repeat([]byte{7}, 48), "mrtd:sha384": make([]byte, 48)}}
	for i := range 4 {
		r.values[fmt.Sprintf("rtmr%d:sha384", i)] = make([]byte, 48)
	}
	return r
}

func (r *fakeRegisters) Names() []string {
	var names []string
	for n := range r.values {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

func (r *fakeRegisters) Read(name string) ([]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return bytes.Clone(r.values[name]), nil
}

// lose takes a register away.
func (r *fakeRegisters) lose(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.values, name)
}

func (r *fakeRegisters) Write(name string, digest []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.values[name] == nil {
		return errors.New("no such register")
	}
	sum := sha512.Sum384(append(bytes.Clone(r.values[name]), digest...))
	r.values[name] = sum[:]
	return nil
}

// mountTree mounts tree until the test ends and returns where.
func mountTree(t testing.TB, tree Tree) string {
	t.Helper()
	testenv.FUSE(t)
	if tree.Log == nil {
		tree.Log = slog.New(slog.DiscardHandler)
	}
	f, err := Mount(t.Context(), filepath.Join(t.TempDir(), "sys"), tree)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f.Dir()
}

// tdxTree is a tree with all there is in one of TDX.
func tdxTree() (Tree, *fake, *fakeRegisters) {
	p, r := &fake{name: "tdx_guest"}, newRegisters()
	return Tree{
		Reports: p, Measurements: r,
		Files: map[string][]byte{
			"firmware/acpi/tables/data/CCEL": bytes.Repeat([]byte("log."), 20000),
			"kernel/note":                    []byte("a note\n"),
		},
		Dirs: []string{"devices/platform/sev-guest"},
	}, p, r
}

// makeEntry makes a report entry and returns its path.
func makeEntry(t testing.TB, sys, name string) string {
	t.Helper()
	dir := filepath.Join(sys, reportPath, name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

func write(t testing.TB, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func read(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
