package vmtest

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/sealpod/sealpod/podvm/testenv"
)

// TPM is a TPM 2.0 made by swtpm. Machines that have it one after the other see
// the same keys and NV indices; PCRs start anew with each machine.
type TPM struct {
	program, dir string
}

// NewTPM makes a TPM for as long as the test runs.
func NewTPM(t testing.TB) *TPM {
	t.Helper()
	return &TPM{testenv.Tool(t, "swtpm"), t.TempDir()}
}

// plugTPM starts the TPM's process and returns qemu's end of the connection,
// with which the process ends.
func (vm *VM) plugTPM(p *TPM) (theirs *os.File, err error) {
	swtpms, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer swtpms.Close()
	// The state is in the working directory: swtpm would take a comma in a
	// path for the next option. No context: the machine's end is its end.
	cmd := exec.Command(p.program, "socket", "--tpm2", "--tpmstate", "dir=.,mode=0600", //nolint:noctx // see above
		"--ctrl", "type=unixio,clientfd=3", "--terminate")
	cmd.Dir, cmd.ExtraFiles, cmd.Stdout, cmd.Stderr = p.dir, []*os.File{swtpms}, &vm.console, &vm.console
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // as qemu's
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		_ = theirs.Close()
		return nil, fmt.Errorf("starting swtpm: %w", err)
	}
	vm.tpm = cmd
	return theirs, nil
}

// tpmArgs makes the device that PCs have.
func tpmArgs(fd int) []string {
	return []string{
		"-chardev", fmt.Sprintf("socket,id=tpm,fd=%d", fd),
		"-tpmdev", "emulator,id=tpm,chardev=tpm", "-device", "tpm-tis,tpmdev=tpm",
	}
}
