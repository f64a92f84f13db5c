package vmtest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm/vmtest/internal/wire"
)

// command is qemu's command line, and the files it inherits.
type command struct {
	args  []string
	files []*os.File
}

func (c *command) add(args ...string) { c.args = append(c.args, args...) }

// pass hands a file over and returns its number in qemu. The command owns it.
func (c *command) pass(f *os.File) (fd int) {
	c.files = append(c.files, f)
	return 2 + len(c.files)
}

// close closes the files: qemu has its own, and each must end with it.
func (c *command) close() {
	for _, f := range c.files {
		_ = f.Close()
	}
}

func (s *shared) boot(ctx context.Context, c Config) (_ *VM, err error) {
	if c.Timeout == 0 {
		c.Timeout = 2 * time.Minute
	}
	vm := &VM{began: time.Now(), done: make(chan struct{}), changed: make(chan struct{})}
	var line command
	defer line.close()
	defer func() {
		if err != nil {
			line.close()
			vm.release()
		}
	}()
	if err := s.plan(&line, vm, c); err != nil {
		return nil, err
	}
	ctx, stop := context.WithTimeout(ctx, c.Timeout)
	vm.ctx, vm.cut = context.WithCancelCause(ctx)
	cmd := exec.CommandContext(vm.ctx, "qemu-system-x86_64", line.args...)
	cmd.ExtraFiles, cmd.Stdout, cmd.Stderr = line.files, &vm.console, &vm.console
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
		vm.run(cmd, started)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("starting qemu: %w", err)
	}
	return vm, nil
}

// plan makes the command line, and the ends of its connections that are the
// machine's.
func (s *shared) plan(line *command, vm *VM, c Config) error {
	// A pair of sockets has no name in the file system, and no connection to
	// wait for.
	port, theirs, err := socketPair()
	if err != nil {
		return err
	}
	vm.port = port
	their := line.pass(theirs)
	line.add(
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio",
		"-machine", "q35", "-accel", s.accel, "-cpu", "max", "-smp", "2", "-m", strconv.Itoa(c.memory()),
		"-device", "virtio-serial-pci", "-chardev", fmt.Sprintf("socket,id=port,fd=%d", their),
		"-device", "virtserialport,chardev=port,name="+wire.PortName,
	)
	if c.Boot != nil {
		err = firmware(line, c.Boot)
	} else {
		err = s.kernelAndInitramfs(line, c)
	}
	if err != nil {
		return err
	}
	line.add(diskArgs(c.Disks)...)
	if len(c.Ports) > 0 {
		theirs, err := vm.openMonitor()
		if err != nil {
			return err
		}
		line.add(networkArgs(c.Ports, line.pass(theirs), c.Boot != nil)...)
	}
	if c.TPM != nil {
		theirs, err := vm.plugTPM(c.TPM)
		if err != nil {
			return err
		}
		line.add(tpmArgs(line.pass(theirs))...)
	}
	line.add(c.Devices...)
	return nil
}

func (c *Config) memory() int {
	if c.Memory == 0 {
		return 1024
	}
	return c.Memory
}

// kernelAndInitramfs boots without firmware.
func (s *shared) kernelAndInitramfs(line *command, c Config) error {
	initramfs, err := s.initramfs(c)
	if err != nil {
		return fmt.Errorf("making the initramfs: %w", err)
	}
	line.add(
		"-kernel", s.kernel, "-initrd", fmt.Sprintf("/proc/self/fd/%d", line.pass(initramfs)),
		"-append", strings.Join(append(kernelArgs(), c.KernelArgs...), " "),
		// Where a machine that boots from its disk has that disk.
		"-blockdev", "driver=null-co,node-name=vda,size=1048576,read-zeroes=on,read-only=on",
		"-device", "virtio-blk-pci,drive=vda",
	)
	return nil
}

func kernelArgs() []string {
	return []string{
		"console=ttyS0", "rdinit=/init", "panic=-1", "oops=panic",
		// Both take a second of emulation.
		"mitigations=off", "cryptomgr.notests",
	}
}

func diskArgs(disks []*Disk) []string {
	var args []string
	for i, d := range disks {
		args = append(args, diskArg("vd"+string(rune('b'+i)), d)...)
	}
	return args
}

func diskArg(name string, d *Disk) []string {
	return []string{
		// The host's page cache outlives qemu, so there is nothing to flush.
		"-blockdev", "driver=raw,node-name=" + name + ",cache.no-flush=on,file.driver=file,file.locking=on,file.filename=" + d.Path(),
		"-device", "virtio-blk-pci,drive=" + name + ",serial=" + name,
	}
}

// socketPair makes a connection between us and a process of ours.
func socketPair() (ours, theirs *os.File, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("making a pair of sockets: %w", err)
	}
	return os.NewFile(uintptr(pair[0]), "ours"), os.NewFile(uintptr(pair[1]), "theirs"), nil
}
