package store

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm/testenv"
)

// TestKilledPullIsUndoneAtTheNextStart: of two pulls one has succeeded when the
// process ends; the other's mount and its layer go, what both use stays.
func TestKilledPullIsUndoneAtTheNextStart(t *testing.T) {
	dir, parent := t.TempDir(), t.TempDir()
	s := openOverlay(t, dir)
	done := s.Begin()
	add(t, done, one, with("a", "1"))
	if err := done.Rootfs(t.Context(), filepath.Join(parent, "done"), []ID{one}); err != nil {
		t.Fatal(err)
	}
	keep(t, done)
	killed := s.Begin()
	if _, err := killed.Layer(t.Context(), one, nil); err != nil {
		t.Fatal(err)
	}
	add(t, killed, two, with("b", "2"))
	if err := killed.Rootfs(t.Context(), filepath.Join(parent, "killed"), []ID{one, two}); err != nil {
		t.Fatal(err)
	}
	// And one while it was trying what the kernel can do.
	probe := filepath.Join(dir, "tmp", "probe-1", "rootfs")
	for _, d := range []string{"lower", "upper", "work", "rootfs"} {
		if err := os.MkdirAll(filepath.Join(probe, "..", d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := mountIn(filepath.Dir(probe), probe, "lowerdir=lower,upperdir=upper,workdir=work"); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	s = open(t, dir, false)
	if !s.Has(one) || s.Has(two) || count(t, dir, "layers", "*") != 1 {
		t.Error("want the layer of the pull that succeeded, and only it")
	}
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		a, _ := mountinfo.PrefixFilter(parent)(m)
		b, _ := mountinfo.PrefixFilter(dir)(m)
		return a && b, false
	})
	if err != nil || len(mounts) != 1 || mounts[0].Mountpoint != filepath.Join(parent, "done", "rootfs") {
		t.Errorf("mounts %v, %v", mounts, err)
	}
	if count(t, dir, "overlay", "*") != 1 || count(t, dir, "tmp", "*")+count(t, dir, "unfinished", "*") != 0 {
		t.Error("overlays, staging or marks are left")
	}
	if b, err := os.ReadFile(filepath.Join(parent, "done", "rootfs", "a")); err != nil || string(b) != "1" {
		t.Errorf("the finished pull's rootfs: %q, %v", b, err)
	}
	if err := s.RemoveRootfs(t.Context(), filepath.Join(parent, "done")); err != nil {
		t.Error(err)
	}
}

// TestKeepThatFailsCanBeUndone: a layer without its mark would outlive a pull
// that its caller was told had failed.
func TestKeepThatFailsCanBeUndone(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, true)
	l := s.Begin()
	add(t, l, one, with("a", "1"))
	mark := s.path("unfinished", s.name(one))
	if err := os.Remove(mark); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(mark, "in the way"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := l.Keep(); err == nil {
		t.Error("a mark that stays is no error")
	}
	release(t, l)
	if s.Has(one) || count(t, dir, "layers", "*") != 0 {
		t.Error("the layer stays")
	}
}

// TestKeepTakesMarksOfLayersFirst: killed in the middle of Keep, a mount may go
// with layers that stay, but must not stay without its layers.
func TestKeepTakesMarksOfLayersFirst(t *testing.T) {
	dir, bundle := t.TempDir(), t.TempDir()
	s := openOverlay(t, dir)
	l := s.Begin()
	add(t, l, one, with("a", "1"))
	if err := l.Rootfs(t.Context(), bundle, []ID{one}); err != nil {
		t.Fatal(err)
	}
	mark := s.path("unfinished", s.name(one))
	if err := os.Remove(mark); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(mark, "in the way"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := l.Keep(); err == nil {
		t.Error("a mark that stays is no error")
	}
	// Here the process is killed.
	if err := os.Remove(filepath.Join(mark, "in the way")); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, false)
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(bundle))
	if err != nil || (len(mounts) > 0 && !s.Has(one)) {
		t.Errorf("%d mounts without their layer, %v", len(mounts), err)
	}
	if err := s.RemoveRootfs(t.Context(), bundle); err != nil {
		t.Error(err)
	}
}

// TestLayerThatCannotBeMovedAwayIsNotGutted: what is left of a layer that was
// removed only in part must not count as verified in the next process.
func TestLayerThatCannotBeMovedAwayIsNotGutted(t *testing.T) {
	testenv.Root(t)
	dir := t.TempDir()
	s := open(t, dir, true)
	l := s.Begin()
	add(t, l, one, with("a", "1"))
	busy := s.path("layers", s.name(one), "busy") // so that removing it fails half-way
	if err := os.Mkdir(busy, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", busy, "tmpfs", 0, "size=4k"); err != nil {
		t.Fatal(err)
	}
	unmounted := false
	off := func() {
		if !unmounted {
			unmounted = unix.Unmount(busy, unix.MNT_DETACH) == nil
		}
	}
	defer off()
	if err := os.Remove(s.path("tmp")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.path("tmp"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_ = l.Release() // may complain
	if s.Has(one) {
		if b, err := os.ReadFile(s.path("layers", s.name(one), "a")); string(b) != "1" {
			t.Errorf("in the same process: %q, %v", b, err)
		}
	}
	off()
	if err := os.Remove(s.path("tmp")); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, true)
	if s.Has(one) || count(t, dir, "layers", "*") != 0 {
		t.Error("the layer of a pull that failed is there in the next process")
	}
}

// TestOnlyOwnMountsAreTakenOff: what somebody mounted over an unfinished rootfs
// stays, at the end of the pull and at the next start, and the mount below it
// goes as soon as it can be seen.
func TestOnlyOwnMountsAreTakenOff(t *testing.T) {
	dir, bundle := t.TempDir(), t.TempDir()
	rootfs := filepath.Join(bundle, "rootfs")
	foreign := func() {
		t.Helper()
		var st unix.Statfs_t
		if err := unix.Statfs(rootfs, &st); err != nil || st.Type != unix.TMPFS_MAGIC {
			t.Fatalf("the foreign mount is gone: type %#x, %v", st.Type, err)
		}
	}
	s := openOverlay(t, dir)
	l := s.Begin()
	add(t, l, one, with("a", "1"))
	if err := l.Rootfs(t.Context(), bundle, []ID{one}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", rootfs, "tmpfs", 0, "size=4k"); err != nil {
		t.Fatal(err)
	}
	covered := true
	defer func() {
		if covered {
			_ = unix.Unmount(rootfs, unix.MNT_DETACH)
			_ = unix.Unmount(rootfs, unix.MNT_DETACH)
		}
	}()
	if err := l.Release(); err == nil {
		t.Error("a mount that stays is no error")
	}
	foreign()
	for range 2 {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = open(t, dir, false)
		foreign()
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Unmount(rootfs, 0); err != nil {
		t.Fatal(err)
	}
	covered = false
	open(t, dir, false)
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(bundle))
	if err != nil || len(mounts) != 0 || count(t, dir, "overlay", "*")+count(t, dir, "unfinished", "*") != 0 {
		t.Errorf("mounts %v, or files, are left, %v", mounts, err)
	}
}

// TestForeignMountInTheWorkDirectoryStays: a store does not open over one, but
// does not take it off either.
func TestForeignMountInTheWorkDirectoryStays(t *testing.T) {
	dir := t.TempDir()
	s := openOverlay(t, dir)
	at := filepath.Join(dir, "tmp", "probe-1", "rootfs")
	if err := os.MkdirAll(at, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", at, "tmpfs", 0, "size=4k"); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(at, "f")
	if err := errors.Join(os.WriteFile(file, nil, 0o600), s.Close()); err != nil {
		t.Fatal(err)
	}
	if s, err := Open(t.Context(), dir, Options{}); err == nil {
		t.Errorf("opened all the same: %v", s.Close())
	}
	if _, err := os.Lstat(file); err != nil {
		t.Error(err)
	}
	if err := unix.Unmount(at, 0); err != nil {
		t.Fatal(err)
	}
	open(t, dir, false)
}
