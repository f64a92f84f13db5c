package vmtest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if os.Getenv(GuestEnv) == "1" {
		os.Exit(m.Run())
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		_ = os.RemoveAll(guestTests.dir)
		if dir, err := imageDir(); err == nil {
			_ = os.RemoveAll(dir)
		}
		os.Exit(code)
	}))
}

// guestTests is this package's test binary for guests, built once.
var guestTests struct {
	sync.Once
	dir string
	err error
}

// guest returns a Config that runs one test of guest_test.go.
func guest(t *testing.T, test string, disks ...*Disk) Config {
	t.Helper()
	guestTests.Do(func() {
		if guestTests.dir, guestTests.err = os.MkdirTemp("", "vmtest-guest"); guestTests.err == nil {
			guestTests.err = build(t, "test", "-c", "-o", guestTests.dir+"/guest.test", "./podvm/vmtest")
		}
	})
	if guestTests.err != nil {
		t.Fatal(guestTests.err)
	}
	return Config{
		Cmd:   []string{"/bin/guest.test", "-test.v", "-test.run", "^" + test + "$"},
		Files: map[string]string{"/bin/guest.test": guestTests.dir + "/guest.test"},
		Disks: disks,
	}
}

func TestGuestIsAnOrdinaryMachine(t *testing.T) {
	Enabled(t)
	t.Parallel()
	vm := Start(t, guest(t, "TestInGuestOrdinary", NewDisk(t, 8<<20)))
	if err := vm.Wait(); err != nil {
		t.Fatal(err)
	}
	if got := strings.Count(vm.Output(), noise); got != noises {
		t.Errorf("%d of %d pieces of the output came out", got, noises)
	}
	program, init := vm.Boot()
	if init <= 0 || program < init {
		t.Errorf("init after %v, the program after %v", init, program)
	}
	t.Logf("FIGURE power-on to init %v, to the program %v", init.Round(time.Millisecond), program.Round(time.Millisecond))
}

func TestDisksOutliveTheMachine(t *testing.T) {
	Enabled(t)
	t.Parallel()
	disk := NewDisk(t, 64<<20)
	Run(t, guest(t, "TestInGuestSeal", disk))
	Run(t, guest(t, "TestInGuestUnseal", disk))
}

func TestPowerCut(t *testing.T) {
	Enabled(t)
	t.Parallel()
	disk := NewDisk(t, 32<<20)
	vm := Start(t, guest(t, "TestInGuestWriteForever", disk))
	if err := vm.WaitOutput(t.Context(), flushed); err != nil {
		t.Fatal(err)
	}
	vm.PowerCut()
	if err := vm.Wait(); !errors.Is(err, ErrPowerCut) {
		t.Fatalf("%v, not a power cut", err)
	}
	Run(t, guest(t, "TestInGuestReadWhatWasFlushed", disk))
}

func TestHostReachesThePortsOfTheGuest(t *testing.T) {
	Enabled(t)
	t.Parallel()
	c := guest(t, "TestInGuestServe")
	c.Ports = []int{15151, 15150}
	vm := Start(t, c)
	addr, err := vm.Addr(t.Context(), 15150)
	if err != nil {
		t.Fatal(err)
	}
	if other, err := vm.Addr(t.Context(), 15151); err != nil || other == addr {
		t.Errorf("%s and %s for two ports, %v", addr, other, err)
	}
	if addr, err := vm.Addr(t.Context(), 80); err == nil {
		t.Errorf("port 80 is at %s", addr)
	}
	if err := vm.WaitOutput(t.Context(), listening); err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, err = io.WriteString(conn, secret)
	if err := errors.Join(err, conn.(*net.TCPConn).CloseWrite()); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(conn); err != nil || string(got) != secret {
		t.Errorf("%q came back, %v", got, err)
	}
	if err := vm.Wait(); err != nil {
		t.Error(err)
	}
	if addr, err := vm.Addr(t.Context(), 15150); err == nil {
		t.Errorf("a machine that is off has a port at %s", addr)
	}
}

func TestTPMOutlivesTheMachine(t *testing.T) {
	Enabled(t)
	t.Parallel()
	tpm := NewTPM(t)
	for _, test := range []string{"TestInGuestTPMWrite", "TestInGuestTPMRead"} {
		c := guest(t, test)
		c.TPM = tpm
		Run(t, c)
	}
}

func TestFailuresAreToldApart(t *testing.T) {
	Enabled(t)
	t.Parallel()
	short := func(c Config, limit time.Duration) Config { c.Timeout = limit; return c }
	for name, c := range map[string]struct {
		Config
		err    error
		status int
		output string // among the program's
		says   string // the error, or the console
	}{
		"a test that fails":    {guest(t, "TestInGuestFail"), ErrStatus, 1, "this test always fails", "exit status 1"},
		"killed by a signal":   {guest(t, "TestInGuestKilled"), ErrStatus, 128 + 9, "", "exit status 137"},
		"a kernel panic":       {guest(t, "TestInGuestPanic"), ErrCrash, 0, "about to panic", "Kernel panic - not syncing: sysrq triggered crash"},
		"a hang":               {short(guest(t, "TestInGuestHang"), 20*time.Second), ErrTimeout, 0, "", "Linux version"},
		"no such program":      {Config{Cmd: []string{"/bin/nothing"}}, ErrInit, 0, "", "starting /bin/nothing: no such file or directory"},
		"qemu does not start":  {Config{Devices: []string{"-device", "no-such-device"}}, ErrCrash, 0, "", "'no-such-device' is not a valid device model name"},
		"no init":              {Config{KernelArgs: []string{"rdinit=/bin/nothing"}}, ErrCrash, 0, "", "Kernel panic"},
		"a disk that is taken": {Config{Disks: twice(NewDisk(t, 1<<20))}, ErrCrash, 0, "", `Failed to get "write" lock`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			vm := Start(t, c.Config)
			err := vm.Wait()
			var e *MachineError
			if !errors.As(err, &e) || !errors.Is(err, c.err) {
				t.Fatalf("got %v, want a MachineError of %v", err, c.err)
			}
			if e.Status != c.status {
				t.Errorf("status %d, want %d", e.Status, c.status)
			}
			if !strings.Contains(e.Output, c.output) {
				t.Errorf("the output is without %q:\n%s", c.output, e.Output)
			}
			if !strings.Contains(err.Error()+e.Console, c.says) {
				t.Errorf("the error does not say %q:\n%v", c.says, err)
			}
		})
	}
}

func twice(d *Disk) []*Disk { return []*Disk{d, d} }

func TestWaitOutputEndsWithTheMachineAndTheContext(t *testing.T) {
	Enabled(t)
	t.Parallel()
	vm := Start(t, Config{Cmd: []string{"/usr/bin/umount", "--version"}})
	if err := vm.WaitOutput(t.Context(), "util-linux"); err != nil {
		t.Error(err)
	}
	done, cancel := context.WithCancel(t.Context())
	cancel()
	if err := vm.WaitOutput(done, "never written"); !errors.Is(err, context.Canceled) {
		t.Errorf("%v after the end of the context", err)
	}
	if err := vm.Wait(); err != nil {
		t.Fatal(err)
	}
	if err := vm.WaitOutput(t.Context(), "never written"); err == nil || !strings.Contains(err.Error(), "never written") {
		t.Errorf("%v after the end of the machine", err)
	}
	if err := vm.WaitOutput(t.Context(), "util-linux"); err != nil {
		t.Error(err)
	}
}

// childEnv makes TestKilledTestLeavesNothing the test that is killed.
const childEnv = "SEALPOD_VMTEST_CHILD"

func TestKilledTestLeavesNothing(t *testing.T) {
	Enabled(t)
	t.Parallel()
	if os.Getenv(childEnv) != "" {
		c := guest(t, "TestInGuestHang", NewDisk(t, 1<<20))
		c.TPM = NewTPM(t)
		vm := Start(t, c)
		for !strings.Contains(vm.Console(), "Linux version") { // for qemu fails at once without its files
			time.Sleep(10 * time.Millisecond)
		}
		fmt.Println("qemu", vm.pid, "swtpm", vm.tpm.Process.Pid)
		select {}
	}
	tmp := t.TempDir()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), childEnv+"=1", "TMPDIR="+tmp)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var qemu, swtpm int
	_, scanErr := fmt.Fscanf(bufio.NewReader(out), "qemu %d swtpm %d", &qemu, &swtpm)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if scanErr != nil {
		t.Fatal("the child has started no machine: ", scanErr)
	}
	awaitEnd(t, qemu)
	awaitEnd(t, swtpm)
	if left, err := filepath.Glob(tmp + "/vmtest-[0-9]*"); err != nil || len(left) > 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}
}

func awaitEnd(t *testing.T, pid int) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil || strings.Contains(string(status), "State:\tZ") {
			return // without a process 1 that reaps, it stays as a zombie
		}
		if time.Now().After(deadline) {
			t.Fatalf("a process lives on:\n%s", status)
		}
	}
}
