package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm/testenv"
)

// deep makes a directory with a chain of others in it, each with a file.
func deep(t *testing.T, levels int) string {
	t.Helper()
	top := filepath.Join(t.TempDir(), "top")
	if err := os.Mkdir(top, 0o700); err != nil {
		t.Fatal(err)
	}
	at, err := unix.Open(top, unix.O_PATH|unix.O_DIRECTORY, 0)
	for i := range levels {
		if err == nil {
			err = unix.Mkdirat(at, "d", 0o700)
		}
		if err == nil && i%100 == 0 {
			err = unix.Mknodat(at, "f", unix.S_IFREG|0o600, 0)
		}
		var next int
		if err == nil {
			next, err = unix.Openat(at, "d", unix.O_PATH|unix.O_DIRECTORY, 0)
		}
		if err != nil {
			t.Fatal(err)
		}
		_ = unix.Close(at)
		at = next
	}
	_ = unix.Close(at)
	return top
}

// TestDeepTreeTakesFewDescriptors: a container can nest directories deeper than
// a process may have files open.
func TestDeepTreeTakesFewDescriptors(t *testing.T) {
	top := deep(t, 10_000)
	// The names for what is moved up may be taken.
	for _, dir := range []string{".removed-0", ".removed-1", filepath.Join("d", ".removed-2")} {
		if err := os.Mkdir(filepath.Join(top, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	few := before
	few.Cur = 200
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &few); err != nil {
		t.Fatal(err)
	}
	err := removeAll(t.Context(), top)
	if e := unix.Setrlimit(unix.RLIMIT_NOFILE, &before); e != nil {
		t.Fatal(e)
	}
	if _, e := os.Lstat(top); err != nil || !errors.Is(e, os.ErrNotExist) {
		t.Errorf("%v, %v", err, e)
	}
}

func TestRemoveAllEndsWithTheContext(t *testing.T) {
	top := deep(t, 3)
	why := errors.New("given up")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	if err := removeAll(ctx, top); !errors.Is(err, why) {
		t.Error(err)
	}
	if _, err := os.Lstat(top); err != nil {
		t.Error(err)
	}
	// So does what opens a store, and it can be opened later.
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "overlay", "1", "upper"), 0o700); err != nil {
		t.Fatal(err)
	}
	if s, err := Open(ctx, dir, Options{Plain: true}); !errors.Is(err, why) {
		t.Errorf("%v, %v", s, err)
	}
	open(t, dir, true)
	if count(t, dir, "overlay", "*") != 0 {
		t.Error("not swept")
	}
}

// TestRemoveAllStaysInItsTree: neither links nor mounts lead it elsewhere.
func TestRemoveAllStaysInItsTree(t *testing.T) {
	testenv.Root(t)
	elsewhere, top := t.TempDir(), filepath.Join(t.TempDir(), "top")
	precious := filepath.Join(elsewhere, "precious")
	bound := filepath.Join(top, "a", "bound")
	if err := errors.Join(os.WriteFile(precious, nil, 0o600), os.MkdirAll(bound, 0o700), os.Symlink(elsewhere, filepath.Join(top, "link"))); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(elsewhere, bound, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	err := removeAll(t.Context(), top)
	if e := unix.Unmount(bound, unix.MNT_DETACH); e != nil {
		t.Fatal(e)
	}
	if err == nil || count(t, top, "link") != 0 {
		t.Errorf("%v, or the link stays", err)
	}
	if _, e := os.Lstat(precious); e != nil {
		t.Error(e)
	}
	if err := errors.Join(removeAll(t.Context(), top), removeAll(t.Context(), top), removeAll(t.Context(), filepath.Join(top, "x"))); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(top); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

// TestRemoveAllOfWideTrees: more entries than are read at a time, also where
// directories are moved to the top.
func TestRemoveAllOfWideTrees(t *testing.T) {
	top := deep(t, maxHeld+2)
	dir := top
	for range maxHeld - 2 {
		dir = filepath.Join(dir, "d")
	}
	for i := range 700 {
		one := filepath.Join(dir, fmt.Sprint(i))
		if err := errors.Join(os.MkdirAll(filepath.Join(one, "a", "b"), 0o700), os.WriteFile(one+".txt", nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if err := removeAll(t.Context(), top); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(top); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

// TestRemoveAllWithoutPermissions: an image may leave directories that their
// owner cannot read or write.
func TestRemoveAllWithoutPermissions(t *testing.T) {
	top := deep(t, maxHeld+2)
	var dirs []string
	for dir, i := top, 0; i < maxHeld+2; i++ {
		dir = filepath.Join(dir, "d")
		dirs = append(dirs, dir)
	}
	for i := len(dirs) - 1; i >= 0; i-- {
		if err := os.Chmod(dirs[i], os.FileMode([]uint32{0, 0o500, 0o300}[i%3])); err != nil {
			t.Fatal(err)
		}
	}
	if err := removeAll(t.Context(), top); err != nil {
		t.Error(err)
	}
}
