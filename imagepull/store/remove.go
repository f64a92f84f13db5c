package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/imagepull/layer"
	"github.com/sealpod/sealpod/podvm"
)

// maxHeld is how many directories of a tree are open at a time while it is
// removed.
const maxHeld = 64

// removeAll removes path and all below it, if it is there. What a container left
// may be nested as deeply as it liked, and it may still be at work in it: each
// directory is opened below its parent and never through a link or a mount, and
// one that is too deep is moved to the top first. What cannot be removed stays,
// with what it is in.
//
// A user other than root may have made directories without permissions, and gets
// them.
//
// Errors: the cause of ctx.
func removeAll(ctx context.Context, path string) error {
	above, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("removing %s: %w", path, err)
	}
	err = (&remover{ctx: ctx, top: -1}).remove(above, filepath.Base(path), 0)
	if err = errors.Join(err, unix.Close(above)); err != nil {
		return fmt.Errorf("removing %s: %w", path, err)
	}
	return nil
}

// remover removes one tree.
type remover struct {
	ctx   context.Context
	top   int // descriptor of its root, -1 before it is open
	moved int // number of the next directory that goes there
}

// remove takes name out of the directory at, which is depth levels below the
// root's parent.
func (r *remover) remove(at int, name string, depth int) error {
	if r.ctx.Err() != nil {
		return context.Cause(r.ctx)
	}
	err := unix.Unlinkat(at, name, 0)
	if !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM) {
		return gone(named(name, err))
	}
	fd, e := openToEmpty(at, name)
	switch {
	case errors.Is(e, unix.ENOTDIR), errors.Is(e, unix.ELOOP):
		return named(name, err)
	case e != nil:
		return gone(named(name, e))
	}
	d := os.NewFile(uintptr(fd), name)
	defer d.Close() //nolint:errcheck // only read from
	if r.top < 0 {
		r.top = fd
	}
	if depth >= maxHeld {
		if r.toTop(at, name) {
			return nil
		}
		if depth == 4*maxHeld { // where moving is not possible it goes on to here
			return fmt.Errorf("%w: nested too deeply to be removed", layer.ErrTooLarge)
		}
	}
	for {
		n, err := r.empty(d, depth)
		if err != nil {
			return err
		}
		err = gone(unix.Unlinkat(at, name, unix.AT_REMOVEDIR))
		if !errors.Is(err, unix.ENOTEMPTY) || n == 0 {
			return named(name, err)
		}
		// Something was moved here, or made meanwhile.
		if _, err := d.Seek(0, io.SeekStart); err != nil {
			return named(name, err)
		}
	}
}

// empty removes what is in d, or as much as can be, and says how many entries
// that was.
func (r *remover) empty(d *os.File, depth int) (n int, err error) {
	for {
		names, end := d.Readdirnames(256)
		for _, name := range names {
			e := r.remove(int(d.Fd()), name, depth+1)
			if r.ctx.Err() != nil {
				return n, context.Cause(r.ctx)
			}
			if e == nil {
				n++
			} else if err == nil { // one reason is enough, there may be a million
				err = e
			}
		}
		if errors.Is(end, io.EOF) {
			return n, err
		}
		if end != nil {
			return n, errors.Join(err, end)
		}
	}
}

// toTop moves the directory name in at to the root of the tree.
func (r *remover) toTop(at int, name string) bool {
	for range 1000 { // the names of a container may be in the way
		err := unix.Renameat2(at, name, r.top, fmt.Sprintf(".removed-%d", r.moved), unix.RENAME_NOREPLACE)
		r.moved++
		if !errors.Is(err, unix.EEXIST) {
			return err == nil
		}
	}
	return false
}

// openToEmpty opens a directory below at that is no mount point, and makes sure
// that its owner may empty it.
func openToEmpty(at int, name string) (int, error) {
	fd, err := openBelow(at, name, unix.O_RDONLY)
	if os.Geteuid() == 0 {
		return fd, err // needs no permission
	}
	if errors.Is(err, unix.EACCES) {
		if fd, err = openBelow(at, name, unix.O_PATH); err != nil {
			return fd, err
		}
		err = errors.Join(unix.Chmod(procPath(fd), 0o700), unix.Close(fd))
		if err != nil {
			return -1, err
		}
		fd, err = openBelow(at, name, unix.O_RDONLY)
	}
	if err == nil {
		err = unix.Fchmod(fd, 0o700)
		if err != nil {
			err = errors.Join(err, unix.Close(fd))
		}
	}
	return fd, err
}

// gone is err unless that says that there is nothing left to remove.
func gone(err error) error {
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// named says which entry err is about.
func named(name string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%q: %w", podvm.Printable(name, 64), err)
}
