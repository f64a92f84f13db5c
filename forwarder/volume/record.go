package volume

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/tool"
)

// recordDir has a file for each name whose disk was ever there in this boot.
const recordDir = "/run/peerpod/cloud-volumes"

// record is what a name stands for until the next boot.
//
// The policy of kata-agent judges a request when its volumes are attached already:
// those of one that it refuses stay, and whoever may end a sandbox may detach them.
// If a name could become another volume, the worker node would have a request
// admitted for its encrypted volume and give its container another one by the same
// name: one opened with a key that it knows, or a plain one, put there before or in
// the moment between.
type record struct {
	LUN    int    `json:"lun"`
	DiskID string `json:"disk_id"`
	KeyID  string `json:"key_id"`
}

func (m *Manager) record(v Volume) (path string, content []byte, err error) {
	content, err = json.Marshal(record{v.LUN, v.DiskID, v.KeyID})
	return filepath.Join(m.host.Path(recordDir), v.Name), content, err
}

// known reports whether the name of v stands for it. That of another volume is
// ErrBusy. The caller has the lock of the volume.
func (m *Manager) known(v Volume) (bool, error) {
	path, want, err := m.record(v)
	if err != nil {
		return false, err
	}
	got, err := podvm.ReadFileMax(path, 64<<10)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case err == nil && !bytes.Equal(got, want):
		return false, podvm.Explain(fmt.Errorf("%w: the name was that of %s before", ErrBusy, podvm.Printable(string(got), 512)),
			"the name of the cloud volume was that of another disk, or of one with another key, before")
	}
	return err == nil, tool.Explain("reading the record of the volume", err, noRecord)
}

// keep makes the name of v stand for it. A failure to attach does not undo it: the
// data hub may finish later what it was asked for.
func (m *Manager) keep(v Volume) error {
	path, content, err := m.record(v)
	if err != nil {
		return err
	}
	next := filepath.Join(filepath.Dir(path), "."+v.Name) // no name of a volume begins with a dot
	err = errors.Join(tool.PrivateDir(filepath.Dir(path)), os.WriteFile(next, content, 0o600))
	if err == nil {
		err = os.Rename(next, path)
	}
	return tool.Explain("keeping a record of the volume", err, noRecord)
}

const noRecord = "the record of the cloud volume cannot be kept"
