package unpack

import (
	"crypto/rand"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm/testenv"
)

// TestDiskThatLosesWrites: a disk takes what is written and finds out later that it
// cannot keep it, which only syncing tells.
func TestDiskThatLosesWrites(t *testing.T) {
	testenv.Root(t)
	mkfs, mount := testenv.Tool(t, "mkfs.ext4"), testenv.Tool(t, "mount")
	under, dir := t.TempDir(), t.TempDir()
	if err := unix.Mount("tmpfs", under, "tmpfs", 0, "size=32m"); err != nil {
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
	body := make([]byte, 20<<20)
	rand.Read(body)
	archive, err := os.Create(filepath.Join(dir, "m.tar"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = archive.Write(tarOf(t, entry{name: "big", body: string(body)}))
	if err = errors.Join(err, archive.Sync(), archive.Close()); err != nil { // there is room for it and no more
		t.Fatal(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if err := InPlace(t.Context(), root, "m.tar", Options{}); err == nil {
		t.Error("what is lost was not missed")
	}
	if _, err := root.Stat("big"); err == nil {
		t.Error("a file with holes has its name")
	}
}

func unmount(t *testing.T, dir string) {
	if err := unix.Unmount(dir, 0); err != nil {
		t.Error(err)
	}
}
