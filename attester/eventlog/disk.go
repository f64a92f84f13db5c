package eventlog

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"

	"github.com/sealpod/sealpod/attester/internal/gate"
	"github.com/sealpod/sealpod/podvm"
)

// disk is the files of a Log; each method is one step a crash can fall between
// or into. Tests make every step crash.
type disk interface {
	// lock keeps other processes that lock the file out until it is closed, and
	// waits for one that has it, but not longer than ctx.
	lock(ctx context.Context, path string) (io.Closer, error)
	// create makes an empty file with its directory unless it is there.
	create(path string) error
	size(path string) (int64, error)
	read(path string, limit int64) ([]byte, error)
	// write replaces the content and has it on disk.
	write(path string, b []byte) error
	rename(from, to string) error
	// writeAt makes b the end of the file, from offset on, and has it on disk.
	writeAt(path string, offset int64, b []byte) error
	remove(path string) error
}

// files is a disk on the file system of host. The directory holds nothing
// secret but belongs to this program alone.
type files struct{ host podvm.Host }

func (f files) lock(ctx context.Context, path string) (io.Closer, error) {
	file, err := os.Open(f.host.Path(path))
	if err != nil {
		return nil, err
	}
	if err := gate.LockFile(ctx, file); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

func (f files) create(path string) error {
	path = f.host.Path(path)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return file.Close()
}

func (f files) size(path string) (int64, error) {
	st, err := os.Stat(f.host.Path(path))
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

func (f files) read(path string, limit int64) ([]byte, error) {
	return podvm.ReadFileMax(f.host.Path(path), limit)
}

func (f files) write(path string, b []byte) error { return f.put(path, os.O_CREATE, 0, b) }

func (f files) writeAt(path string, offset int64, b []byte) error { return f.put(path, 0, offset, b) }

func (f files) put(path string, flag int, offset int64, b []byte) (err error) {
	file, err := os.OpenFile(f.host.Path(path), os.O_WRONLY|flag, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	if err := file.Truncate(offset); err != nil {
		return err
	}
	if _, err := file.WriteAt(b, offset); err != nil {
		return err
	}
	return file.Sync()
}

func (f files) rename(from, to string) error { return os.Rename(f.host.Path(from), f.host.Path(to)) }
func (f files) remove(path string) error     { return os.Remove(f.host.Path(path)) }
