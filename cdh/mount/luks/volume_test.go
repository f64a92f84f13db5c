package luks

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/testenv"
	"github.com/sealpod/sealpod/podvm/tool"
)

func keyOf(key string) func(context.Context) (podvm.Secret, error) {
	return func(context.Context) (podvm.Secret, error) { return podvm.Secret(key), nil }
}

// ephemeral and keyed are the requests of the tests.
func (m *machine) ephemeral(disk, point string) Volume {
	return Volume{Device: disk, Filesystem: true, MountPoint: m.point(point), Digest: "ephemeral"}
}

func (m *machine) keyed(disk, point string) Volume {
	v := m.ephemeral(disk, point)
	v.Key, v.Digest, v.MapperName = keyOf(string(testKey)), "keyed", "caa-"+uuid.NewString()
	return v
}

func (m *machine) mount(v Volume) {
	m.t.Helper()
	if err := m.Mount(m.t.Context(), v); err != nil {
		m.t.Fatalf("%v", err)
	}
}

func (m *machine) fails(v Volume, want error, cause string) {
	m.t.Helper()
	err := m.Mount(m.t.Context(), v)
	if want != nil && !errors.Is(err, want) || err == nil || !strings.Contains(podvm.Cause(err), cause) {
		m.t.Fatalf("error %v with cause %q, want %v with %q", err, podvm.Cause(err), want, cause)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func holds(t *testing.T, path, text string) {
	t.Helper()
	if got, err := os.ReadFile(path); err != nil || string(got) != text {
		t.Fatalf("%s holds %q, %v, want %q", path, got, err, text)
	}
}

// reboot forgets what the kernel and /run know; disks stay.
func (m *machine) reboot() {
	m.t.Helper()
	m.cleanup()
	for _, dir := range []string{"dm", "run", "mnt", "dev/mapper"} {
		if err := os.RemoveAll(filepath.Join(m.root, dir)); err != nil {
			m.t.Fatal(err)
		}
	}
	for _, dir := range []string{"dm", "mnt", "dev/mapper"} {
		if err := os.MkdirAll(filepath.Join(m.root, dir), 0o755); err != nil {
			m.t.Fatal(err)
		}
	}
}

// The forwarder says empty unless it sees a LUKS magic. A volume with a key must
// survive either.
func TestKeyedVolumeSurvivesAReboot(t *testing.T) {
	m := newMachine(t)
	v := m.keyed(m.disk("a", 64<<20), "a")
	m.mount(v)
	write(t, m.point("a/file"), "precious")
	for _, encrypted := range []bool{true, false} {
		m.unmount(m.point("a"))
		m.reboot()
		v.Encrypted = encrypted
		m.mount(v)
		holds(t, m.point("a/file"), "precious")
	}
	left, _ := filepath.Glob(filepath.Join(m.root, headerDir[1:], "*.header"))
	if len(left) > 0 {
		t.Errorf("headers stay in memory: %v", left)
	}
}

// What a volume without a key held is gone after the boot, and nothing on the
// device says that it was one.
func TestEphemeralVolume(t *testing.T) {
	m := newMachine(t)
	v := m.ephemeral(m.disk("a", 64<<20), "deep/er/a")
	m.mount(v)
	write(t, m.point("deep/er/a/file"), "x")
	m.unmount(m.point("deep/er/a"))
	m.reboot()
	m.mount(v)
	if _, err := os.Stat(m.point("deep/er/a/file")); err == nil {
		t.Error("the file is still there")
	}
	m.unmount(m.point("deep/er/a"))
}

// An earlier ephemeral volume with data integrity leaves the superblock of
// dm-integrity, which is no reason to refuse the next one.
func TestTheTraceOfAnEphemeralVolumeIsNotForeign(t *testing.T) {
	m := newMachine(t)
	v := m.ephemeral(m.disk("a", 64<<20), "a")
	m.trace(v.Device)
	if found, err := m.run.Signature(t.Context(), v.Device); err != nil || found != ephemeralTrace {
		t.Fatalf("%q, %v", found, err)
	}
	keyed := m.keyed(v.Device, "a")
	m.fails(keyed, ErrForeign, ephemeralTrace)
	m.mount(v)
	m.unmount(m.point("a"))
}

// trace puts the superblock of dm-integrity on a disk, as far as blkid looks.
// Source: linux v6.12 drivers/md/dm-integrity.c, struct superblock.
func (m *machine) trace(disk string) {
	m.t.Helper()
	f, err := os.OpenFile(disk, os.O_WRONLY, 0)
	if err != nil {
		m.t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("integrt\x00\x01"), 0); err != nil {
		m.t.Fatal(err)
	}
}

func TestAWrongKeyChangesNothing(t *testing.T) {
	m := newMachine(t)
	v := m.keyed(m.disk("a", 64<<20), "a")
	m.mount(v)
	write(t, m.point("a/file"), "precious")
	m.unmount(m.point("a"))
	m.reboot()
	before, err := os.ReadFile(v.Device)
	if err != nil {
		t.Fatal(err)
	}
	wrong := v
	wrong.Key = keyOf("not this one")
	m.fails(wrong, ErrKey, "does not open")
	m.nothingLeft()
	wrong.Key = keyOf("")
	m.fails(wrong, ErrKey, "empty")
	wrong.Key = nil
	wrong.Encrypted = true
	m.fails(wrong, ErrKey, "needs a key")
	asked := errors.New("KBS is down")
	wrong.Key = func(context.Context) (podvm.Secret, error) {
		return nil, podvm.Explain(asked, "the key server is down")
	}
	m.fails(wrong, asked, "the key server is down")
	m.nothingLeft()
	if after, err := os.ReadFile(v.Device); err != nil || string(after) != string(before) {
		t.Error("the device changed")
	}
	m.mount(v)
	holds(t, m.point("a/file"), "precious")
}

// A device with data of others is not formatted, whatever the request says.
func TestForeignDataIsNeverFormatted(t *testing.T) {
	tests := map[string]func(t *testing.T, disk string){
		"an ext4": func(t *testing.T, disk string) { run(t, "mkfs.ext4", "-q", "-F", disk) },
		"swap":    func(t *testing.T, disk string) { run(t, "mkswap", disk) },
		"a partition table": func(t *testing.T, disk string) {
			cmd := exec.Command(testenv.Tool(t, "sfdisk"), "-q", disk)
			cmd.Stdin = strings.NewReader("label: gpt\n,\n")
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v %s", err, out)
			}
		},
	}
	for name, place := range tests {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			v := m.keyed(m.disk("a", 64<<20), "a")
			place(t, v.Device)
			before, err := os.ReadFile(v.Device)
			if err != nil {
				t.Fatal(err)
			}
			m.fails(v, ErrForeign, "was not formatted")
			m.nothingLeft()
			m.fails(m.ephemeral(v.Device, "a"), ErrForeign, "wipefs")
			m.nothingLeft()
			if after, err := os.ReadFile(v.Device); err != nil || string(after) != string(before) {
				t.Error("the device changed")
			}
			v.Encrypted = true
			m.fails(v, ErrHeader, "there is none")
		})
	}
	t.Run("a volume with a key, for a request without", func(t *testing.T) {
		m := newMachine(t)
		v := m.keyed(m.disk("a", 64<<20), "a")
		m.mount(v)
		write(t, m.point("a/file"), "precious")
		m.unmount(m.point("a"))
		m.reboot()
		m.fails(m.ephemeral(v.Device, "a"), ErrForeign, "crypto_LUKS")
		m.nothingLeft()
		m.mount(v)
		holds(t, m.point("a/file"), "precious")
	})
	t.Run("dm-integrity with a partition table", func(t *testing.T) {
		m := newMachine(t)
		v := m.ephemeral(m.disk("a", 64<<20), "a")
		cmd := exec.Command(testenv.Tool(t, "sfdisk"), "-q", v.Device)
		cmd.Stdin = strings.NewReader("label: gpt\n,\n")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v %s", err, out)
		}
		m.trace(v.Device)
		m.fails(v, ErrForeign, "gpt")
	})
	t.Run("LUKS1", func(t *testing.T) {
		m := newMachine(t)
		v := m.keyed(m.disk("a", 64<<20), "a")
		cryptsetup(t, "-q", "luksFormat", "--type", "luks1", "--pbkdf-force-iterations", "1000", "--key-file", "-", v.Device)
		m.fails(v, ErrHeader, "version 1")
		m.fails(m.ephemeral(v.Device, "a"), ErrForeign, "crypto_LUKS")
	})
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v %s", name, err, out)
	}
}

func TestTheSameRequestAgain(t *testing.T) {
	m := newMachine(t)
	for name, v := range map[string]Volume{"ephemeral": m.ephemeral(m.disk("a", 64<<20), "a"), "keyed": m.keyed(m.disk("b", 64<<20), "b")} {
		t.Run(name, func(t *testing.T) {
			m.mount(v)
			write(t, filepath.Join(v.MountPoint, "file"), "x")
			if v.Key != nil {
				v.Key = func(context.Context) (podvm.Secret, error) { return nil, errors.New("asked for the key again") }
			}
			m.mount(v)
			holds(t, filepath.Join(v.MountPoint, "file"), "x")

			other := v
			other.Digest, other.MountPoint = "other", m.point("other")
			m.fails(other, ErrBusy, "other parameters")
			holds(t, filepath.Join(v.MountPoint, "file"), "x")

			// Unmounted, but not closed: the mapping still holds the data.
			m.unmount(v.MountPoint)
			m.mount(v)
			holds(t, filepath.Join(v.MountPoint, "file"), "x")

			// Nobody mounts it any more, so another request may have the device.
			m.unmount(v.MountPoint)
			if v.Key != nil {
				other.Key = keyOf(string(testKey))
			}
			other.MapperName = ""
			m.mount(other)
			if v.Key != nil {
				holds(t, filepath.Join(other.MountPoint, "file"), "x")
			}
			m.unmount(other.MountPoint)
		})
	}
}

func TestDeviceTarget(t *testing.T) {
	m := newMachine(t)
	v := m.ephemeral(m.disk("a", 64<<20), "a")
	v.Filesystem, v.MapperName = false, "scratch"
	write(t, v.MountPoint, "in the way")
	m.fails(v, ErrBusy, "at the mount point already")
	holds(t, v.MountPoint, "in the way")
	if err := os.Remove(v.MountPoint); err != nil {
		t.Fatal(err)
	}
	m.nothingLeft()
	m.mount(v)
	m.mount(v)
	if target, err := os.Readlink(v.MountPoint); err != nil || target != filepath.Join(m.root, "dev/mapper/scratch") {
		t.Errorf("%q, %v", target, err)
	}
	other := m.ephemeral(m.disk("b", 64<<20), "b")
	other.MapperName = "scratch"
	m.fails(other, ErrBusy, "mapper name")
}

// What cryptsetup made is compared with what it was told to make.
func TestAnUnexpectedMappingIsClosedAgain(t *testing.T) {
	m := newMachine(t)
	v := m.keyed(m.disk("a", 64<<20), "a")
	m.mount(v)
	m.unmount(m.point("a"))
	m.reboot()
	m.fault("open", "weak")
	m.fails(v, errMapping, "the cipher")
	m.nothingLeft()
}

func TestADeviceInUseIsRefused(t *testing.T) {
	m := newMachine(t)
	disk := m.disk("a", 64<<20)
	out, err := exec.Command("losetup", "--find", "--show", disk).Output()
	if err != nil {
		t.Fatal(err)
	}
	loop := strings.TrimSpace(string(out))
	t.Cleanup(func() { _ = exec.Command("losetup", "-d", loop).Run() })
	m.fails(m.ephemeral(disk, "a"), ErrBusy, "in use")

	run(t, "mkfs.ext4", "-q", "-F", loop)
	if err := errors.Join(os.Mkdir(m.point("used"), 0o755), unix.Mount(loop, m.point("used"), "ext4", 0, "")); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(loop, &st); err != nil {
		t.Fatal(err)
	}
	v := m.ephemeral(loop, "a")
	v.Number = st.Rdev
	m.fails(v, ErrBusy, "in use")
	m.unmount(m.point("used"))
}

// Where the kernel has no device-mapper, the error says so.
func TestWithoutADeviceMapper(t *testing.T) {
	if _, err := os.Stat("/dev/mapper/control"); err == nil {
		t.Skip("this machine has a device-mapper")
	}
	m := newMachine(t)
	for _, link := range []string{"bin/cryptsetup", "bin/mkfs.ext4"} {
		if err := os.Remove(filepath.Join(m.root, link)); err != nil {
			t.Fatal(err)
		}
	}
	m.dm = kernel{m.host}
	m.fails(m.ephemeral(m.disk("a", 64<<20), "a"), nil, "dm_crypt")
	v := m.keyed(m.disk("b", 64<<20), "b")
	v.Integrity = true
	m.fails(v, nil, "dm_integrity")
	m.nothingLeft()
}

// Programs that are not installed are named, with their package.
func TestMissingProgramsAreNamed(t *testing.T) {
	m := newMachine(t)
	m.run.Host = podvm.Host{Root: m.root, LookupEnv: func(string) (string, bool) { return "/nowhere", true }}
	m.fails(m.ephemeral(m.disk("a", 64<<20), "a"), tool.ErrMissing, "util-linux")
	m.fails(m.keyed(m.disk("b", 64<<20), "b"), tool.ErrMissing, "util-linux")
	some := t.TempDir()
	if err := os.Symlink(testenv.Tool(t, "blkid"), filepath.Join(some, "blkid")); err != nil {
		t.Fatal(err)
	}
	m.run.Host.LookupEnv = func(string) (string, bool) { return some, true }
	m.fails(m.ephemeral(m.disk("c", 64<<20), "c"), tool.ErrMissing, "cryptsetup-bin")
	m.nothingLeft()
}

// Neither a mount point nor a link can be made: the mapping is closed again, and
// the volume is there for a request with a better place.
func TestAPlaceThatCannotBeWritten(t *testing.T) {
	m := newMachine(t)
	place := filepath.Join(m.root, "fixed")
	if err := os.Mkdir(place, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("none", place, "tmpfs", unix.MS_RDONLY, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(place, 0) })
	for _, filesystem := range []bool{true, false} {
		v := m.keyed(m.disk(fmt.Sprint("disk", filesystem), 64<<20), "")
		v.MountPoint, v.Filesystem = filepath.Join(place, "a"), filesystem
		m.fails(v, unix.EROFS, "cannot be made")
	}
	m.nothingLeft()
	better := m.keyed(filepath.Join(m.root, "disks/disktrue"), "better")
	m.mount(better)
	m.unmount(better.MountPoint)
}

// A header file that nobody of ours wrote is another program's volume.
func TestAHeaderOfAnotherProgramStays(t *testing.T) {
	m := newMachine(t)
	v := m.ephemeral(m.disk("a", 64<<20), "a")
	path := m.headerFile(v.Device)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, path, "not ours")
	m.fails(v, ErrBusy, "another program")
	holds(t, path, "not ours")
}

// 64 calls at once: some for one device, one of them failing, do not disturb
// each other.
func TestManyAtOnce(t *testing.T) {
	m := newMachine(t)
	var volumes []Volume
	for i := range 16 {
		v := m.ephemeral(m.disk(fmt.Sprint("disk", i), 16<<20), fmt.Sprint("point", i))
		v.MapperName = fmt.Sprint("mapping", i)
		volumes = append(volumes, v)
	}
	run(t, "mkfs.ext4", "-q", "-F", volumes[7].Device)
	volumes[7].Key = keyOf("x") // the device carries data
	var wg sync.WaitGroup
	errs := make([]error, 64)
	for i := range errs {
		wg.Go(func() { errs[i] = m.Mount(t.Context(), volumes[i%16]) })
	}
	wg.Wait()
	for i, err := range errs {
		if i%16 == 7 != errors.Is(err, ErrForeign) || i%16 != 7 && err != nil {
			t.Errorf("call %d: %v", i, err)
		}
	}
	for i, v := range volumes {
		if i != 7 {
			m.unmount(v.MountPoint)
		}
	}
	if n, err := filepath.Glob(filepath.Join(m.root, "dm/*")); err != nil || len(n) != 15 {
		t.Errorf("%d mappings, %v", len(n), err)
	}
}
