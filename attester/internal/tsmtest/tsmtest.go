// Package tsmtest is configfs-tsm for tests: go-configfs-tsm's fake with the
// answers of a TEE driver, and the same on real files.
//
// Data path: tests of attesters only; nothing links it.
//
// Trust: none needed.
package tsmtest

import (
	"crypto/rand"
	"os"
	"path"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/google/go-configfs-tsm/configfs/configfsi"
	"github.com/google/go-configfs-tsm/configfs/faketsm"
)

// Driver is what the driver of a TEE answers. The zero value of a func field
// answers nothing.
type Driver struct {
	Provider string // with the line end the kernel writes
	// Out makes the report over the 64 bytes of report data.
	Out func(inblob []byte) ([]byte, error)
	// Aux makes the auxiliary bytes.
	Aux func() ([]byte, error)
	// Bump, if it returns true, lets another writer race for the entry.
	Bump func() bool
}

func (d *Driver) read(attr string, inblob []byte) ([]byte, error) {
	switch {
	case attr == "provider":
		return []byte(d.Provider), nil
	case len(inblob) != 64:
		return nil, syscall.EINVAL
	case attr == "outblob" && d.Out != nil:
		return d.Out(inblob)
	case attr == "auxblob" && d.Aux != nil:
		return d.Aux()
	}
	return nil, nil
}

// never is a generation no entry reaches, so the fake always asks the driver;
// its cache would refuse provider before the first write.
const never = 1 << 62

// Fake returns d behind go-configfs-tsm's fake client and the fake itself,
// whose Entries are the ones left behind.
func Fake(d *Driver) (configfsi.Client, *faketsm.ReportSubsystem) {
	sub := &faketsm.ReportSubsystem{
		Random:    rand.Reader,
		MakeEntry: func() *faketsm.ReportEntry { return newEntry() },
		CheckInAttr: func(_ *faketsm.ReportEntry, attr string, b []byte) error {
			if attr != "inblob" || len(b) != 64 {
				return syscall.EINVAL
			}
			return nil
		},
		ReadAttr: func(e *faketsm.ReportEntry, attr string) ([]byte, error) {
			if attr == "outblob" && d.Bump != nil && d.Bump() {
				e.WriteGeneration++
			}
			return d.read(attr, e.InAttrs["inblob"].Value)
		},
	}
	return &faketsm.Client{Subsystems: map[string]configfsi.Client{"report": sub}}, sub
}

func newEntry() *faketsm.ReportEntry {
	return &faketsm.ReportEntry{ReadGeneration: never, InAttrs: map[string]*faketsm.ReportAttributeState{"inblob": {}}}
}

// Files is d on real files: inner does the file work, and Files does what the
// kernel does to an entry.
type Files struct {
	configfsi.Client
	Driver *Driver
	Root   string // where inner's tree is

	mu sync.Mutex
}

func (f *Files) real(name string) string { return path.Join(f.Root, name) }

// MkdirTemp makes an entry with its attributes.
func (f *Files) MkdirTemp(dir, pattern string) (string, error) {
	entry, err := f.Client.MkdirTemp(dir, pattern)
	if err != nil {
		return "", err
	}
	for name, content := range map[string]string{
		"generation": "0\n", "provider": f.Driver.Provider, "inblob": "", "outblob": "", "auxblob": "",
	} {
		if err := os.WriteFile(f.real(path.Join(entry, name)), []byte(content), 0o600); err != nil {
			return "", err
		}
	}
	return entry, nil
}

// WriteFile writes an attribute and makes the report when it is inblob.
func (f *Files) WriteFile(name string, content []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.Client.WriteFile(name, content); err != nil {
		return err
	}
	entry := path.Dir(name)
	old, err := os.ReadFile(f.real(path.Join(entry, "generation")))
	if err != nil {
		return err
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(old)))
	if err != nil {
		return err
	}
	if err := os.WriteFile(f.real(path.Join(entry, "generation")), []byte(strconv.Itoa(n+1)), 0o600); err != nil {
		return err
	}
	for _, attr := range []string{"outblob", "auxblob"} {
		b, err := f.Driver.read(attr, content)
		if err != nil {
			return err
		}
		if err := os.WriteFile(f.real(path.Join(entry, attr)), b, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// RemoveAll removes the attributes first, which configfs does by itself.
func (f *Files) RemoveAll(name string) error {
	left, err := f.ReadDir(name)
	if err != nil {
		return err
	}
	for _, e := range left {
		if err := os.Remove(f.real(path.Join(name, e.Name()))); err != nil {
			return err
		}
	}
	return f.Client.RemoveAll(name)
}
