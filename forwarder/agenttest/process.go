package agenttest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
)

// The environment of a child: what to listen on, what to write the journal to,
// whether it is Config.Plain, and what of a Guest it has, its socket of the data hub,
// network namespace and directory of containers, separated by commas.
const (
	socketEnv  = "SEALPOD_AGENTTEST_SOCKET"
	journalEnv = "SEALPOD_AGENTTEST_JOURNAL"
	plainEnv   = "SEALPOD_AGENTTEST_PLAIN"
	guestEnv   = "SEALPOD_AGENTTEST_GUEST"
)

// Main is for the beginning of TestMain: in a child that StartProcess made it
// serves an Agent and does not return, elsewhere it does nothing. So a test binary
// made by go test -c is a kata-agent for a unit that sets the variables above, too.
func Main() {
	path := os.Getenv(socketEnv)
	if path == "" {
		return
	}
	if err := serveChild(path); err != nil {
		fmt.Fprintln(os.Stderr, "agenttest:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// serveChild serves until SIGTERM, or until the parent closes standard input or is
// gone.
func serveChild(path string) error {
	cfg := Config{Plain: os.Getenv(plainEnv) != ""}
	if name := os.Getenv(journalEnv); name != "" {
		f, err := os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			return err
		}
		defer f.Close()
		cfg.Journal = f
	}
	if f := strings.Split(os.Getenv(guestEnv), ","); len(f) == 3 {
		cfg.Guest = &Guest{Hub: f[0], Namespace: f[1], Containers: f[2]}
	}
	// As the unit of kata-agent does after an agent that was killed.
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer cancel()
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", path)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	if in, err := os.Stdin.Stat(); err == nil && in.Mode()&fs.ModeNamedPipe != 0 { // not a unit's
		go func() {
			_, _ = io.Copy(io.Discard, os.Stdin)
			cancel()
		}()
	}
	return New(cfg).Serve(ctx, l)
}

// Process is an Agent in a process of its own.
type Process struct {
	cmd   *exec.Cmd
	stdin io.Closer
}

// ProcessConfig says how a Process behaves.
type ProcessConfig struct {
	Socket  string // where it listens; what is there is removed
	Journal string // a file to append to; "" for none
	Plain   bool   // see Config
}

// StartProcess starts a Process and returns when it listens. The test binary's
// TestMain must call Main. It ends with the test, or with Kill or Stop.
func StartProcess(t testing.TB, cfg ProcessConfig) *Process {
	t.Helper()
	cmd := exec.Command("/proc/self/exe") //nolint:noctx // it ends with the test
	cmd.Env = append(os.Environ(), socketEnv+"="+cfg.Socket, journalEnv+"="+cfg.Journal)
	if cfg.Plain {
		cmd.Env = append(cmd.Env, plainEnv+"=1")
	}
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &Process{cmd, stdin}
	t.Cleanup(p.Kill)
	if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "ready\n" {
		t.Fatalf("the agent's process said %q, %v", line, err)
	}
	return p
}

// Pid returns the process's number.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Kill kills the process with SIGKILL and waits for it. It may be called again.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

// Stop ends the process in order and returns how that went.
func (p *Process) Stop() error {
	return errors.Join(p.stdin.Close(), p.cmd.Wait())
}
