package model

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"syscall"

	"github.com/sealpod/sealpod/model/fetch"
	"github.com/sealpod/sealpod/model/room"
	"github.com/sealpod/sealpod/model/sealed"
	"github.com/sealpod/sealpod/podvm"
)

// ErrDestination says that a folder cannot be written.
var ErrDestination = errors.New("the folder for the model cannot be written")

func destination(err error) error {
	if full := room.Full(err); errors.Is(full, room.ErrSpace) {
		return full
	}
	return podvm.Explain(fmt.Errorf("%w: %w", ErrDestination, err), fmt.Sprintf("the folder for the model cannot be written by user %d", os.Getuid()))
}

// expected is how many bytes of a file's object there are, for progress.
func expected(f fetch.File) int64 {
	if f.Size >= 0 {
		return f.Size
	}
	return max(f.Object.Size, 0)
}

// preflight makes sure that each file system has room for what goes onto it and
// is not there yet, and a twentieth more. Errors: room.ErrSpace.
func preflight(folders []folder) error {
	type system struct {
		need int64
		dir  string
	}
	systems := map[uint64]system{}
	for _, f := range folders {
		st, err := os.Stat(f.dir)
		if err != nil {
			return destination(err)
		}
		dev := st.Sys().(*syscall.Stat_t).Dev
		s := systems[dev]
		s.need, s.dir = s.need+f.need, f.dir
		for _, file := range f.files {
			s.need -= present(f.dir, file)
		}
		if len(f.images) > 0 {
			s.need -= min(staged(f.dir), f.need)
		}
		systems[dev] = s
	}
	for _, s := range systems {
		root, err := os.OpenRoot(s.dir)
		if err != nil {
			return destination(err)
		}
		err = errors.Join(room.Check(root, s.need+s.need/20), root.Close())
		if err != nil {
			return err
		}
	}
	return nil
}

// present is how much of a file is there from a run before: it will be replaced
// or continued.
func present(dir string, f fetch.File) int64 {
	if f.Size < 0 {
		return 0
	}
	d, base := path.Split(f.Path)
	for _, name := range []string{f.Path, d + "." + base + ".part"} {
		if st, err := os.Lstat(filepath.Join(dir, name)); err == nil && st.Mode().IsRegular() {
			return min(st.Sys().(*syscall.Stat_t).Blocks*512, f.Size)
		}
	}
	return 0
}

// staged is how many bytes of archives are unpacked in dir from a run before, and
// are not fetched again.
func staged(dir string) (bytes int64) {
	entries, _ := os.ReadDir(dir) // without them, more room is asked for
	for _, e := range entries {
		if !e.IsDir() || !sealed.InProgress(e.Name()) {
			continue
		}
		_ = filepath.WalkDir(filepath.Join(dir, e.Name()), func(_ string, e fs.DirEntry, err error) error {
			if err == nil && e.Type().IsRegular() {
				if st, err := e.Info(); err == nil {
					bytes += st.Sys().(*syscall.Stat_t).Blocks * 512
				}
			}
			return nil
		})
	}
	return bytes
}

// sweep removes what other runs, for other models, left in progress.
func sweep(dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return destination(err)
	}
	defer root.Close() //nolint:errcheck // nothing is written through it
	return fs.WalkDir(root.FS(), ".", func(p string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrPermission) && e != nil && e.IsDir() {
			return nil // a folder such as lost+found, into which no run wrote
		}
		if err != nil {
			return destination(err)
		}
		if e.Type().IsRegular() && sealed.InProgress(e.Name()) {
			if err := root.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return destination(err)
			}
		}
		return nil
	})
}
