package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm/vmtest/internal/guest"
	"github.com/sealpod/sealpod/podvm/vmtest/internal/wire"
)

// supervise runs the program of a job to its end and passes on its output. What
// it leaves running ends with it.
func supervise(job wire.Job, events *json.Encoder) (status int, err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return 0, fmt.Errorf("making the program's output: %w", err)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, fmt.Errorf("making the program's input: %w", err)
	}
	// Not os/exec: it would compete with reap for the program's end.
	pid, err := syscall.ForkExec(job.Args[0], job.Args, &syscall.ProcAttr{
		Dir: "/tmp", Env: job.Env, Files: []uintptr{null.Fd(), w.Fd(), w.Fd()},
		Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err := errors.Join(w.Close(), null.Close()); err != nil {
		return 0, err
	}
	if err != nil {
		return 0, fmt.Errorf("starting %s: %w", job.Args[0], err)
	}
	copied := make(chan error, 1)
	go func() { copied <- guest.Forward(events, r) }()
	status, err = reap(pid)
	if killErr := unix.Kill(-1, unix.SIGKILL); killErr != nil && !errors.Is(killErr, unix.ESRCH) {
		err = errors.Join(err, fmt.Errorf("ending what the program left: %w", killErr))
	}
	return status, errors.Join(err, <-copied)
}

// reap waits for the process pid, and for every orphan that ends before it.
func reap(pid int) (status int, err error) {
	for {
		var ws unix.WaitStatus
		got, err := unix.Wait4(-1, &ws, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, fmt.Errorf("waiting for the program: %w", err)
		case got != pid:
		case ws.Signaled():
			return 128 + int(ws.Signal()), nil
		default:
			return ws.ExitStatus(), nil
		}
	}
}
