package store

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/imagepull/layer"
	"github.com/sealpod/sealpod/podvm"
)

// volatile keeps overlayfs from syncing the file system below: an upper
// directory is thrown away with its container, and syncing made an unmount wait
// for everything else that was being written there.
const volatile = "volatile"

// chooseMode tries what Overlay mode needs: whiteout devices, trusted
// attributes and the mount itself. Anything but a refusal for lack of privilege
// is an error: a pod VM that cannot mount should say so, not degrade.
func (s *Store) chooseMode(plain bool) (layer.Mode, error) {
	if plain {
		s.log.Warn("Images are merged into plain directories as asked: owners and devices are not kept")
		return layer.Plain, nil
	}
	err := s.probe()
	switch {
	case err == nil:
		return layer.Overlay, nil
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		s.log.Warn("Overlay mounts are not permitted, images are merged into plain directories: owners and devices are not kept", "err", err)
		return layer.Plain, nil
	}
	return 0, fmt.Errorf("trying an overlay mount: %w", err)
}

func (s *Store) probe() (err error) {
	dir, err := os.MkdirTemp(s.path("tmp"), "probe-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	for _, d := range []string{"lower", "upper", "work", "rootfs"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			return err
		}
	}
	if err := unix.Mknod(filepath.Join(dir, "lower", "whiteout"), unix.S_IFCHR, 0); err != nil {
		return fmt.Errorf("creating a whiteout: %w", err)
	}
	if err := unix.Lsetxattr(filepath.Join(dir, "lower"), "trusted.overlay.opaque", []byte("y"), 0); err != nil {
		return fmt.Errorf("setting a trusted attribute: %w", err)
	}
	rootfs := filepath.Join(dir, "rootfs")
	if err := mountIn(dir, rootfs, "lowerdir=lower,upperdir=upper,workdir=work,"+volatile); err != nil {
		return err
	}
	return unmount(rootfs)
}

// mount puts an overlay of layers, base first, on target. Upper and work
// directory are new. The lower directories are named by short symbolic links,
// relative to the working directory of the mount call, because the options of
// mount(2) must fit a page; with that overlayfs's own limit of 500 is reached.
func (l *Lease) mount(ctx context.Context, target string, layers []string) error {
	s := l.store
	if err := s.sweep(ctx); err != nil {
		return fmt.Errorf("cleaning up after earlier mounts: %w", err)
	}
	dir, err := s.newMount()
	if err != nil {
		return fmt.Errorf("preparing the overlay: %w", err)
	}
	id := filepath.Base(dir)
	defer s.mountDone(id)
	stuck := false // the mount cannot be taken off
	l.undo = append(l.undo, func() error {
		if stuck {
			return nil // the mark tells the next process
		}
		return errors.Join(removeAll(context.WithoutCancel(ctx), dir), s.finished(id))
	})
	l.done = append(l.done, id)
	if err := s.markUnfinished(id); err != nil {
		return err
	}

	lowers, err := link(dir, layers)
	if err == nil {
		err = copyRoot(filepath.Join(dir, "upper"), layers)
	}
	if err != nil {
		return fmt.Errorf("preparing the overlay: %w", err)
	}
	// The id in the options is how sweep and unmountOwn know this mount again.
	options := fmt.Sprintf("lowerdir=%s,upperdir=../../%[2]s/upper,workdir=../../%[2]s/work,%[3]s", strings.Join(lowers, ":"), id, volatile)
	if err := mountIn(filepath.Join(dir, "l"), target, options); err != nil {
		return fmt.Errorf("mounting %d layers on %s: %w", len(layers), target, err)
	}
	mounted, err := mountAt(target)
	if err == nil && mounted == nil {
		err = errNotOnTop
	}
	if err != nil {
		stuck = true
		return fmt.Errorf("finding the mount on %s: %w", target, err)
	}
	l.undo = append(l.undo, func() error {
		err := takeOff(mounted)
		stuck = err != nil
		return err
	})
	if err := s.inherit(ctx, target, layers); err != nil {
		return fmt.Errorf("finding what directories are: %w", err)
	}
	return nil
}

// newMount makes a directory below overlay/ that sweep leaves alone until
// mountDone. Its name is like no other, in whatever store.
func (s *Store) newMount() (dir string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := strings.ToLower(rand.Text())
	dir = s.path("overlay", id)
	if err = os.Mkdir(dir, 0o700); err == nil {
		s.mounts[id] = struct{}{}
	}
	return dir, err
}

func (s *Store) mountDone(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.mounts, id)
}

// link fills dir with upper/, work/ and l/, and returns the names in l/ of the
// layers, top first. A layer that occurs twice counts where it is topmost: all
// it holds shows there, and overlayfs refuses the same directory twice.
func link(dir string, layers []string) ([]string, error) {
	for _, d := range []string{"upper", "work", "l", "empty"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	if len(layers) == 0 {
		layers = []string{filepath.Join(dir, "empty")} // an image from scratch
	}
	var names []string
	seen := map[string]bool{}
	for _, path := range slices.Backward(layers) {
		if seen[path] {
			continue
		}
		seen[path] = true
		name := strconv.Itoa(len(names))
		if err := os.Symlink(path, filepath.Join(dir, "l", name)); err != nil {
			return nil, err
		}
		names = append(names, name)
	}
	return names, nil
}

// copyRoot gives upper the attributes of the topmost layer root that its
// layer describes: what a mount shows as its root is the upper directory.
func copyRoot(upper string, layers []string) error {
	for _, path := range slices.Backward(layers) {
		st, described, err := layer.RootEntry(path)
		if err != nil {
			return err
		}
		if !described {
			continue
		}
		if err := copyDir(path, upper, st); err != nil {
			return fmt.Errorf("describing the root: %w", err)
		}
		return nil
	}
	return nil
}

// mountIn mounts an overlay on target, which is absolute, with the relative
// paths in options taken from dir.
func mountIn(dir, target, options string) error {
	done := make(chan error, 1)
	go func() {
		// The thread gets a working directory of its own. It is not unlocked,
		// so the runtime ends it with the goroutine.
		runtime.LockOSThread()
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_FS); err != nil {
				return fmt.Errorf("separating the working directory: %w", err)
			}
			if err := unix.Chdir(dir); err != nil {
				return fmt.Errorf("entering %s: %w", dir, err)
			}
			if err := unix.Mount("overlay", target, "overlay", 0, options); err != nil {
				return fmt.Errorf("mount: %w", err)
			}
			return nil
		}()
	}()
	return <-done
}

// sweep removes upper and work directories whose mount is gone: kata-agent
// unmounts a rootfs without telling. What is in them is a container's, which can
// make them impossible to remove; that must not keep others from being pulled.
func (s *Store) sweep(ctx context.Context) error {
	ids, err := s.unmounted()
	if err != nil {
		return err
	}
	for _, id := range ids {
		err := removeAll(ctx, s.path("overlay", id))
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			s.log.Warn("What a container left cannot be removed", "overlay", podvm.Printable(id, 64), "err", podvm.Printable(err.Error(), 300))
		}
	}
	return nil
}

// unmounted lists the names below overlay/ that no mount uses or is about to.
func (s *Store) unmounted() ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	list, err := os.ReadDir(s.path("overlay"))
	if err != nil || len(list) == 0 {
		return nil, err
	}
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("overlay"))
	if err != nil {
		return nil, fmt.Errorf("reading the mount table: %w", err)
	}
	used := map[string]bool{}
	for _, m := range mounts {
		used[mountID(m)] = true
	}
	var ids []string
	for _, d := range list {
		if _, setup := s.mounts[d.Name()]; !setup && !used[d.Name()] {
			ids = append(ids, d.Name())
		}
	}
	return ids, nil
}
