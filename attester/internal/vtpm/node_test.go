package vtpm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/attester/vtpmtest"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/testenv"
)

// device puts a TPM behind a character device, a terminal in raw mode: like the
// kernel's, it takes a command by write and gives the answer to a read.
func device(t *testing.T, tpm *vtpmtest.TPM) string {
	t.Helper()
	// Not os.OpenFile, which would have the runtime poll it.
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		testenv.Missing(t, "needs pseudo-terminals: "+err.Error())
	}
	master := os.NewFile(uintptr(fd), "ptmx")
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	path := fmt.Sprintf("/dev/pts/%d", number)
	var slave *os.File
	if err == nil { // keeps the terminal up when the TPM is closed
		slave, err = os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err == nil {
		err = unix.IoctlSetTermios(fd, unix.TCSETS, &unix.Termios{Cflag: unix.CS8 | unix.CREAD, Cc: [19]uint8{unix.VMIN: 1}})
	}
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { slave.Close(); <-done; master.Close() })
	go func() {
		defer close(done)
		buf := make([]byte, 4096)
		for {
			n, err := master.Read(buf)
			if err != nil {
				return // no slave is open any more
			}
			out, err := tpm.Send(buf[:n])
			if err != nil {
				t.Error(err)
			}
			if _, err := master.Write(out); err != nil {
				t.Error(err)
			}
		}
	}()
	return path
}

func TestADeviceNode(t *testing.T) {
	tpm := vtpmtest.Start(t, testenv.Tool(t, "swtpm"))
	tpm.Key(t, ak)
	path := device(t, tpm)
	host := podvm.Host{LookupEnv: func(string) (string, bool) { return path, true }}
	for range 2 {
		if err := with(t, host, quoteOnce); err != nil {
			t.Error(err)
		}
	}
}

func TestUnprivileged(t *testing.T) { testenv.RerunUnprivileged(t) }

func TestADeviceThatMayNotBeOpened(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("root may open everything: TestUnprivileged runs this")
	}
	for _, path := range []string{"/dev/mem", "/dev/kmsg", "/dev/full"} {
		st, err := os.Stat(path)
		if err != nil || st.Mode().Perm()&0o002 != 0 {
			continue
		}
		host := podvm.Host{LookupEnv: func(string) (string, bool) { return path, true }}
		if err := with(t, host, quoteOnce); !errors.Is(err, os.ErrPermission) {
			t.Errorf("%s: %v", path, err)
		}
	}
	// What cannot be looked at is not taken for a machine without a TPM.
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "dev"), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := find(podvm.Host{Root: root}); !errors.Is(err, os.ErrPermission) {
		t.Errorf("a directory that may not be read: %v", err)
	}
}
