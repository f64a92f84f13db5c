package vmtest

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm/vmtest/internal/wire"
)

// shared is what all machines of a process share.
type shared struct {
	base
	init  []byte // the program podvm/vmtest/init
	accel string // for qemu's -accel
}

var sharedOnce struct {
	sync.Mutex
	*shared
}

// sharedParts makes what all machines share, once.
func sharedParts(t testing.TB) (*shared, error) {
	sharedOnce.Lock()
	defer sharedOnce.Unlock()
	if sharedOnce.shared != nil {
		return sharedOnce.shared, nil
	}
	root, err := moduleRoot()
	if err != nil {
		return nil, err
	}
	b, err := ensureBase(t.Context(), filepath.Join(root, "bin", "vm"), standard)
	if err != nil {
		return nil, err
	}
	bin := filepath.Join(t.TempDir(), "init")
	if err := build(t, "build", "-trimpath", "-ldflags", "-s -w", "-o", bin, "./podvm/vmtest/init"); err != nil {
		return nil, fmt.Errorf("building the guest's init: %w", err)
	}
	s := &shared{base: b, accel: emulation}
	if s.init, err = os.ReadFile(bin); err != nil {
		return nil, err
	}
	if s.kvmWorks(t.Context()) {
		s.accel = "kvm"
	}
	sharedOnce.shared = s
	return s, nil
}

const emulation = "tcg,thread=multi"

// kvmWorks reports whether a machine boots with KVM. There are machines with a
// /dev/kvm that opens and virtual processors that then do not run.
func (s *shared) kvmWorks(ctx context.Context) bool {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return false
	}
	_ = f.Close()
	kvm := *s
	kvm.accel = "kvm"
	vm, err := kvm.boot(ctx, Config{Timeout: 10 * time.Second})
	return err == nil && vm.Wait() == nil
}

func boot(t testing.TB, c Config) (*VM, error) {
	s, err := sharedParts(t)
	if err != nil {
		return nil, err
	}
	return s.boot(t.Context(), c)
}

func (s *shared) boot(ctx context.Context, c Config) (*VM, error) {
	initramfs, err := s.initramfs(c)
	if err != nil {
		return nil, fmt.Errorf("making the initramfs: %w", err)
	}
	defer initramfs.Close()
	// A pair has no name in the file system, and no connection to wait for.
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("making the port: %w", err)
	}
	port, theirs := os.NewFile(uintptr(pair[0]), "port"), os.NewFile(uintptr(pair[1]), "port")
	defer theirs.Close() // qemu has its own; the port must end with qemu
	if c.Timeout == 0 {
		c.Timeout = 2 * time.Minute
	}
	vm := &VM{began: time.Now(), done: make(chan struct{}), changed: make(chan struct{})}
	ctx, stop := context.WithTimeout(ctx, c.Timeout)
	vm.ctx, vm.cut = context.WithCancelCause(ctx)
	cmd := exec.CommandContext(vm.ctx, "qemu-system-x86_64", s.args(c, "/proc/self/fd/4")...)
	cmd.ExtraFiles = []*os.File{theirs, initramfs}
	cmd.Stdout, cmd.Stderr = &vm.console, &vm.console
	cmd.WaitDelay = time.Second
	// Its own group: an interrupt from the terminal is for the test, whose end
	// is the machine's.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		defer stop()
		// Linux sends Pdeathsig when the thread that started qemu ends.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		vm.run(cmd, port, started)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("starting qemu: %w", err)
	}
	return vm, nil
}

// args is qemu's command line. Descriptor 3 is the port.
func (s *shared) args(c Config, initramfs string) []string {
	if c.Memory == 0 {
		c.Memory = 1024
	}
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-machine", "q35", "-accel", s.accel, "-cpu", "max", "-smp", "2", "-m", strconv.Itoa(c.Memory),
		"-kernel", s.kernel, "-initrd", initramfs, "-append", strings.Join(append([]string{
			"console=ttyS0", "rdinit=/init", "panic=-1", "oops=panic",
			// Both take a second of emulation.
			"mitigations=off", "cryptomgr.notests",
		}, c.KernelArgs...), " "),
		"-serial", "stdio",
		"-device", "virtio-serial-pci", "-chardev", "socket,id=port,fd=3",
		"-device", "virtserialport,chardev=port,name=" + wire.PortName,
		// Where a machine that boots from its disk has that disk.
		"-blockdev", "driver=null-co,node-name=vda,size=1048576,read-zeroes=on,read-only=on",
		"-device", "virtio-blk-pci,drive=vda",
	}
	for i, d := range c.Disks {
		name := "vd" + string(rune('b'+i))
		args = append(args,
			// The host's page cache outlives qemu, so there is nothing to flush.
			"-blockdev", "driver=raw,node-name="+name+",cache.no-flush=on,file.driver=file,file.locking=on,file.filename="+d.Path(),
			"-device", "virtio-blk-pci,drive="+name+",serial="+name)
	}
	return append(args, c.Devices...)
}

// initramfs is the base's, followed by what this machine has of its own.
func (s *shared) initramfs(c Config) (_ *os.File, err error) {
	job, err := json.Marshal(wire.Job{Args: c.Cmd, Env: append(guestEnv(), c.Env...)})
	if err != nil {
		return nil, err
	}
	own := tree{
		"init":            {mode: unix.S_IFREG | 0o755, data: s.init},
		rel(wire.JobPath): {mode: unix.S_IFREG | 0o600, data: job},
	}
	for there, here := range c.Files {
		info, err := os.Stat(here)
		if err != nil {
			return nil, err
		}
		data, err := os.ReadFile(here)
		if err != nil {
			return nil, err
		}
		own[merged(there)] = node{mode: unix.S_IFREG | uint32(info.Mode().Perm()), data: data}
	}
	common, err := os.ReadFile(s.base.initramfs)
	if err != nil {
		return nil, err
	}
	f, err := unnamed()
	if err != nil {
		return nil, err
	}
	for _, part := range [][]byte{common, own.cpio()} {
		if _, err := f.Write(part); err != nil {
			_ = f.Close()
			return nil, err
		}
	}
	return f, nil
}
