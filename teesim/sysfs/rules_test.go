package sysfs

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// guest is what a row of a conformance table works on: a mounted tree with one
// report entry.
type guest struct {
	*testing.T
	sys, entry string
	provider   *fake
	regs       *fakeRegisters
}

func (g guest) at(parts ...string) string { return filepath.Join(append([]string{g.sys}, parts...)...) }

// put writes b to an attribute of the entry with one write.
func (g guest) put(attr, b string) error {
	f, err := os.OpenFile(filepath.Join(g.entry, attr), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	if _, err := f.WriteString(b); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

// get reads an attribute of the entry.
func (g guest) get(attr string) (string, error) {
	b, err := os.ReadFile(filepath.Join(g.entry, attr))
	return string(b), err
}

// want fails the row unless an attribute reads as value.
func (g guest) want(attr, value string) {
	g.Helper()
	if got, err := g.get(attr); err != nil || got != value {
		g.Errorf("%s reads as %q, %v; want %q", attr, got, err, value)
	}
}

func (g guest) must(err error) {
	g.Helper()
	if err != nil {
		g.Fatal(err)
	}
}

func openErr(path string, flags int) error {
	f, err := os.OpenFile(path, flags, 0o600)
	if err == nil {
		f.Close()
	}
	return err
}

func second(_ string, err error) error { return err }

var (
	data64  = strings.Repeat("d", 64)
	report0 = "report " + data64 + " level 0"
)

// rule is one thing the kernel does: what do answers is want, 0 for success.
type rule struct {
	name     string
	provider string // "sev_guest" if empty
	do       func(guest) error
	want     syscall.Errno
}

// fails returns what reading a report gives when the driver fails with err.
func (g guest) fails(err error) error {
	g.provider.set(func(context.Context, []byte, uint) ([]byte, error) { return nil, err })
	g.must(g.put("inblob", data64))
	return second(g.get("outblob"))
}

// names fails the row unless a directory holds just these.
func (g guest) names(dir string, want ...string) {
	g.Helper()
	got, err := os.ReadDir(dir)
	g.must(err)
	var names []string
	for _, e := range got {
		names = append(names, e.Name())
	}
	if !slices.Equal(names, want) {
		g.Errorf("%s holds %q, want %q", dir, names, want)
	}
}

func runRules(t *testing.T, rules []rule) {
	for _, r := range rules {
		t.Run(r.name, func(t *testing.T) {
			tree, p, regs := tdxTree()
			p.name, p.aux = "sev_guest", []byte("certificates")
			if r.provider != "" {
				p.name = r.provider
			}
			sys := mountTree(t, tree)
			err := r.do(guest{T: t, sys: sys, entry: makeEntry(t, sys, "e"), provider: p, regs: regs})
			var got syscall.Errno
			if errors.As(err, &got); got != r.want || err != nil && got == 0 {
				t.Errorf("got %v, want %v", err, r.want)
			}
		})
	}
}
