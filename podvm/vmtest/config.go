package vmtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/sealpod/sealpod/podvm/testenv"
)

// EnabledEnv is the variable that allows virtual machines when "1". They take
// half a minute, and a download the first time, so plain go test leaves them out.
const EnabledEnv = "SEALPOD_TEST_VM"

// GuestEnv is "1" in the environment of every program in a guest. A test that
// finds it must not skip for want of anything.
const GuestEnv = "SEALPOD_VM"

// Config says what a machine has and does. The zero value boots, does nothing,
// and powers itself off.
type Config struct {
	// Cmd is the program to run as root, as a path in the guest, and its
	// arguments. Its working directory is /tmp, which is in memory.
	Cmd []string
	// Env is added to PATH, HOME, GuestEnv and testenv.RequireEnv.
	Env []string
	// Boot is a disk that the machine's UEFI firmware boots from, /dev/vda then,
	// instead of our kernel and init. What Cmd, Env, Files and KernelArgs say is
	// in the image: see ImageTree.
	Boot *Disk
	// After is a file in the guest's image, which takes Boot, that Cmd waits for
	// without taking the machine's time, though not for ever; empty is none.
	After string
	// Files are put into the guest: absolute path there, path of a regular
	// file here. Permission bits are kept, the owner is root.
	Files map[string]string
	// Disks are /dev/vdb, /dev/vdc and so on.
	Disks []*Disk
	// Ports are TCP ports of the guest that the host can reach, at VM.Addr. With
	// none, the guest has no network.
	Ports []int
	// TPM is the machine's, as TIS device; nil is none.
	TPM *TPM
	// Memory is in MiB; 0 is 1024. The initramfs is in it.
	Memory int
	// Timeout is for everything from power-on to power-off; 0 is two minutes.
	Timeout time.Duration
	// KernelArgs are added to the kernel's command line.
	KernelArgs []string
	// Devices are further arguments of qemu.
	Devices []string
}

// guestEnv is what every program has in its environment.
func guestEnv() []string {
	return []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "TERM=dumb",
		GuestEnv + "=1", testenv.RequireEnv + "=1",
	}
}

// Enabled returns only where virtual machines are wanted and possible.
func Enabled(t testing.TB) {
	t.Helper()
	if os.Getenv(EnabledEnv) != "1" {
		t.Skip("virtual machines run only where " + EnabledEnv + "=1, as in make test-vm")
	}
	for _, tool := range []string{"qemu-system-x86_64", "mmdebstrap", "xz", "go"} {
		testenv.Tool(t, tool)
	}
}

// Disk is the medium of a disk. Machines that have it one after the other see
// what the ones before wrote; two at a time fail to start.
type Disk struct {
	file *os.File
}

// NewDisk makes a disk of size bytes, all zero, for as long as the test runs. It
// takes space only for what is written.
func NewDisk(t testing.TB, size int64) *Disk {
	t.Helper()
	// It has no name, so that not even a killed test leaves it behind.
	f, err := unnamed()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return &Disk{f}
}

// Path names the disk for this process and its children while the test runs.
func (d *Disk) Path() string { return fdPath(d.file) }

func fdPath(f *os.File) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd()) }

// unnamed makes a file that goes when its last user does.
func unnamed() (*os.File, error) {
	f, err := os.CreateTemp("", "vmtest-")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// BuildTest builds the test binary of a package of this module, named like
// "./cdh/mount", so that it runs in a guest, and returns its path.
func BuildTest(t testing.TB, pkg string) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "guest.test")
	if err := build(t, "test", "-c", "-o", bin, pkg); err != nil {
		t.Fatalf("building the tests of %s: %v", pkg, err)
	}
	if _, err := os.Stat(bin); err != nil {
		t.Fatalf("the package %s has no tests", pkg)
	}
	return bin
}

func build(t testing.TB, args ...string) error {
	t.Helper()
	root, err := moduleRoot()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(t.Context(), "go", args...)
	cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	return nil
}
