package luks

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm"
)

// The tests in this file run in a virtual machine that has a device-mapper and
// whose disk /dev/vdd may be overwritten.

const scratch = "/dev/vdd"

func inVM(t *testing.T) {
	t.Helper()
	if os.Getenv("SEALPOD_VM") != "1" {
		t.Skip("needs a device-mapper and disks of its own: runs in a virtual machine, by make test-vm")
	}
	// Without udev, which the machine has not, cryptsetup makes its nodes itself.
	if err := os.Setenv("DM_DISABLE_UDEV", "1"); err != nil {
		t.Fatal(err)
	}
}

type vm struct {
	*testing.T
	*Driver
}

func newVM(t *testing.T) *vm {
	t.Helper()
	inVM(t)
	v := &vm{t, New(Config{})}
	v.derivation = cheapDerivation // the other takes half a minute under emulation
	v.wipe(scratch)
	return v
}

func (m *vm) wipe(device string) {
	m.Helper()
	f, err := os.OpenFile(device, os.O_WRONLY, 0)
	if err != nil {
		m.Fatal(err)
	}
	defer f.Close()
	// Headers of LUKS, and of dm-integrity with and without one before it.
	for _, at := range []int64{0, dataOffset} {
		if _, err := f.WriteAt(make([]byte, 1<<20), at); err != nil {
			m.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		m.Fatal(err)
	}
}

func (m *vm) volume(name string) Volume {
	m.Helper()
	var st unix.Stat_t
	if err := unix.Stat(scratch, &st); err != nil {
		m.Fatal(err)
	}
	return Volume{Device: scratch, Number: st.Rdev, Filesystem: true, MapperName: name, MountPoint: filepath.Join(m.TempDir(), "mnt"), Digest: name}
}

func (m *vm) mount(v Volume) time.Duration {
	m.Helper()
	start := time.Now()
	if err := m.Mount(m.Context(), v); err != nil {
		m.Fatal(err)
	}
	return time.Since(start)
}

// down is what callers do in the end.
func (m *vm) down(v Volume) {
	m.Helper()
	if err := unix.Unmount(v.MountPoint, 0); err != nil {
		m.Fatal(err)
	}
	if err := m.close(m.Context(), v.MapperName); err != nil {
		m.Fatal(err)
	}
	if err := m.forget(v.Device); err != nil {
		m.Fatal(err)
	}
}

func (m *vm) put(v Volume, text string) {
	m.Helper()
	f, err := os.Create(filepath.Join(v.MountPoint, "file"))
	if err != nil {
		m.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(text); err != nil {
		m.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		m.Fatal(err)
	}
}

// start returns the first 64 MiB of a device.
func (m *vm) start(device string) []byte {
	m.Helper()
	unix.Sync()
	f, err := os.Open(device)
	if err != nil {
		m.Fatal(err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 64<<20))
	if err != nil {
		m.Fatal(err)
	}
	return b
}

// hidden checks that the marker is not on the device.
func (m *vm) hidden() {
	m.Helper()
	if raw := m.start(scratch); bytes.Contains(raw, []byte(marker)) || bytes.Contains(raw, magicPrimary) || bytes.Contains(raw, magicSecondary) {
		m.Error("the device shows the data, or a header")
	}
}

const marker = "this must not be seen by the host, wherever it looks"

func TestVMEphemeral(t *testing.T) {
	m := newVM(t)
	v := m.volume("ephemeral")
	took := m.mount(v)
	t.Logf("FIGURE ephemeral volume, format to mount: %v", took.Round(time.Millisecond))
	m.put(v, strings.Repeat(marker, 1000))
	m.hidden()
	if !bytes.Contains(m.start("/dev/mapper/ephemeral"), []byte(marker)) {
		t.Error("the volume does not hold the data")
	}
	m.mount(v)
	got, err := m.dm.status("ephemeral")
	if err != nil || got == nil || got.cipher != cipher || got.keySize != 64 || got.open != 1 {
		t.Errorf("%+v, %v", got, err)
	}
	m.down(v)
	if got, err := m.dm.status("ephemeral"); got != nil || err != nil {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestVMEphemeralFormatAndOpenAreQuick(t *testing.T) {
	m := newVM(t)
	v := m.volume("quick")
	v.Filesystem = false
	took := m.mount(v)
	t.Logf("FIGURE ephemeral volume, format and open: %v", took.Round(time.Millisecond))
	if err := errors.Join(os.Remove(v.MountPoint), m.close(t.Context(), v.MapperName), m.forget(v.Device)); err != nil {
		t.Error(err)
	}
}

// A device is used again and again without a key, in both modes, and nothing is
// wiped in between: what such volumes leave is not foreign. What others leave is.
func TestVMEphemeralAfterEphemeral(t *testing.T) {
	m := newVM(t)
	want := ""
	for i, integrity := range []bool{false, false, true, true, false} {
		if found, err := m.run.Signature(t.Context(), scratch); err != nil || found != want {
			t.Fatalf("before volume %d: %q, %v, want %q", i, found, err, want)
		}
		want = map[bool]string{true: ephemeralTrace}[integrity]
		v := m.volume("again")
		v.Integrity = integrity
		m.mount(v)
		m.put(v, marker)
		m.down(v)
	}
	foreign := m.volume("again")
	for name, place := range map[string]func(){
		"ext4": func() { run(t, "mkfs.ext4", "-q", "-F", scratch) },
		"crypto_LUKS": func() {
			m.wipe(scratch)
			cryptsetup(t, append(append([]string{}, cheap...), scratch)...)
		},
	} {
		place()
		before := m.start(scratch)
		for _, foreign.Integrity = range []bool{false, true} {
			if err := m.Mount(t.Context(), foreign); !errors.Is(err, ErrForeign) || !strings.Contains(podvm.Cause(err), name) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if !bytes.Equal(m.start(scratch), before) {
			t.Errorf("%s: the device changed", name)
		}
	}
}

// As kata-agent asks for a writable layer.
func TestVMIntegrity(t *testing.T) {
	m := newVM(t)
	for name, opts := range map[string]string{"emptydir": "-O ^has_journal -m 0 -i 163840 -I 128", "imagestore": "-E lazy_journal_init", "plain": ""} {
		args, err := MkfsOptions(opts)
		if err != nil {
			t.Fatal(err)
		}
		v := m.volume(name)
		v.Integrity, v.MkfsOptions = true, args
		t.Logf("FIGURE ephemeral volume with integrity (%s): %v", name, m.mount(v).Round(time.Millisecond))
		m.put(v, strings.Repeat(marker, 1000))
		if name == "emptydir" {
			m.hidden()
		}
		m.mount(v)
		m.down(v)
		if log := kernelErrors(t); strings.Contains(log, "INTEGRITY AEAD ERROR") {
			t.Errorf("mkfs read blocks that were never written: %s", log)
		}
		m.wipe(scratch)
	}
}

func kernelErrors(t *testing.T) string {
	t.Helper()
	b := make([]byte, 1<<20)
	n, err := unix.Klogctl(unix.SYSLOG_ACTION_READ_ALL, b)
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n])
}

// A host that changes ciphertext makes an error, not other data.
func TestVMIntegrityFindsChanges(t *testing.T) {
	m := newVM(t)
	v := m.volume("tampered")
	v.Integrity, v.Key = true, keyOf(string(testKey))
	m.mount(v)
	m.put(v, strings.Repeat(marker, 200_000))
	m.down(v)
	f, err := os.OpenFile(scratch, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// Everything but the header and the superblock of dm-integrity.
	block := make([]byte, 1<<20)
	for at := int64(dataOffset + 1<<20); ; at += int64(len(block)) {
		n, err := f.ReadAt(block, at)
		if n == 0 {
			break
		}
		for i := 0; i < n; i += 4096 {
			block[i+100] ^= 1
		}
		if _, err := f.WriteAt(block[:n], at); err != nil {
			t.Fatal(err)
		}
		if err != nil {
			break
		}
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := m.Mount(t.Context(), v); err == nil {
		if b, err := os.ReadFile(filepath.Join(v.MountPoint, "file")); err == nil {
			t.Errorf("%d bytes were read", len(b))
		}
		m.down(v)
	} else {
		t.Logf("mount refuses: %v", err)
	}
}

func TestVMKeyed(t *testing.T) {
	m := newVM(t)
	for _, integrity := range []bool{false, true} {
		v := m.volume("keyed")
		v.Key, v.Integrity = keyOf(string(testKey)), integrity
		t.Logf("FIGURE new volume with a key, integrity %v: %v", integrity, m.mount(v).Round(time.Millisecond))
		m.put(v, "precious")
		m.mount(v)
		m.down(v)
		wrong := v
		wrong.Key = keyOf("wrong")
		if err := m.Mount(t.Context(), wrong); !errors.Is(err, ErrKey) || podvm.Cause(err) != "the key does not open the volume" {
			t.Errorf("%v", err)
		}
		other := v
		other.Integrity = !integrity
		if err := m.Mount(t.Context(), other); !errors.Is(err, ErrHeader) {
			t.Errorf("%v", err)
		}
		for _, encrypted := range []bool{false, true} {
			v.Encrypted = encrypted
			t.Logf("FIGURE existing volume with a key, integrity %v: %v", integrity, m.mount(v).Round(time.Millisecond))
			if b, err := os.ReadFile(filepath.Join(v.MountPoint, "file")); string(b) != "precious" || err != nil {
				t.Fatalf("%q, %v", b, err)
			}
			m.down(v)
		}
		// As anybody else opens it.
		cryptsetup(t, "open", "--test-passphrase", "--type", "luks2", "--key-file", "-", scratch)
		m.wipe(scratch)
	}
}

// A volume made elsewhere, by cryptsetup and mkfs alone.
func TestVMVolumeOfAnotherProgram(t *testing.T) {
	m := newVM(t)
	cryptsetup(t, append(append([]string{}, cheap...), scratch)...)
	cryptsetup(t, "open", "--key-file", "-", scratch, "elsewhere")
	if out, err := exec.Command("mkfs.ext4", "-q", "/dev/mapper/elsewhere").CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	v := m.volume("other")
	v.Key, v.Encrypted = keyOf(string(testKey)), true
	if err := m.Mount(t.Context(), v); !errors.Is(err, ErrBusy) {
		t.Errorf("the device is open elsewhere: %v", err)
	}
	cryptsetup(t, "close", "elsewhere")
	m.mount(v)
	m.down(v)
}

// The rest of a killed cryptsetup: the lower mapping alone.
func TestVMHalfAMapping(t *testing.T) {
	m := newVM(t)
	v := m.volume("half")
	v.Integrity, v.Key = true, keyOf(string(testKey))
	m.mount(v)
	m.put(v, "precious")
	if err := unix.Unmount(v.MountPoint, 0); err != nil {
		t.Fatal(err)
	}
	if err := m.dm.remove("half"); err != nil {
		t.Fatal(err)
	}
	if lower, err := m.dm.status("half_dif"); err != nil || lower == nil {
		t.Fatalf("%+v, %v", lower, err)
	}
	m.mount(v)
	if b, err := os.ReadFile(filepath.Join(v.MountPoint, "file")); string(b) != "precious" || err != nil {
		t.Fatalf("%q, %v", b, err)
	}
	m.down(v)
}

func TestVMImageFile(t *testing.T) {
	m := newVM(t)
	v := m.volume("image")
	v.Device, v.Number, v.Key = image(t, 64<<20), 0, keyOf(string(testKey))
	m.mount(v)
	m.mount(v)
	m.put(v, "precious")
	m.down(v)
	m.mount(v)
	if b, err := os.ReadFile(filepath.Join(v.MountPoint, "file")); string(b) != "precious" || err != nil {
		t.Fatalf("%q, %v", b, err)
	}
	m.down(v)
}
