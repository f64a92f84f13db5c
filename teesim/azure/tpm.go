package azure

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"github.com/google/go-tpm/tpm2/transport"
	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm"
)

// commandTime bounds one command. The longest is the making of an RSA key.
const commandTime = time.Minute

// ErrNoTPM says that the program swtpm, which is the TPM, is not installed.
var ErrNoTPM = errors.New("swtpm is not installed: it is the Debian package swtpm")

// ErrTPM says that the TPM is gone: its process ended, or does not answer.
var ErrTPM = errors.New("the simulated TPM is gone")

// softTPM is a running swtpm. It is safe for concurrent use.
type softTPM struct {
	cmd  *exec.Cmd
	dir  string
	gone chan struct{} // closed when the process has ended
	end  error         // why it did; read after gone

	mu   sync.Mutex // one command at a time
	conn net.Conn
	err  error // the first failure; the connection is out of step after it
}

// startTPM starts a new TPM with its state in a directory of its own below dir.
// It has no socket that others could connect to, and ends with our end of the
// pair, so even a crash of ours leaves no process behind.
func startTPM(dir string) (_ *softTPM, err error) {
	program, err := exec.LookPath("swtpm")
	if err != nil {
		return nil, fmt.Errorf("%w (%w)", ErrNoTPM, err)
	}
	state, err := os.MkdirTemp(dir, "vtpm-")
	if err != nil {
		return nil, fmt.Errorf("making the TPM's directory: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(state))
		}
	}()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("making the TPM's socket: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "tpm"), os.NewFile(uintptr(pair[1]), "tpm")
	defer theirs.Close()
	defer ours.Close() // FileConn has a copy
	conn, err := net.FileConn(ours)
	if err != nil {
		return nil, fmt.Errorf("making the TPM's socket: %w", err)
	}
	// The state is in the working directory: swtpm would take a comma in a
	// path for the next option. Close ends it, not a context.
	said := new(excerpt)
	cmd := exec.Command(program, "socket", "--tpm2", "--tpmstate", "dir=.,mode=0600", "--fd", "3", //nolint:noctx // see above
		"--flags", "not-need-init,startup-clear")
	cmd.Dir, cmd.ExtraFiles, cmd.Stdout, cmd.Stderr = state, []*os.File{theirs}, said, said
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // an interrupt from the terminal is for us, who close it then
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("starting swtpm: %w", err), conn.Close())
	}
	t := &softTPM{cmd: cmd, dir: state, gone: make(chan struct{}), conn: conn}
	go func() {
		defer close(t.gone)
		err := cmd.Wait()
		t.end = fmt.Errorf("%w: swtpm ended (%v) and said %q", ErrTPM, err, podvm.Printable(said.String(), excerptSize))
	}()
	return t, nil
}

// excerpt keeps the first bytes written to it.
type excerpt struct{ buf bytes.Buffer }

const excerptSize = 512

func (e *excerpt) Write(p []byte) (int, error) {
	e.buf.Write(p[:min(len(p), excerptSize-e.buf.Len())])
	return len(p), nil
}

func (e *excerpt) String() string { return e.buf.String() }

// Do calls f with the TPM, which nobody else uses meanwhile.
func (t *softTPM) Do(f func(transport.TPM) error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return f((*exchanger)(t))
}

// exchanger is a softTPM whose lock is held.
type exchanger softTPM

// Send implements transport.TPM. Errors: ErrTPM, which is for good.
func (t *exchanger) Send(cmd []byte) ([]byte, error) {
	if t.err != nil {
		return nil, t.err
	}
	out, err := t.exchange(cmd)
	if err != nil {
		_ = t.cmd.Process.Kill() // one that does not answer must not look alive
		<-t.gone
		t.err = fmt.Errorf("%w, after: %w", t.end, err)
		return nil, t.err
	}
	return out, nil
}

func (t *exchanger) exchange(cmd []byte) ([]byte, error) {
	if err := t.conn.SetDeadline(time.Now().Add(commandTime)); err != nil {
		return nil, err
	}
	if _, err := t.conn.Write(cmd); err != nil {
		return nil, err
	}
	return readFrame(t.conn, func() {})
}

// stopWith ends the TPM when ctx does, until the function returned is called.
func (t *softTPM) stopWith(ctx context.Context) (release func() bool) {
	return context.AfterFunc(ctx, func() { _ = t.cmd.Process.Kill() })
}

// Close ends the process and removes its state.
func (t *softTPM) Close() error {
	_ = t.cmd.Process.Kill() // it may have ended
	<-t.gone
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err == nil {
		t.err = ErrTPM
	}
	return errors.Join(t.conn.Close(), os.RemoveAll(t.dir))
}
