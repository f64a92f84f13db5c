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
	"os"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm/vmtest/internal/guest"
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
	ready := wire.Ready{Init: guest.Uptime()}
	if err := setUp(); err != nil {
		return err
	}
	host, err := guest.OpenPort()
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
	return errors.Join(err, events.Encode(wire.Event{Exit: &exit}), guest.Taken(host))
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
	ready.Program = guest.Uptime()
	if err := events.Encode(wire.Event{Ready: ready}); err != nil {
		return 0, fmt.Errorf("telling the host: %w", err)
	}
	if len(job.Args) == 0 {
		return 0, nil
	}
	return supervise(job, events)
}
