package volume

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/testenv"
)

func plain(name string, lun int) Volume {
	return Volume{Name: name, MountPoint: "/data", LUN: lun, FSType: "ext4"}
}

func (m *machine) attach(mgr *Manager, v Volume) string {
	m.Helper()
	dir, err := mgr.Attach(m.Context(), v)
	m.ok(err)
	if want := m.path(Base, v.Name); dir != want {
		m.Errorf("%s, want %s", dir, want)
	}
	return dir
}

func TestPlainVolume(t *testing.T) {
	for _, fs := range []string{"ext4", "ext3", "xfs"} {
		t.Run(fs, func(t *testing.T) {
			if fs == "xfs" {
				testenv.Tool(t, "mkfs.xfs")
			}
			m := newDiskMachine(t)
			m.disk("vdb", "", 320) // xfs wants 300
			group := 4321
			v := plain("data", 0)
			v.FSType, v.FSGroup = fs, &group
			mgr := m.manager(nil)
			dir := m.attach(mgr, v)
			m.ok(os.WriteFile(filepath.Join(dir, "file"), []byte("precious"), 0o600))

			mounts := m.mounts()
			if len(mounts) != 1 || mounts[0].FSType != fs || !strings.Contains(mounts[0].Options, "nosuid,nodev") {
				t.Errorf("%+v", mounts)
			}
			var st unix.Stat_t
			m.ok(unix.Stat(dir, &st))
			if st.Gid != 4321 || st.Uid != 0 || st.Mode&0o7777 != 0o2775 {
				t.Errorf("group %d, owner %d, mode %o", st.Gid, st.Uid, st.Mode)
			}

			m.ok(os.Chmod(dir, 0o755))
			m.attach(mgr, v) // again
			if n := len(m.mounts()); n != 1 {
				t.Errorf("%d mounts", n)
			}
			if info, err := os.Stat(dir); err != nil || info.Mode() != os.ModeDir|os.ModeSetgid|0o775 {
				t.Errorf("%v, %v", info.Mode(), err)
			}
			mgr.DetachAll(t.Context())
			m.nothingMounted()
			mgr.DetachAll(t.Context())

			dir = m.attach(m.manager(nil), v)
			if b, err := os.ReadFile(filepath.Join(dir, "file")); string(b) != "precious" || err != nil {
				t.Errorf("%q, %v", b, err)
			}
			if n := strings.Count(m.log.String(), "how=formatted"); n != 1 {
				t.Errorf("formatted %d times\n%s", n, m.log)
			}
		})
	}
}

// What a disk has is mounted as what it is.
func TestAnotherFileSystemThanWanted(t *testing.T) {
	testenv.Tool(t, "mkfs.xfs")
	m := newDiskMachine(t)
	m.run("mkfs.xfs", "-q", m.disk("vdb", "", 320))
	m.attach(m.manager(nil), plain("data", 0))
	if mounts := m.mounts(); len(mounts) != 1 || mounts[0].FSType != "xfs" {
		t.Errorf("%+v", mounts)
	}
}

func (m *machine) run(program string, args ...string) {
	m.Helper()
	if out, err := exec.Command(testenv.Tool(m, program), args...).CombinedOutput(); err != nil {
		m.Fatalf("%s: %v %s", program, err, out)
	}
}

func (m *machine) put(device string, at int64, b []byte) {
	m.Helper()
	f, err := os.OpenFile(device, os.O_WRONLY, 0)
	m.ok(err)
	defer f.Close()
	_, err = f.WriteAt(b, at)
	m.ok(errors.Join(err, f.Sync()))
}

func (m *machine) sum(device string) [32]byte {
	m.Helper()
	f, err := os.Open(device)
	m.ok(err)
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	m.ok(err)
	return [32]byte(h.Sum(nil))
}

// Nothing is written to a disk that is not empty, cannot be read, or is in use.
func TestNeverFormatted(t *testing.T) {
	for name, c := range map[string]struct {
		prepare func(m *machine, device string)
		want    error
		cause   string
	}{
		"swap":              {func(m *machine, d string) { m.run("mkswap", d) }, ErrForeign, "carries data (swap)"},
		"a partition table": {func(m *machine, d string) { m.put(d, 0, mbr()) }, ErrForeign, "carries data (dos)"},
		"an encrypted disk": {func(m *machine, d string) {
			m.run("cryptsetup", "luksFormat", "--batch-mode", "--type", "luks2", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--key-file", "/proc/version", d)
		}, ErrForeign, "carries data (crypto_LUKS)"},
		"a file system of another kind": {func(m *machine, d string) {
			m.put(d, 0, append([]byte("hsqs"), make([]byte, 92)...))
			m.put(d, 28, []byte{4, 0, 0, 0})
		}, ErrForeign, "carries data (squashfs)"},
		"a broken ext4": {func(m *machine, d string) {
			m.run("mkfs.ext4", "-q", "-b", "4096", d)
			m.put(d, 4096, bytes.Repeat([]byte{0xff}, 4096)) // the block groups
		}, ErrForeign, "carries ext4 that does not mount"},
		"two signatures": {func(m *machine, d string) {
			m.run("mkfs.ext4", "-q", "-b", "4096", d)
			m.put(d, 4096, bytes.Repeat([]byte{0xff}, 4096))
			m.put(d, 0, append([]byte("hsqs"), make([]byte, 92)...))
			m.put(d, 28, []byte{4, 0, 0, 0})
		}, ErrForeign, "something that blkid cannot tell"},
		"mounted elsewhere": {func(m *machine, d string) {
			m.run("mkfs.ext4", "-q", d)
			m.ok(errors.Join(os.Mkdir(m.path("elsewhere"), 0o755), unix.Mount(d, m.path("elsewhere"), "ext4", unix.MS_RDONLY, "")))
		}, ErrBusy, "in use"},
		"with partitions": {func(m *machine, _ string) { m.write("250:1\n", "sys/block/vdb/vdb1/dev") }, ErrBusy, "in use"},
		"part of another": {func(m *machine, _ string) { m.link("../../dm-0", "sys/block/vdb/holders/dm-0") }, ErrBusy, "in use"},
		"claimed": {func(m *machine, d string) {
			f, err := os.OpenFile(d, os.O_RDONLY|unix.O_EXCL, 0)
			m.ok(err)
			m.Cleanup(func() { f.Close() })
		}, ErrBusy, "in use"},
		"too small": {func(m *machine, _ string) {
			m.ok(os.Truncate(m.path("images/vdb"), 64<<10))
			m.run("losetup", "--set-capacity", m.loop("vdb"))
		}, nil, "cannot be read"},
		"other than in sysfs": {func(m *machine, _ string) { m.write("250:77\n", "sys/block/vdb/dev") }, ErrDevice, "no device node"},
	} {
		t.Run(name, func(t *testing.T) {
			m := newDiskMachine(t)
			device := m.disk("vdb", "", 32)
			c.prepare(m, device)
			before := m.sum(device)
			_, err := m.manager(nil).Attach(t.Context(), plain("data", 0))
			if err == nil || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(podvm.Cause(err), c.cause) || podvm.Cause(err) == "" {
				t.Errorf("%v", err)
			}
			if m.sum(device) != before {
				t.Error("the disk was written to")
			}
			if n := m.ran("mkfs.ext4", ""); n != 0 {
				t.Errorf("mkfs.ext4 ran %d times", n)
			}
			if _, err := os.Lstat(m.path(Base, "data")); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the directory stays: %v", err)
			}
		})
	}
}

// mbr is a partition table with one partition.
func mbr() []byte {
	b := make([]byte, 512)
	copy(b[446:], []byte{0, 0, 2, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 16, 0, 0})
	b[510], b[511] = 0x55, 0xaa
	return b
}

// loop returns the loop device of a disk.
func (m *machine) loop(name string) string {
	m.Helper()
	out, err := exec.Command("losetup", "--noheadings", "--output", "NAME", "--associated", m.path("images", name)).Output()
	m.ok(err)
	return strings.TrimSpace(string(out))
}

// A disk whose sectors cannot be read is one without a signature to blkid.
func TestADiskThatCannotBeReadIsNotFormatted(t *testing.T) {
	for name, at := range map[string]int64{"at its end": 1 << 20, "at all": 32 << 20} {
		t.Run(name, func(t *testing.T) {
			m := newDiskMachine(t)
			device := m.disk("vdb", "", 32)
			// The loop device keeps its size while the image loses its end.
			m.ok(os.Truncate(m.path("images/vdb"), 32<<20-at))
			m.run("blockdev", "--flushbufs", device)
			_, err := m.manager(nil).Attach(t.Context(), plain("data", 0))
			if err == nil || podvm.Cause(err) == "" {
				t.Errorf("%v", err)
			}
			if n := m.ran("mkfs.ext4", ""); n != 0 {
				t.Errorf("mkfs.ext4 ran %d times", n)
			}
		})
	}
}

// Whatever is in the way of a mount point, nothing is mounted or made elsewhere.
func TestPlacesThatLeadElsewhere(t *testing.T) {
	for name, prepare := range map[string]func(m *machine){
		"the base is a link":        func(m *machine) { m.link("../elsewhere", Base[1:]) },
		"the directory is a link":   func(m *machine) { m.link("../../elsewhere", Base[1:]+"/data") },
		"the directory is a file":   func(m *machine) { m.write("", Base+"/data") },
		"the base is a file":        func(m *machine) { m.write("", Base) },
		"a link that leads nowhere": func(m *machine) { m.link("../../elsewhere/new", Base[1:]+"/data") },
		"something else is mounted": func(m *machine) {
			m.ok(errors.Join(os.MkdirAll(m.path(Base, "data"), 0o755), unix.Mount("none", m.path(Base, "data"), "tmpfs", 0, "size=64k")))
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := newDiskMachine(t)
			m.disk("vdb", "", 32)
			m.ok(os.Mkdir(m.path("elsewhere"), 0o755))
			prepare(m)
			before := len(m.mounts())
			if _, err := m.manager(nil).Attach(t.Context(), plain("data", 0)); err == nil || podvm.Cause(err) == "" {
				t.Errorf("%v", err)
			}
			if left, err := os.ReadDir(m.path("elsewhere")); err != nil || len(left) > 0 || len(m.mounts()) != before {
				t.Errorf("%v, %v, %d mounts", left, err, len(m.mounts()))
			}
		})
	}
}

func TestManyAttachTheSameVolume(t *testing.T) {
	m := newDiskMachine(t)
	m.disk("vdb", "", 32)
	mgr := m.manager(nil)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := mgr.Attach(t.Context(), plain("data", 0)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := m.ran("mkfs.ext4", ""); n != 1 || len(m.mounts()) != 1 {
		t.Errorf("formatted %d times, mounts: %v", n, m.mounts())
	}
}

// The host may list one disk under several names.
func TestTwoVolumesOnOneDisk(t *testing.T) {
	m := newDiskMachine(t)
	m.disk("vdb", "", 32)
	mgr := m.manager(nil)
	errs := make(chan error, 2)
	for _, name := range []string{"a", "b"} {
		go func() {
			_, err := mgr.Attach(t.Context(), plain(name, 0))
			errs <- err
		}()
	}
	err := errors.Join(<-errs, <-errs)
	if !errors.Is(err, ErrBusy) || len(m.mounts()) != 1 || m.ran("mkfs.ext4", "") != 1 {
		t.Errorf("%v, %v", err, m.mounts())
	}
}

func TestCancelledWhileFormatting(t *testing.T) {
	m := newDiskMachine(t)
	m.disk("vdb", "", 32)
	m.write("", "hang")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	mgr := m.manager(nil)
	go func() {
		_, err := mgr.Attach(ctx, plain("data", 0))
		done <- err
	}()
	for m.ran("mkfs.ext4", "") == 0 {
		time.Sleep(time.Millisecond)
	}
	// Another one waits no longer than it wants to.
	short, stop := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer stop()
	if _, err := mgr.Attach(short, plain("data", 0)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	m.nothingMounted()
	m.ok(os.Remove(m.path("hang")))
	m.attach(mgr, plain("data", 0))
}

// mkfs.xfs begins with a signature. When it fails or is killed, as when a caller gives
// up, that must not keep the next call from the disk.
func TestAnUnfinishedFileSystemIsTakenBack(t *testing.T) {
	for _, end := range []string{"fails", "hangs"} {
		t.Run("it "+end, func(t *testing.T) {
			testenv.Tool(t, "mkfs.xfs")
			m := newDiskMachine(t)
			m.disk("vdb", "", 320)
			self, err := os.Executable()
			m.ok(err)
			m.link(self, "bin/mkfs.xfs")
			m.write("", "unfinished-"+end)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			v := plain("data", 0)
			v.FSType = "xfs"
			done := make(chan error, 1)
			go func() {
				_, err := m.manager(nil).Attach(ctx, v)
				done <- err
			}()
			if end == "hangs" {
				for m.ran("unfinished", "") == 0 {
					time.Sleep(time.Millisecond)
				}
				cancel()
			}
			if err := <-done; err == nil || end == "hangs" && !errors.Is(err, context.Canceled) {
				t.Fatalf("%v", err)
			}
			m.ok(os.Remove(m.path("unfinished-" + end)))
			m.attach(m.manager(nil), v)
		})
	}
}

// The disk may be another machine's, too, which was faster.
func TestAFinishedFileSystemIsNotTakenBack(t *testing.T) {
	m := newDiskMachine(t)
	device := m.disk("vdb", "", 320)
	m.run("mkfs.xfs", "-q", device)
	before := m.sum(device)
	if err := unformat(device); err != nil || m.sum(device) != before {
		t.Errorf("%v, or it is gone", err)
	}
}

func TestWithoutMkfs(t *testing.T) {
	m := newDiskMachine(t)
	m.disk("vdb", "", 32)
	m.ok(os.Symlink(testenv.Tool(t, "blkid"), m.path("bin/blkid")))
	m.env["PATH"] = m.path("bin")
	v := plain("data", 0)
	v.FSType = "xfs"
	_, err := m.manager(nil).Attach(t.Context(), v)
	if !errors.Is(err, ErrMissing) || podvm.Cause(err) != "mkfs.xfs is not installed in the pod VM (Debian package xfsprogs)" {
		t.Errorf("%v", err)
	}
	m.nothingMounted()
}
