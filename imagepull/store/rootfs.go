package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/imagepull/layer"
	"github.com/sealpod/sealpod/podvm"
)

// ErrRootfs says that the bundle's rootfs is occupied by something this store
// did not put there.
var ErrRootfs = errors.New("rootfs is occupied")

// Rootfs makes bundle/rootfs from layers, base first, all held by the lease:
// one overlay mount, or in Plain mode a merged directory. bundle and its
// parents are created if missing. A mount of this store from an earlier pull
// into the same bundle is replaced, never stacked upon.
//
// Errors: ErrRootfs, the cause of ctx.
func (l *Lease) Rootfs(ctx context.Context, bundle string, layers []ID) error {
	s := l.store
	bundle, err := l.bundle(bundle)
	if err != nil {
		return fmt.Errorf("preparing the bundle: %w", err)
	}
	target := filepath.Join(bundle, "rootfs")
	if err := s.vacate(target); err != nil {
		return fmt.Errorf("preparing %s: %w", target, err)
	}
	dirs := make([]string, 0, len(layers))
	for _, id := range layers {
		dirs = append(dirs, s.path("layers", s.name(id)))
	}
	if s.mode == layer.Plain {
		return l.merge(ctx, bundle, target, dirs)
	}
	if err := l.mkdirAll(target); err != nil {
		return fmt.Errorf("creating %s: %w", target, err)
	}
	return l.mount(ctx, target, dirs)
}

// RemoveRootfs takes back the rootfs of bundle: the overlay mount with its upper
// directory, or the merged directory. The bundle stays.
//
// Errors: ErrRootfs when something else is mounted there, the cause of ctx.
func (s *Store) RemoveRootfs(ctx context.Context, bundle string) error {
	bundle, err := filepath.EvalSymlinks(bundle)
	if err != nil {
		return fmt.Errorf("taking the rootfs back: %w", err)
	}
	target := filepath.Join(bundle, "rootfs")
	if err := s.unmountOwn(target); err != nil {
		return fmt.Errorf("taking %s back: %w", target, err)
	}
	if s.mode != layer.Plain {
		err = os.Remove(target) // empty below the mount
	} else {
		err = removeAll(ctx, target)
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err = errors.Join(err, s.sweep(ctx)); err != nil {
		return fmt.Errorf("taking %s back: %w", target, err)
	}
	return nil
}

// bundle creates the bundle directory and returns it without symbolic links.
func (l *Lease) bundle(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if err := l.mkdirAll(dir); err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(dir)
}

// mkdirAll is os.MkdirAll that remembers what it made. Release removes those
// directories again if they are empty then.
func (l *Lease) mkdirAll(dir string) error {
	err := os.Mkdir(dir, 0o755)
	if errors.Is(err, fs.ErrNotExist) {
		if err := l.mkdirAll(filepath.Dir(dir)); err != nil {
			return err
		}
		err = os.Mkdir(dir, 0o755)
	}
	if errors.Is(err, fs.ErrExist) {
		info, err := os.Stat(dir)
		if err == nil && !info.IsDir() {
			err = fmt.Errorf("%s is not a directory", dir)
		}
		return err
	}
	if err == nil {
		l.undo = append(l.undo, func() error { return os.Remove(dir) })
	}
	return err
}

// vacate makes sure that target is free: absent, or an empty directory that is
// not a mount point.
func (s *Store) vacate(target string) error {
	if err := s.unmountOwn(target); err != nil {
		return err
	}
	info, err := os.Lstat(target)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return occupied("it is not a directory")
	}
	list, err := os.ReadDir(target)
	if err != nil {
		return err
	}
	if len(list) > 0 {
		return occupied("it is not empty")
	}
	return nil
}

func occupied(why string) error {
	return podvm.Explain(fmt.Errorf("%w: %s", ErrRootfs, why), "the rootfs of the bundle is occupied: "+why)
}

// merge builds the directory beside target and renames it into place.
func (l *Lease) merge(ctx context.Context, bundle, target string, dirs []string) error {
	tmp := filepath.Join(bundle, ".rootfs.new") // may be there from a pull that was killed
	err := removeAll(ctx, tmp)
	if err == nil {
		err = os.Mkdir(tmp, 0o700)
	}
	if err != nil {
		return fmt.Errorf("creating the merged directory: %w", err)
	}
	where := tmp
	existed := true
	if _, err := os.Lstat(target); errors.Is(err, fs.ErrNotExist) {
		existed = false
	}
	l.undo = append(l.undo, func() error {
		err := removeAll(context.WithoutCancel(ctx), where)
		if where == target && existed {
			err = errors.Join(err, os.Mkdir(target, 0o755))
		}
		return err
	})
	if err := os.Chmod(tmp, 0o755); err != nil {
		return fmt.Errorf("preparing the merged directory: %w", err)
	}
	if err := layer.Merge(ctx, dirs, tmp); err != nil {
		return err
	}
	// os.Rename refuses even an empty directory in the way.
	if err := unix.Rename(tmp, target); err != nil {
		return fmt.Errorf("publishing the merged directory: %w", err)
	}
	where = target
	return nil
}
