// Command init is the first program of a pod VM's image. It takes the root file
// system under dm-verity and hands over to systemd. When anything is not as the
// image was built, it ends, and the kernel panics: there is no other way on.
//
// It is measured with the kernel. Disk, firmware variables and everything else it
// sees come from the host, which may lie.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm/image/internal/bootspec"
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "init: only the kernel of a pod VM runs this")
		os.Exit(2)
	}
	fmt.Fprintln(os.Stderr, "pod VM: the boot cannot go on:", run())
	os.Exit(1)
}

// run returns only when it fails.
func run() error {
	for _, m := range []struct {
		kind, options string
		flags         uintptr
	}{
		{"devtmpfs", "mode=0755", unix.MS_NOSUID},
		{"proc", "", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		{"sysfs", "", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
	} {
		at := mountPoints[m.kind]
		if err := unix.Mount(m.kind, at, m.kind, m.flags, m.options); err != nil {
			return fmt.Errorf("mounting %s: %w", at, err)
		}
	}
	spec, err := readSpec()
	if err != nil {
		return err
	}
	if err := checkCmdline(spec.Cmdline); err != nil {
		return err
	}
	if err := loadModules(); err != nil {
		return err
	}
	data, hashes, err := findPartitions(spec.Data, spec.Hash)
	if err != nil {
		return err
	}
	device, err := openVerity(spec, data, hashes)
	if err != nil {
		return fmt.Errorf("setting up dm-verity: %w", err)
	}
	if err := unix.Mount(device, "/root", "squashfs", unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("mounting the root file system, which may be damaged: %w", err)
	}
	return switchRoot()
}

var mountPoints = map[string]string{"devtmpfs": "/dev", "proc": "/proc", "sysfs": "/sys"}

func readSpec() (*bootspec.Spec, error) {
	raw, err := os.ReadFile(bootspec.Path)
	if err != nil {
		return nil, fmt.Errorf("reading what to boot: %w", err)
	}
	var spec bootspec.Spec
	if err := json.Unmarshal(raw, &spec); err != nil {
		return nil, fmt.Errorf("reading what to boot: %w", err)
	}
	return &spec, nil
}

// checkCmdline refuses any other command line than the image's own: firmware can
// pass one when Secure Boot is off, and it could tell systemd to run anything.
func checkCmdline(want string) error {
	got, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	if strings.TrimSuffix(string(got), "\n") != want {
		return errors.New("the kernel's command line is not the one of this image")
	}
	return nil
}

// loadModules loads what the image has, which is in an order that meets all
// dependencies. Where one is missed for it fails, the disk is not found.
func loadModules() error {
	paths, err := filepath.Glob(bootspec.ModuleDir + "/*.ko")
	if err != nil {
		return err
	}
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		_ = f.Close()
		// Without the device or the processor it is for, a module says ENODEV, and
		// one that needs that module ENOENT.
		if err != nil && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.ENOENT) {
			fmt.Fprintf(os.Stderr, "pod VM: loading %s: %v\n", filepath.Base(path), err)
		}
	}
	return nil
}

// switchRoot makes /root the root and starts systemd.
func switchRoot() error {
	// The memory of the initrd is the guest's again.
	for _, path := range []string{"/init", bootspec.Path, bootspec.ModuleDir} {
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	}
	for _, at := range mountPoints {
		if err := unix.Mount(at, "/root"+at, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("moving %s: %w", at, err)
		}
	}
	if err := os.Chdir("/root"); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("moving the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	const systemd = "/usr/lib/systemd/systemd"
	return fmt.Errorf("starting systemd: %w", unix.Exec(systemd, []string{systemd}, []string{"TERM=linux", "HOME=/"}))
}
