package store

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestLeftoverThatCannotBeRemovedStopsNoPull: what is in an upper directory is a
// container's, which can make it impossible to remove (immutable, or too deep).
func TestLeftoverThatCannotBeRemovedStopsNoPull(t *testing.T) {
	dir, bundle := t.TempDir(), t.TempDir()
	s := openOverlay(t, dir)
	busy := s.path("overlay", "123", "upper", "busy")
	if err := os.MkdirAll(busy, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", busy, "tmpfs", 0, "size=4k"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(busy, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	other := s.path("overlay", "124") // after the one that stays
	if err := os.Mkdir(other, 0o700); err != nil {
		t.Fatal(err)
	}
	l := s.Begin()
	add(t, l, one, with("a", "1"))
	if err := l.Rootfs(t.Context(), bundle, []ID{one}); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(other); err == nil {
		t.Error("what can be removed stays too")
	}
	release(t, l)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := Open(t.Context(), dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(filepath.Dir(busy)); err != nil {
		t.Error(err)
	}
}
