// Command init is the first program in the virtual machines of podvm/vmtest. It
// makes the mounts and loads the kernel modules every program expects, runs the
// one program of its job as root, passes on what that writes and how it ends,
// and powers the machine off. It is process 1: when it dies, the kernel panics,
// and the host reports that with the console.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm/vmtest/internal/wire"
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "init: only the kernel of a virtual machine runs this")
		os.Exit(2)
	}
	err := run()
	if err != nil {
		// The console is what is left where the host could not be told.
		fmt.Fprintln(os.Stderr, "init:", err)
	}
	unix.Sync()
	// The power goes off whatever is mounted: that is for tests to cope with.
	fmt.Fprintln(os.Stderr, "init:", unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF))
}

func run() error {
	ready := wire.Ready{Init: uptime()}
	if err := setUp(); err != nil {
		return err
	}
	host, err := openPort()
	if err != nil {
		return err
	}
	defer host.Close()
	events := json.NewEncoder(host)
	status, err := work(&ready, events)
	exit := wire.Exit{Status: status}
	if err != nil {
		exit.Error = err.Error()
	}
	return errors.Join(err, events.Encode(wire.Event{Exit: &exit}), taken(host))
}

// taken waits until the host has taken all events: a write returns before that,
// and what is on its way is lost when the machine goes off.
func taken(host io.Reader) error {
	if _, err := io.ReadFull(host, make([]byte, 1)); err != nil {
		return fmt.Errorf("waiting for the host: %w", err)
	}
	return nil
}

func work(ready *wire.Ready, events *json.Encoder) (status int, err error) {
	if err := loadModules(); err != nil {
		return 0, err
	}
	if err := setUpNetwork(); err != nil {
		return 0, err
	}
	raw, err := os.ReadFile(wire.JobPath)
	if err != nil {
		return 0, fmt.Errorf("reading the job: %w", err)
	}
	var job wire.Job
	if err := json.Unmarshal(raw, &job); err != nil {
		return 0, fmt.Errorf("parsing the job: %w", err)
	}
	ready.Program = uptime()
	if err := events.Encode(wire.Event{Ready: ready}); err != nil {
		return 0, fmt.Errorf("telling the host: %w", err)
	}
	if len(job.Args) == 0 {
		return 0, nil
	}
	return supervise(job, events)
}

// openPort opens the port to the host.
func openPort() (*os.File, error) {
	names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		raw, err := os.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("looking for the port to the host: %w", err)
		}
		if strings.TrimSpace(string(raw)) != wire.PortName {
			continue
		}
		f, err := os.OpenFile("/dev/"+filepath.Base(filepath.Dir(name)), os.O_RDWR, 0)
		if err != nil {
			return nil, fmt.Errorf("opening the port to the host: %w", err)
		}
		return f, nil
	}
	return nil, fmt.Errorf("no virtio-serial port is named %s", wire.PortName)
}

// uptime is the time since the kernel started, in seconds.
func uptime() float64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		return -1 // a figure for the reader, no more
	}
	return float64(t.Nano()) / 1e9
}
