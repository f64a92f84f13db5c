package tsm

import (
	"os"
	"path"
	"path/filepath"

	"github.com/google/go-configfs-tsm/configfs/configfsi"

	"github.com/sealpod/sealpod/podvm"
)

// MaxAttribute caps what is read from one attribute, in bytes. Reports are a
// few KiB; Linux has room for quotes of 128 KiB, since those with DICE
// certificates take about 100.
// Source: Linux drivers/virt/coco/tdx-guest, GET_QUOTE_BUF_SIZE.
const MaxAttribute = 256 << 10

// HostClient returns a client of the configfs below host. It differs from
// go-configfs-tsm's own in that it finds the tree below host.Root and bounds
// what it reads.
func HostClient(host podvm.Host) configfsi.Client { return client{host} }

type client struct{ host podvm.Host }

// MkdirTemp makes an entry and returns its path on the machine, which Root is
// not part of.
func (c client) MkdirTemp(dir, pattern string) (string, error) {
	p, err := os.MkdirTemp(c.host.Path(dir), pattern)
	if err != nil {
		return "", err
	}
	return path.Join(dir, filepath.Base(p)), nil
}

func (c client) ReadFile(name string) ([]byte, error) {
	return podvm.ReadFileMax(c.host.Path(name), MaxAttribute)
}

func (c client) ReadDir(name string) ([]os.DirEntry, error) { return os.ReadDir(c.host.Path(name)) }

// WriteFile writes an attribute that exists. The kernel takes a binary one over
// when the file is closed.
func (c client) WriteFile(name string, content []byte) error {
	f, err := os.OpenFile(c.host.Path(name), os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	if _, err := f.Write(content); err != nil {
		_ = f.Close() // the write says what is wrong
		return err
	}
	return f.Close()
}

// RemoveAll removes an entry; configfs removes its attributes with it.
func (c client) RemoveAll(name string) error { return os.Remove(c.host.Path(name)) }
