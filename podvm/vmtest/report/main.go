// Command report runs the program of a job in a virtual machine that has booted
// an image of its own, passes on what that writes and how it ends, and powers the
// machine off. A unit of the image starts it, which only tests put in.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm/vmtest/internal/guest"
	"github.com/sealpod/sealpod/podvm/vmtest/internal/wire"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "report:", err)
	}
	unix.Sync()
	// As pulling the plug: what systemd does at the end is not for every test.
	fmt.Fprintln(os.Stderr, "report:", unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF))
	os.Exit(1)
}

func run() error {
	host, err := guest.OpenPort()
	if err != nil {
		return err
	}
	defer host.Close()
	events := json.NewEncoder(host)
	status, err := work(events)
	exit := wire.Exit{Status: status}
	if err != nil {
		exit.Error = err.Error()
	}
	return errors.Join(err, events.Encode(wire.Event{Exit: &exit}), guest.Taken(host))
}

// await waits for a file, and no longer than a program that says what is missing
// needs it to.
func await(path string) {
	if path == "" {
		return
	}
	late := time.NewTimer(wire.AfterTime * time.Second)
	defer late.Stop()
	again := time.NewTicker(100 * time.Millisecond)
	defer again.Stop()
	for {
		if _, err := os.Stat(path); err == nil {
			return
		}
		select {
		case <-again.C:
		case <-late.C:
			return
		}
	}
}

func work(events *json.Encoder) (status int, err error) {
	raw, err := os.ReadFile(wire.JobPath)
	if err != nil {
		return 0, fmt.Errorf("reading the job: %w", err)
	}
	var job wire.Job
	if err := json.Unmarshal(raw, &job); err != nil {
		return 0, fmt.Errorf("parsing the job: %w", err)
	}
	await(job.After)
	now := guest.Uptime()
	if err := events.Encode(wire.Event{Ready: &wire.Ready{Init: now, Program: now}}); err != nil {
		return 0, fmt.Errorf("telling the host: %w", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return 0, fmt.Errorf("making the program's output: %w", err)
	}
	cmd := exec.Command(job.Args[0], job.Args[1:]...) //nolint:noctx // its end is the machine's
	cmd.Env, cmd.Stdout, cmd.Stderr, cmd.Dir = job.Env, w, w, "/tmp"
	err = cmd.Start()
	if err := errors.Join(err, w.Close()); err != nil {
		return 0, fmt.Errorf("starting %s: %w", job.Args[0], err)
	}
	copied := make(chan error, 1)
	go func() { copied <- guest.Forward(events, r) }()
	err = cmd.Wait()
	var ended *exec.ExitError
	if errors.As(err, &ended) {
		status, err = ended.ExitCode(), nil
		if status < 0 {
			status = 128
		}
	}
	return status, errors.Join(err, <-copied)
}
