package scratch

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/cdh/mount/luks"
)

const disk = "/dev/vdd" // of the machine; may be overwritten

func inVM(t *testing.T) {
	t.Helper()
	if os.Getenv("SEALPOD_VM") != "1" {
		t.Skip("needs a device-mapper and disks to overwrite: make test-vm runs it")
	}
	// Without udev, which the machine has not, cryptsetup makes its nodes itself.
	t.Setenv("DM_DISABLE_UDEV", "1")
}

// The life of scratch storage on a real device-mapper.
func TestVMBeforeRebootScratchStorage(t *testing.T) {
	inVM(t)
	s, links := here(t)
	link(t, disk, links)

	ext4(t, disk, "data")
	if err := s.mount(t.Context()); !errors.Is(err, luks.ErrForeign) {
		t.Fatalf("a disk with data: %v", err)
	}
	ext4(t, disk, Label)
	start := time.Now()
	if err := s.mount(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Logf("FIGURE scratch storage of 256 MiB in an emulated machine: %v", time.Since(start).Round(time.Millisecond))
	file := filepath.Join(s.point, "layer")
	if err := os.WriteFile(file, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	// Another process, as after a restart of the unit.
	again := newStorage(Config{})
	again.links, again.point = s.links, s.point
	if err := again.mount(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(file); err != nil {
		t.Error(err)
	}
	mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(s.point))
	if err != nil || len(mounts) != 1 || mounts[0].FSType != "ext4" || mounts[0].Source != "/dev/mapper/scratch" {
		t.Errorf("%+v, %v", mounts, err)
	}
	if found, err := s.run.Signature(t.Context(), disk); err != nil || found == "ext4" {
		t.Errorf("the disk shows %q, %v", found, err)
	}
	if err := unix.Unmount(s.point, 0); err != nil {
		t.Fatal(err)
	}
	// Unmounted by somebody else: it is there until the boot ends.
	if err := s.mount(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(file); err != nil {
		t.Error(err)
	}
	if err := unix.Unmount(s.point, 0); err != nil {
		t.Fatal(err)
	}
	unix.Sync() // and the power goes off
}

// The next boot finds what it cannot read, and makes a new one.
func TestVMAfterRebootScratchStorageIsNew(t *testing.T) {
	inVM(t)
	s, links := here(t)
	link(t, disk, links)
	if err := s.mount(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(s.point, "layer")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("files of an earlier volume: %v", err)
	}
	if err := unix.Unmount(s.point, 0); err != nil {
		t.Fatal(err)
	}
}
