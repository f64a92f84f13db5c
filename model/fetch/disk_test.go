package fetch

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm/testenv"
)

// TestDiskThatLosesWrites: a disk takes what is written and finds out later that it
// cannot keep it, which only syncing tells, and only once.
func TestDiskThatLosesWrites(t *testing.T) {
	testenv.Root(t)
	mkfs, mount := testenv.Tool(t, "mkfs.ext4"), testenv.Tool(t, "mount")
	under, dir := t.TempDir(), t.TempDir()
	if err := unix.Mount("tmpfs", under, "tmpfs", 0, "size=24m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unmount(t, under) })
	disk := filepath.Join(under, "disk")
	if err := errors.Join(os.WriteFile(disk, nil, 0o600), os.Truncate(disk, 128<<20)); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{mkfs, "-q", "-F", "-O", "^has_journal", disk}, {mount, "-o", "loop,errors=continue", disk, dir}} {
		if out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput(); err != nil {
			testenv.Missing(t, "needs a loop device with ext4: "+string(out))
		}
	}
	t.Cleanup(func() { unmount(t, dir) })
	want := map[string][]byte{"big": random(48 << 20)}
	_, plan := plainModel(want)
	if err := openFolder(t, dir).Fetch(t.Context(), plan, 2); !errors.Is(err, unix.EIO) && !errors.Is(err, unix.ENOSPC) {
		t.Fatal("the disk has lost nothing:", err)
	}
	// What is in memory of the file is forgotten, and there is room at last.
	part, err := os.Open(filepath.Join(dir, ".big.part"))
	if err != nil {
		t.Fatal(err)
	}
	err = errors.Join(unix.Fadvise(int(part.Fd()), 0, 0, unix.FADV_DONTNEED), part.Close(), unix.Mount("tmpfs", under, "tmpfs", unix.MS_REMOUNT, "size=200m"))
	if err != nil {
		t.Fatal(err)
	}
	f := openFolder(t, dir)
	if err := f.Fetch(t.Context(), plan, 2); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "big")); err != nil || string(b) != string(want["big"]) {
		t.Errorf("%d bytes that are not those fetched: %v", len(b), err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}

func unmount(t *testing.T, dir string) {
	if err := unix.Unmount(dir, 0); err != nil {
		t.Error(err)
	}
}
