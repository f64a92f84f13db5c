package luks

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/sealpod/sealpod/podvm"
)

// record is what is kept of a volume below /run, so until the next boot. It is
// written before the first step and again after the last.
type record struct {
	Number     uint64 `json:"number"`
	Mapper     string `json:"mapper"`
	MountPoint string `json:"mount_point"`
	Filesystem bool   `json:"filesystem"`
	Digest     string `json:"digest"`
	Done       bool   `json:"done"`
}

const (
	// headerDir holds headers while they are in use. It is in memory.
	// Source: guest-components confidential-data-hub/hub/src/storage/drivers/luks2.rs
	// at 8246e5e, the file names too.
	headerDir = podvm.CDHRunDir + "/luks-headers"
	recordDir = podvm.CDHRunDir + "/volumes"
)

func (d *Driver) file(dir, device, suffix string) string {
	return filepath.Join(d.host.Path(dir), base64.RawURLEncoding.EncodeToString([]byte(device))+suffix)
}

func (d *Driver) headerFile(device string) string { return d.file(headerDir, device, ".header") }
func (d *Driver) recordFile(device string) string { return d.file(recordDir, device, ".json") }

// load returns the record of the device, nil if there is none. The directory is
// ours, so a record that cannot be read is one that a kill cut short.
func (d *Driver) load(device string) (*record, error) {
	raw, err := podvm.ReadFileMax(d.recordFile(device), 64<<10)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var r record
	if err := json.Unmarshal(raw, &r); err != nil {
		return nil, fmt.Errorf("reading the record of the volume: %w", err)
	}
	return &r, nil
}

func (d *Driver) save(device string, r *record) error {
	raw, err := json.Marshal(r)
	if err != nil {
		return err
	}
	path := d.recordFile(device)
	if err := os.WriteFile(path+".new", raw, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

func (d *Driver) forget(device string) error {
	return errors.Join(removeFile(d.headerFile(device)), removeFile(d.recordFile(device)))
}

func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// loopOf returns the loop device whose backing file is path, "" if there is
// none.
func (d *Driver) loopOf(path string) (string, error) {
	files, err := filepath.Glob(d.host.Path("/sys/block") + "/loop*/loop/backing_file")
	if err != nil {
		return "", err
	}
	for _, f := range files {
		// A loop device that goes away meanwhile is not in use.
		if b, err := podvm.ReadFileMax(f, 8<<10); err == nil && strings.TrimSuffix(string(b), "\n") == path {
			return filepath.Base(filepath.Dir(filepath.Dir(f))), nil
		}
	}
	return "", nil
}
