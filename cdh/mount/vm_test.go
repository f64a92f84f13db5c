package mount

import (
	"errors"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm"
)

// The tests in this file run in a virtual machine, in two boots with the same
// disks, all zero in the beginning. See also luks/vm_test.go.

func inVM(t *testing.T) *Mounter {
	t.Helper()
	if os.Getenv("SEALPOD_VM") != "1" {
		t.Skip("needs a device-mapper and disks of its own: runs in a virtual machine, by make test-vm")
	}
	// Without udev, which the machine has not, cryptsetup makes its nodes itself.
	if err := os.Setenv("DM_DISABLE_UDEV", "1"); err != nil {
		t.Fatal(err)
	}
	m, err := New(Config{Keys: keys{"kbs:///default/volume/1": "the passphrase of the owner"}})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// volumes are what the forwarder would ask for, by disk.
func volumes(source string) map[string]Request {
	base := map[string]string{
		"sourceType": source, "targetType": "fileSystem", "encryptionType": "luks2", "filesystemType": "ext4", "key": "kbs:///default/volume/1",
	}
	plain := maps.Clone(base)
	plain["devicePath"], plain["mapperName"] = "/dev/vdb", "caa-plain"
	integrity := maps.Clone(base)
	integrity["devicePath"], integrity["mapperName"], integrity["dataIntegrity"] = "/dev/vdc", "caa-integrity", "true"
	return map[string]Request{
		"plain":     {VolumeType: "block-device", Options: plain, MountPoint: "/run/cloud-volumes/plain"},
		"integrity": {VolumeType: "block-device", Options: integrity, MountPoint: "/run/cloud-volumes/integrity"},
	}
}

func TestVMBeforeRebootVolumesWithAKey(t *testing.T) {
	m := inVM(t)
	for name, req := range volumes("empty") {
		start := time.Now()
		if err := m.Mount(t.Context(), req); err != nil {
			t.Fatal(err)
		}
		t.Logf("FIGURE SecureMount of a new volume (%s): %v", name, time.Since(start).Round(time.Millisecond))
		if err := os.WriteFile(filepath.Join(req.MountPoint, "file"), []byte("precious"), 0o600); err != nil {
			t.Fatal(err)
		}
		// A forwarder that starts again finds a header.
		if err := m.Mount(t.Context(), volumes("encrypted")[name]); err != nil {
			t.Errorf("the same again: %v", err)
		}
	}
	unix.Sync() // and then the power goes
}

// The caller still says empty, as upstream's forwarder may.
func TestVMAfterRebootVolumesWithAKey(t *testing.T) {
	m := inVM(t)
	for name, req := range volumes("empty") {
		start := time.Now()
		if err := m.Mount(t.Context(), req); err != nil {
			t.Fatal(err)
		}
		t.Logf("FIGURE SecureMount of an existing volume (%s): %v", name, time.Since(start).Round(time.Millisecond))
		if b, err := os.ReadFile(filepath.Join(req.MountPoint, "file")); string(b) != "precious" || err != nil {
			t.Errorf("%s: %q, %v", name, b, err)
		}
		if err := unix.Unmount(req.MountPoint, 0); err != nil {
			t.Error(err)
		}
		if out, err := exec.Command("cryptsetup", "close", req.Options["mapperName"]).CombinedOutput(); err != nil {
			t.Errorf("%v %s", err, out)
		}
	}
	req := volumes("encrypted")["plain"]
	if err := m.Mount(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(req.MountPoint, "file")); string(b) != "precious" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
}

func TestVMForeignDataIsNotFormatted(t *testing.T) {
	m := inVM(t)
	const disk = "/dev/vde"
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", "-L", "foreign", disk).CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	req := volumes("empty")["plain"]
	req.Options["devicePath"], req.Options["mapperName"] = disk, "caa-foreign"
	err := m.Mount(t.Context(), req)
	if !errors.Is(err, ErrForeign) || podvm.Cause(err) == "" {
		t.Fatalf("%v", err)
	}
	point := t.TempDir()
	if err := unix.Mount(disk, point, "ext4", unix.MS_RDONLY, ""); err != nil {
		t.Fatalf("it does not mount any more: %v", err)
	}
	if err := unix.Unmount(point, 0); err != nil {
		t.Error(err)
	}
}
