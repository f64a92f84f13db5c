package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/sealpod/sealpod/podvm"
)

// stopTime is how long a daemon may take to stop before it is killed.
const stopTime = 5 * time.Second

// process is one running daemon of the guest binary.
type process struct {
	name string
	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed when the process has ended
	err  error         // of Wait, once done is closed
}

// start runs the sealpod applet name with args in that environment alone. Its log
// goes to a file in dir.
func start(sealpod, dir, name string, env []string, args ...string) (*process, error) {
	p := &process{name: name, log: filepath.Join(dir, name+".log"), done: make(chan struct{})}
	out, err := os.OpenFile(p.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("creating the log of %s: %w", name, err)
	}
	defer out.Close()
	// Not CommandContext: an interrupt stops daemons in order, see stop.
	p.cmd = exec.Command(sealpod, append([]string{name}, args...)...) //nolint:noctx // see above
	p.cmd.Stdout, p.cmd.Stderr = out, out
	p.cmd.Env = env
	// A group of its own keeps a terminal's Ctrl-C from reaching the daemons
	// before the demo stops them; the death signal covers a killed demo.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// ready waits until probe succeeds, the process ends or ctx does.
func (p *process) ready(ctx context.Context, probe func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		if probe() {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("%s ended early (%v); its log ends with:\n%s", p.name, p.err, p.tail())
		case <-ctx.Done():
			return fmt.Errorf("%s did not become ready: %w; its log ends with:\n%s", p.name, context.Cause(ctx), p.tail())
		case <-tick.C:
		}
	}
}

// stop asks the process to end and makes it after a while.
func (p *process) stop() error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(stopTime):
		_ = p.cmd.Process.Kill()
		<-p.done
		return fmt.Errorf("stopping %s: killed after %v", p.name, stopTime)
	}
	if p.err != nil {
		return fmt.Errorf("stopping %s: %w; its log ends with:\n%s", p.name, p.err, p.tail())
	}
	return nil
}

// tail returns the last lines of the process's log.
func (p *process) tail() string {
	b, err := podvm.ReadFileMax(p.log, 64<<20)
	if err != nil {
		return err.Error()
	}
	lines := bytes.Split(bytes.TrimSpace(b), []byte("\n"))
	return string(bytes.Join(lines[max(0, len(lines)-5):], []byte("\n")))
}

// memoryKB returns a size from /proc/PID/status in KiB, as "VmRSS" or the peak
// "VmHWM", or 0 when there is none.
func (p *process) memoryKB(key string) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	for line := range bytes.Lines(b) {
		var kb int
		if n, _ := fmt.Sscanf(string(line), key+": %d kB", &kb); n == 1 {
			return kb
		}
	}
	return 0
}

// findSealpod returns the guest binary: the one named, the one beside this
// program, or the one on PATH.
func findSealpod(named string) (string, error) {
	if named != "" {
		_, err := os.Stat(named)
		return named, err
	}
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), "sealpod")
		if _, err := os.Stat(beside); err == nil {
			return beside, nil
		}
	}
	p, err := exec.LookPath("sealpod")
	if errors.Is(err, exec.ErrNotFound) {
		return "", errors.New("the sealpod binary is neither beside sealctl nor on PATH; build it with make, or name it with --sealpod")
	}
	return p, err
}
