package tool

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Directory creates path, which is absolute, with what is missing above it, and
// opens it for a mount. What it made is taken back by u. The caller closes the
// file and mounts on its Name, /proc/self/fd/N, so that nobody can exchange path
// for a link in between; real is where that is.
func Directory(path string, u *Undo) (dir *os.File, real string, err error) {
	if err := mkdirAll(path, u); err != nil {
		return nil, "", err
	}
	fd, err := unix.Openat2(unix.AT_FDCWD, path, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, "", fmt.Errorf("opening %s: %w", path, err)
	}
	dir = os.NewFile(uintptr(fd), fmt.Sprintf("/proc/self/fd/%d", fd))
	if real, err = os.Readlink(dir.Name()); err != nil {
		dir.Close()
		return nil, "", fmt.Errorf("resolving %s: %w", path, err)
	}
	return dir, real, nil
}

func mkdirAll(path string, u *Undo) error {
	err := os.Mkdir(path, 0o755)
	if errors.Is(err, fs.ErrNotExist) {
		if err := mkdirAll(filepath.Dir(path), u); err != nil {
			return err
		}
		err = os.Mkdir(path, 0o755)
	}
	if errors.Is(err, fs.ErrExist) {
		return nil // Directory finds out whether it is one
	}
	if err != nil {
		return err
	}
	u.Add(func(context.Context) error {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("removing %s: %w", path, err)
		}
		return nil
	})
	return nil
}

// Top returns the topmost mount on path, which holds no links, or nil.
func Top(path string) (*mountinfo.Info, error) {
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) { return m.Mountpoint != path, false })
	if err != nil {
		return nil, fmt.Errorf("reading the mount table: %w", err)
	}
	if len(mounts) == 0 {
		return nil, nil
	}
	return mounts[len(mounts)-1], nil
}

// Real returns path without links as far as it exists, "" if it does not.
func Real(path string) string {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return ""
	}
	return real
}
