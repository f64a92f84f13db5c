// Package tool runs the programs that make and mount volumes: cryptsetup, blkid,
// mkfs.ext4, mkfs.xfs, udevadm, zpool, zfs, ossfs, gocryptfs. A program gets its
// secrets by standard input only, is killed with all it started when the context
// ends or this process dies, and what it prints is capped. What else such packages
// share is here too: locks, rollback, mount points that cannot be exchanged.
//
// Data path: the volume packages of the data hub and of the forwarder call it.
//
// Trust: programs come from the image and are trusted; what they print may
// quote bytes of a hostile disk, so it is made printable before it reaches an
// error, and never reaches the caller of the data hub.
package tool

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm"
)

// ErrMissing says that a program is not installed.
var ErrMissing = errors.New("program not installed")

// MaxInput is the largest standard input of a program, in bytes. It is what a
// pipe takes without a reader, so that a secret needs no goroutine to feed it.
const MaxInput = 64 << 10

// maxOutput caps each output of a program, in bytes. A write beyond it fails
// in the program.
const maxOutput = 256 << 10

// packages names the Debian package of each program, for the hint.
var packages = map[string]string{
	"cryptsetup": "cryptsetup-bin", "mkfs.ext4": "e2fsprogs", "mkfs.xfs": "xfsprogs",
	"blkid": "util-linux", "udevadm": "udev",
	"zpool": "zfsutils-linux", "zfs": "zfsutils-linux", "gocryptfs": "gocryptfs", "fusermount3": "fuse3",
}

// ExitError is a program that ended with a status other than 0.
type ExitError struct {
	Program string
	Code    int    // -1 when a signal ended it
	Output  string // the end of what it printed, printable
}

func (e *ExitError) Error() string {
	return fmt.Sprintf("%s ended with status %d: %s", e.Program, e.Code, e.Output)
}

// Runner runs programs found on the PATH of a host. It is safe for concurrent
// use.
type Runner struct{ Host podvm.Host }

// Path returns where the program is: an absolute name as the host has it, any
// other in the directories of PATH.
//
// Errors: ErrMissing, with the package to install as its cause.
func (r Runner) Path(program string) (string, error) {
	var candidates []string
	if filepath.IsAbs(program) {
		candidates = append(candidates, r.Host.Path(program))
	} else {
		for _, dir := range filepath.SplitList(r.Host.Getenv("PATH")) {
			if filepath.IsAbs(dir) {
				candidates = append(candidates, filepath.Join(dir, program))
			}
		}
	}
	for _, path := range candidates {
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	hint := program + " is not installed in the pod VM"
	if p, ok := packages[program]; ok {
		hint += " (Debian package " + p + ")"
	}
	return "", podvm.Explain(fmt.Errorf("%w: %s", ErrMissing, program), hint)
}

// Run runs program with args and input, which may be nil, and returns what it
// wrote to its standard output, also with an error. Run does not keep or wipe
// input.
//
// Errors: ErrMissing, *ExitError, the cause of ctx, podvm.ErrTooLarge for an input
// beyond MaxInput.
func (r Runner) Run(ctx context.Context, input []byte, program string, args ...string) ([]byte, error) {
	path, err := r.Path(program)
	if err != nil {
		return nil, err
	}
	stdin, err := inputPipe(input)
	if err != nil {
		return nil, fmt.Errorf("preparing the input of %s: %w", program, err)
	}
	defer stdin.Close()
	stdout, err := outputFile()
	if err != nil {
		return nil, fmt.Errorf("preparing the output of %s: %w", program, err)
	}
	defer stdout.Close()
	stderr, err := outputFile()
	if err != nil {
		return nil, fmt.Errorf("preparing the output of %s: %w", program, err)
	}
	defer stderr.Close()

	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = r.environment()
	cmd.Dir = "/"
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, stdout, stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	// The death signal is sent when the thread that forked ends.
	runtime.LockOSThread()
	err = cmd.Run()
	runtime.UnlockOSThread()

	out := written(stdout)
	if err == nil {
		return out, nil
	}
	if ctx.Err() != nil {
		return out, fmt.Errorf("running %s: %w", program, context.Cause(ctx))
	}
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return out, fmt.Errorf("running %s: %w", program, err)
	}
	text := strings.TrimSpace(string(written(stderr)))
	if text == "" {
		text = strings.TrimSpace(string(out))
	}
	return out, &ExitError{program, exit.ExitCode(), podvm.Printable(text[max(0, len(text)-600):], 600)}
}

// environment is small and fixed: messages that are parsed are in English.
func (r Runner) environment() []string {
	env := []string{"LC_ALL=C", "PATH=" + r.Host.Getenv("PATH")}
	for _, name := range []string{"DM_DISABLE_UDEV", podvm.HostRootEnv} {
		if v, ok := r.Host.Env(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return env
}

// inputPipe returns a pipe that already holds input and whose writer is gone.
func inputPipe(input []byte) (*os.File, error) {
	if len(input) > MaxInput {
		return nil, fmt.Errorf("%d bytes: %w", len(input), podvm.ErrTooLarge)
	}
	reader, writer, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer writer.Close()
	// Unprivileged users past their share of pipe memory get smaller pipes; a
	// short write must not become a hang.
	if raw, err := writer.SyscallConn(); err == nil {
		var size int
		_ = raw.Control(func(fd uintptr) { size, _ = unix.FcntlInt(fd, unix.F_GETPIPE_SZ, 0) })
		if size < len(input) {
			reader.Close()
			return nil, fmt.Errorf("a pipe holds only %d bytes", size)
		}
	}
	if _, err := writer.Write(input); err != nil {
		reader.Close()
		return nil, err
	}
	return reader, nil
}

// outputFile is memory of a fixed size. Unlike a pipe it has no reader that a
// file system daemon, which outlives Run, could lose: writing to a pipe without
// one would kill it.
func outputFile() (*os.File, error) {
	fd, err := unix.MemfdCreate("output", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "output")
	if err := f.Truncate(maxOutput); err != nil {
		f.Close()
		return nil, err
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_GROW|unix.F_SEAL_SHRINK); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// written returns what was written to f: the program shares its offset.
func written(f *os.File) []byte {
	n, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return nil
	}
	b := make([]byte, min(n, maxOutput))
	n2, _ := f.ReadAt(b, 0)
	return b[:n2]
}
