package vmtest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sealpod/sealpod/podvm/vmtest/internal/wire"
)

var (
	// ErrStatus says that the program ran and failed.
	ErrStatus = errors.New("the program failed")
	// ErrInit says that the guest could not run the program.
	ErrInit = errors.New("the guest could not run its program")
	// ErrTimeout says that the machine was still on when its time was over.
	ErrTimeout = errors.New("the machine did not come to an end in time")
	// ErrCrash says that the machine ended without a word of the program's end:
	// its kernel panicked, or qemu could not start it.
	ErrCrash = errors.New("the machine ended before its program")
	// ErrPowerCut says that PowerCut ended the machine.
	ErrPowerCut = errors.New("the power was cut")
)

// MachineError is how a machine failed. It wraps one of the errors above.
type MachineError struct {
	Err     error
	Status  int    // the program's, with ErrStatus
	Output  string // as VM.Output
	Console string // as VM.Console
}

// Error has the end of the output and of the console with it, on many lines.
func (e *MachineError) Error() string {
	return fmt.Sprintf("%v\n--- the end of the program's output:\n%s\n--- the end of the console:\n%s\n---",
		e.Err, readable(e.Output, 64<<10), readable(e.Console, 8<<10))
}

func (e *MachineError) Unwrap() error { return e.Err }

// VM is a machine that has been switched on. It is safe for concurrent use.
type VM struct {
	ctx     context.Context // of the machine; its cause says why it was ended
	cut     context.CancelCauseFunc
	began   time.Time
	pid     int // of qemu
	console tail
	output  tail
	port    *os.File      // what the guest's events come from
	monitor *monitor      // nil without network
	tpm     *exec.Cmd     // nil without TPM
	done    chan struct{} // closed when the machine is off
	err     error         // read after done

	mu      sync.Mutex
	ready   *wire.Ready
	readyAt time.Duration // from power-on
	exit    *wire.Exit
	changed chan struct{} // closed and replaced at every event
}

// Run switches a machine on, waits until it is off, and returns its program's
// output. The test fails unless the program has returned 0.
func Run(t testing.TB, c Config) string {
	t.Helper()
	for try := 1; ; try++ {
		vm := Start(t, c)
		err := vm.Wait()
		if err == nil {
			return vm.Output()
		}
		if !vm.Stumbled(t, try) {
			t.Fatal(err)
		}
	}
}

// maxTries is how often a machine is switched on whose emulator stumbles.
const maxTries = 3

// Stumbled tells, of a machine that is off, whether the emulator is to blame and
// the same machine may be switched on again, as it has been try times. Qemu with a
// thread for each processor now and then does not see that the other one has
// changed the kernel's code, whose patching then ends in a breakpoint nobody waits
// for, within the first seconds and before anything of ours runs.
func (vm *VM) Stumbled(t testing.TB, try int) bool {
	t.Helper()
	if try == maxTries || !errors.Is(vm.Wait(), ErrCrash) || vm.Output() != "" || !strings.Contains(vm.Console(), "Oops: int3:") {
		return false
	}
	t.Logf("the emulator stumbled over a breakpoint of the kernel; try %d", try+1)
	return true
}

// Start switches a machine on. It is off at the latest when the test ends.
func Start(t testing.TB, c Config) *VM {
	t.Helper()
	vm, err := boot(t, c)
	if err != nil {
		t.Fatalf("starting the virtual machine: %v", err)
	}
	t.Cleanup(vm.PowerCut)
	return vm
}

// Wait waits until the machine is off. It returns nil when its program has
// returned 0 and the machine has powered itself off, or a *MachineError.
func (vm *VM) Wait() error {
	<-vm.done
	return vm.err
}

// PowerCut ends the machine as a power cut does, and returns when it is off.
// What the guest has not written to its disks is lost; what it has written is
// kept, flushed or not. It does nothing to a machine that is off.
func (vm *VM) PowerCut() {
	vm.cut(ErrPowerCut)
	<-vm.done
}

// Output is what the program has written so far, its last mebibyte at most.
func (vm *VM) Output() string { return vm.output.String() }

// Console is what the kernel and qemu have written so far, the last of it.
func (vm *VM) Console() string { return vm.console.String() }

// Boot is the time from power-on to the start of the program, and the part of
// it up to the start of init. Both are 0 before the program starts.
func (vm *VM) Boot() (program, init time.Duration) {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	if vm.ready == nil {
		return 0, 0
	}
	return vm.readyAt, vm.readyAt - time.Duration((vm.ready.Program-vm.ready.Init)*float64(time.Second))
}

// WaitOutput waits until the program has written text. It returns the error of
// ctx, or that of a machine that ends before.
func (vm *VM) WaitOutput(ctx context.Context, text string) error {
	for {
		vm.mu.Lock()
		changed := vm.changed
		vm.mu.Unlock()
		if strings.Contains(vm.Output(), text) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("waiting for the guest to write %q: %w", text, context.Cause(ctx))
		case <-vm.done:
			if strings.Contains(vm.Output(), text) {
				return nil
			}
			return errors.Join(fmt.Errorf("the guest has never written %q", text), vm.err)
		}
	}
}

// listen takes the guest's events until the port closes, which is when the
// machine is off.
func (vm *VM) listen(port io.ReadWriter) {
	lines := bufio.NewScanner(port)
	lines.Buffer(nil, wire.LineSize)
	for lines.Scan() {
		var e wire.Event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			vm.cut(fmt.Errorf("%w: it said %.100q", ErrCrash, lines.Bytes()))
			return
		}
		vm.mu.Lock()
		switch {
		case e.Ready != nil:
			vm.ready, vm.readyAt = e.Ready, time.Since(vm.began)
		case e.Exit != nil:
			vm.exit = e.Exit
		}
		_, _ = vm.output.Write(e.Output)
		close(vm.changed)
		vm.changed = make(chan struct{})
		vm.mu.Unlock()
		if e.Exit != nil {
			_, _ = port.Write([]byte{0}) // where it fails, the machine's time limit is next
		}
	}
}

// verdict is what Wait returns, after the end of qemu with ended.
func (vm *VM) verdict(ended error) error {
	e := &MachineError{Output: vm.Output(), Console: vm.Console()}
	switch {
	case vm.ctx.Err() != nil && ended != nil: // not when it was off by then
		e.Err = context.Cause(vm.ctx)
		if errors.Is(e.Err, context.DeadlineExceeded) {
			e.Err = ErrTimeout
		}
	case vm.exit == nil:
		e.Err = fmt.Errorf("%w (qemu: %v)", ErrCrash, describe(ended))
	case vm.exit.Error != "":
		e.Err = fmt.Errorf("%w: %s", ErrInit, vm.exit.Error)
	case vm.exit.Status != 0:
		e.Err, e.Status = fmt.Errorf("%w: exit status %d", ErrStatus, vm.exit.Status), vm.exit.Status
	case ended != nil:
		e.Err = fmt.Errorf("qemu, after the program: %w", ended)
	default:
		return nil
	}
	return e
}

func describe(ended error) string {
	if ended == nil {
		return "exit status 0"
	}
	return ended.Error()
}

// run keeps qemu running until it ends by itself or by vm.ctx. It must have its
// goroutine to itself.
func (vm *VM) run(cmd *exec.Cmd, started chan<- error) {
	defer vm.cut(nil)
	err := cmd.Start()
	if err == nil {
		vm.pid = cmd.Process.Pid
	}
	started <- err
	if err != nil {
		return
	}
	defer close(vm.done)
	listened := make(chan struct{})
	go func() {
		defer close(listened)
		vm.listen(vm.port)
	}()
	err = cmd.Wait()
	<-listened
	vm.release()
	vm.err = vm.verdict(err)
}

// release lets go of what the machine had on the host. Qemu has ended, or has
// never started.
func (vm *VM) release() {
	if vm.port != nil {
		_ = vm.port.Close()
	}
	if vm.monitor != nil {
		_ = vm.monitor.conn.Close()
	}
	if vm.tpm != nil {
		// It ends with its connection; if not, it has nothing to lose.
		late := time.AfterFunc(5*time.Second, func() { _ = vm.tpm.Process.Kill() })
		_ = vm.tpm.Wait()
		late.Stop()
	}
}
