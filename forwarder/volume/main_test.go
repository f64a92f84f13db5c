package volume

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/moby/sys/mountinfo"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/rpc"
	"github.com/sealpod/sealpod/podvm/testenv"
)

// TestMain is also the programs that newMachine puts on the PATH, and the
// forwarder that is killed.
func TestMain(m *testing.M) {
	switch name := filepath.Base(os.Args[0]); name {
	case "cryptsetup", "mkfs.ext4", "mkfs.xfs", "udevadm":
		syscall.Exit(fakeProgram(name, os.Args[1:])) // os.Exit takes a second under the race detector
	}
	if os.Getenv(attachProcessEnv) != "" {
		os.Exit(attachProcess())
	}
	goleak.VerifyTestMain(m)
}

// machine is a directory tree in place of a machine. Its disks are loop devices
// under the names of the kernel's for disks, so what blkid, mkfs and mount do to
// them is real. It has no device-mapper; vm_test.go has that.
type machine struct {
	*testing.T
	root string
	env  map[string]string
	log  *lockedBuffer
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{t, root, map[string]string{"PATH": os.Getenv("PATH"), AttemptsEnv: "1"}, &lockedBuffer{}}
	for _, dir := range []string{"dev/mapper", "sys/block", "run", "bin", "images"} {
		m.ok(os.MkdirAll(m.path(dir), 0o755))
	}
	return m
}

// newDiskMachine is newMachine where disks work.
func newDiskMachine(t *testing.T) *machine {
	t.Helper()
	testenv.Root(t)
	for _, program := range []string{"mkfs.ext4", "blkid", "losetup"} {
		testenv.Tool(t, program)
	}
	m := newMachine(t)
	self, err := os.Executable()
	m.ok(err)
	for _, program := range []string{"cryptsetup", "mkfs.ext4", "udevadm"} {
		m.link(self, "bin/"+program)
	}
	m.env["PATH"] = m.path("bin") + ":" + m.env["PATH"]
	m.env[podvm.HostRootEnv] = m.root // for the programs
	t.Cleanup(m.cleanup)
	return m
}

func (m *machine) host() podvm.Host {
	return podvm.Host{Root: m.root, LookupEnv: func(name string) (string, bool) { v, ok := m.env[name]; return v, ok }}
}

func (m *machine) manager(hub *rpc.Client) *Manager {
	return New(Config{Host: m.host(), Hub: hub, Log: slog.New(slog.NewTextHandler(m.log, nil))})
}

func (m *machine) path(elem ...string) string {
	return filepath.Join(append([]string{m.root}, elem...)...)
}

func (m *machine) ok(err error) {
	m.Helper()
	if err != nil {
		m.Fatal(err)
	}
}

func (m *machine) write(text, path string) {
	m.Helper()
	m.ok(os.MkdirAll(filepath.Dir(m.path(path)), 0o755))
	m.ok(os.WriteFile(m.path(path), []byte(text), 0o644))
}

func (m *machine) link(target, path string) {
	m.Helper()
	m.ok(os.MkdirAll(filepath.Dir(m.path(path)), 0o755))
	m.ok(os.Symlink(target, m.path(path)))
}

// sysfs adds a disk to sysfs; address is on the SCSI bus, or "".
func (m *machine) sysfs(name, number, address string) {
	m.Helper()
	m.write(number+"\n", "sys/block/"+name+"/dev")
	if address != "" {
		dir := "sys/devices/bus/host/target/" + address
		m.ok(os.MkdirAll(m.path(dir), 0o755))
		m.link("../../../"+dir, "sys/block/"+name+"/device")
	}
}

// disk adds a disk of size MiB, all zero, and returns its node.
func (m *machine) disk(name, address string, size int64) string {
	m.Helper()
	image := m.path("images", name)
	m.ok(errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, size<<20)))
	out, err := exec.Command("losetup", "--find", "--show", image).Output()
	m.ok(err)
	var st unix.Stat_t
	m.ok(unix.Stat(strings.TrimSpace(string(out)), &st))
	m.sysfs(name, fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev)), address)
	m.ok(unix.Mknod(m.path("dev", name), unix.S_IFBLK|0o600, int(st.Rdev)))
	return m.path("dev", name)
}

func (m *machine) cleanup() {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(m.root))
	if err != nil {
		m.Error(err)
	}
	for _, mount := range mounts {
		_ = unix.Unmount(mount.Mountpoint, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	}
	out, err := exec.Command("losetup", "--noheadings", "--output", "NAME,BACK-FILE").Output()
	if err != nil {
		m.Error(err)
	}
	for line := range strings.Lines(string(out)) {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[1], m.root+"/") {
			if out, err := exec.Command("losetup", "--detach", f[0]).CombinedOutput(); err != nil {
				m.Errorf("%v %s", err, out)
			}
		}
	}
}

// mounts lists what is mounted in the machine, in the order of mounting.
func (m *machine) mounts() []*mountinfo.Info {
	m.Helper()
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(m.root))
	m.ok(err)
	return mounts
}

func (m *machine) nothingMounted() {
	m.Helper()
	for _, mount := range m.mounts() {
		m.Errorf("still mounted: %s on %s", mount.Source, mount.Mountpoint)
	}
	if left, err := os.ReadDir(m.path(Base)); err == nil && len(left) > 0 {
		m.Errorf("left behind: %v", left)
	}
}

// lockedBuffer is a log that several goroutines write.
type lockedBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
