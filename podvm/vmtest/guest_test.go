package vmtest

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxtpm"
	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm/testenv"
)

// The tests in this file run in guests, where the tests of vmtest_test.go start
// them.

func inGuest(t *testing.T) {
	t.Helper()
	if os.Getenv(GuestEnv) != "1" {
		t.Skip("runs in a virtual machine, by make test-vm")
	}
}

func TestInGuestOrdinary(t *testing.T) {
	inGuest(t)
	testenv.Root(t)
	if parent := os.Getppid(); parent != 1 {
		t.Errorf("init is not the parent, but %d", parent)
	}
	for _, path := range []string{"/dev/vdb", "/dev/null", "/dev/fd/0", "/dev/pts/ptmx", "/dev/mapper/control", "/sys/kernel/config", "/sys/fs/cgroup/cgroup.procs"} {
		if _, err := os.Stat(path); err != nil {
			t.Error(err)
		}
	}
	for _, dir := range []string{"/tmp", "/run", "/dev/shm"} {
		if err := os.WriteFile(filepath.Join(dir, "file"), []byte("x"), 0o600); err != nil {
			t.Error(err)
		}
	}
	if size, err := diskSize("/dev/vdb"); err != nil || size != 8<<20 {
		t.Errorf("/dev/vdb has %d bytes, %v", size, err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		if c, err := l.Accept(); err == nil {
			_ = c.Close()
		}
	}()
	c, err := net.DialTimeout("tcp", l.Addr().String(), 10*time.Second)
	if err != nil {
		t.Error(err)
	} else {
		_ = c.Close()
	}
	if year := time.Now().Year(); year < 2025 {
		t.Errorf("the clock says %d", year)
	}
	// An orphan must not keep the machine on.
	if err := exec.Command("/bin/guest.test", "-test.run", "^TestInGuestHang$").Start(); err != nil {
		t.Error(err)
	}
	// More than is under way at a time when the machine goes off.
	if _, err := os.Stdout.WriteString(strings.Repeat(noise, noises)); err != nil {
		t.Error(err)
	}
}

// noise is not text; so many of it are less than the host keeps.
const noise, noises = "\x00\xff\n\"", 200 << 10

func diskSize(path string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return f.Seek(0, io.SeekEnd)
}

// secret is what the sealed disk holds, and passphrase opens it.
const secret, passphrase = "kept over a reboot", "a passphrase"

func TestInGuestSeal(t *testing.T) {
	inGuest(t)
	tool(t, passphrase, "cryptsetup", "luksFormat", "--batch-mode", "--type", "luks2", "--cipher", "aes-xts-plain64",
		"--pbkdf-force-iterations", "4", "--pbkdf-memory", "32768", "/dev/vdb", "-")
	tool(t, passphrase, "cryptsetup", "open", "-d", "-", "/dev/vdb", "sealed")
	tool(t, "", "mkfs.ext4", "-q", "/dev/mapper/sealed")
	dir := mount(t, "/dev/mapper/sealed")
	writeFlushed(t, filepath.Join(dir, "secret"), secret)
	if raw, err := os.ReadFile("/dev/vdb"); err != nil || bytes.Contains(raw, []byte(secret)) {
		t.Errorf("the disk holds the secret as it is, or %v", err)
	}
}

func TestInGuestUnseal(t *testing.T) {
	inGuest(t)
	cmd := exec.Command("cryptsetup", "open", "-d", "-", "/dev/vdb", "sealed")
	cmd.Stdin = strings.NewReader("another passphrase")
	if out, err := cmd.CombinedOutput(); err == nil {
		t.Fatalf("the disk opens with another passphrase: %s", out)
	}
	tool(t, passphrase, "cryptsetup", "open", "-d", "-", "/dev/vdb", "sealed")
	got, err := os.ReadFile(filepath.Join(mount(t, "/dev/mapper/sealed"), "secret"))
	if err != nil || string(got) != secret {
		t.Errorf("%q, %v", got, err)
	}
}

// flushed says that the guest has flushed a file and goes on writing others.
const flushed = "the file is on the disk"

func TestInGuestWriteForever(t *testing.T) {
	inGuest(t)
	tool(t, "", "mkfs.ext4", "-q", "/dev/vdb")
	dir := mount(t, "/dev/vdb")
	writeFlushed(t, filepath.Join(dir, "flushed"), secret)
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Sync(); err != nil {
		t.Fatal(err)
	}
	noise := make([]byte, 64<<10)
	_, _ = rand.Read(noise)
	for i := 0; ; i++ {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i%8)), noise, 0o600); err != nil {
			t.Fatal(err)
		}
		if i == 8 {
			fmt.Println(flushed)
		}
	}
}

func TestInGuestReadWhatWasFlushed(t *testing.T) {
	inGuest(t)
	got, err := os.ReadFile(filepath.Join(mount(t, "/dev/vdb"), "flushed"))
	if err != nil || string(got) != secret {
		t.Errorf("%q, %v", got, err)
	}
}

func TestInGuestFail(t *testing.T) {
	inGuest(t)
	t.Fatal("this test always fails")
}

func TestInGuestKilled(t *testing.T) {
	inGuest(t)
	if err := unix.Kill(os.Getpid(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	select {}
}

func TestInGuestPanic(t *testing.T) {
	inGuest(t)
	fmt.Println("about to panic")
	// The line has left the machine when it is out of the pipe and the port.
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); {
		time.Sleep(time.Second)
		if err := os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0); err != nil {
			t.Fatal(err)
		}
	}
	t.Fatal("the kernel goes on")
}

func TestInGuestHang(t *testing.T) {
	inGuest(t)
	fmt.Println("about to hang")
	time.Sleep(time.Hour)
}

func TestInGuestServe(t *testing.T) {
	inGuest(t)
	l, err := net.Listen("tcp", "0.0.0.0:15150")
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println(listening)
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.Copy(c, c); err != nil { // until the host closes its half
		t.Error(err)
	}
	for _, beyond := range []string{"10.0.2.2:22", "192.0.2.1:80"} {
		if c, err := net.DialTimeout("tcp", beyond, time.Second); err == nil {
			_ = c.Close()
			t.Errorf("%s is reachable", beyond)
		}
	}
}

// listening says that the guest takes connections.
const listening = "listening"

// nvIndex is one of those that owners define, with room for a secret.
const nvIndex = tpm2.TPMHandle(0x01500010)

func TestInGuestTPMWrite(t *testing.T) {
	inGuest(t)
	tpm := openTPM(t)
	public := tpm2.New2B(tpm2.TPMSNVPublic{
		NVIndex: nvIndex, NameAlg: tpm2.TPMAlgSHA256, DataSize: uint16(len(secret)),
		Attributes: tpm2.TPMANV{OwnerWrite: true, OwnerRead: true, AuthRead: true, AuthWrite: true, NoDA: true},
	})
	if _, err := (tpm2.NVDefineSpace{AuthHandle: tpm2.TPMRHOwner, PublicInfo: public}).Execute(tpm); err != nil {
		t.Fatal(err)
	}
	_, err := tpm2.NVWrite{
		AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
		NVIndex:    named(t, tpm), Data: tpm2.TPM2BMaxNVBuffer{Buffer: []byte(secret)},
	}.Execute(tpm)
	if err != nil {
		t.Fatal(err)
	}
}

func TestInGuestTPMRead(t *testing.T) {
	inGuest(t)
	tpm := openTPM(t)
	got, err := tpm2.NVRead{
		AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
		NVIndex:    named(t, tpm), Size: uint16(len(secret)),
	}.Execute(tpm)
	if err != nil || string(got.Data.Buffer) != secret {
		t.Fatalf("%v, %v", got, err)
	}
}

func openTPM(t *testing.T) transport.TPMCloser {
	t.Helper()
	tpm, err := linuxtpm.Open("/dev/tpmrm0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tpm.Close() })
	return tpm
}

func named(t *testing.T, tpm transport.TPM) tpm2.NamedHandle {
	t.Helper()
	public, err := tpm2.NVReadPublic{NVIndex: nvIndex}.Execute(tpm)
	if err != nil {
		t.Fatal(err)
	}
	return tpm2.NamedHandle{Handle: nvIndex, Name: public.NVName}
}

// tool runs a program with input and returns its output.
func tool(t *testing.T, input, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(testenv.Tool(t, name), args...)
	cmd.Stdin = strings.NewReader(input)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
	return string(out)
}

// mount mounts an ext4 file system, for good.
func mount(t *testing.T, device string) (dir string) {
	t.Helper()
	dir = "/run/mounted"
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(device, dir, "ext4", 0, ""); err != nil {
		t.Fatalf("mounting %s: %v", device, err)
	}
	return dir
}

func writeFlushed(t *testing.T, path, text string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteString(text)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
}
