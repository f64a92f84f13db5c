// Package confined reads small files by names that somebody else chose, below
// one directory and never beyond it.
//
// Data path: signing keys of sealed secrets and credentials of key management
// services lie in directories of the machine and are named by documents.
//
// Trust: names are hostile. The directories and their files were placed by the
// owner, yet what is no regular file or too large is refused.
package confined

import (
	"errors"
	"os"
	"syscall"

	"github.com/sealpod/sealpod/podvm"
)

// Read returns the file name, a path relative to dir, of at most limit bytes.
// Neither ".." nor a symbolic link leads out of dir. The caller wipes the bytes
// if they are secret. Errors: those of os.Root, and podvm.ErrTooLarge.
func Read(dir, name string, limit int64) ([]byte, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close() //nolint:errcheck // a directory, nothing to flush
	// Without O_NONBLOCK a pipe in place of a file would hold up the call.
	f, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // read-only
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, errors.Join(errors.New("not a regular file"), err)
	}
	return podvm.ReadMax(f, limit)
}
