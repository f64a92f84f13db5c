// Package guest is what the programs in virtual machines that talk to the host
// have in common.
package guest

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

// OpenPort opens the port to the host.
func OpenPort() (*os.File, error) {
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

// Uptime is the time since the kernel started, in seconds.
func Uptime() float64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		return -1 // a figure for the reader, no more
	}
	return float64(t.Nano()) / 1e9
}

// Taken waits until the host has taken all events: a write returns before that,
// and what is on its way is lost when the machine goes off.
func Taken(host io.Reader) error {
	if _, err := io.ReadFull(host, make([]byte, 1)); err != nil {
		return fmt.Errorf("waiting for the host: %w", err)
	}
	return nil
}

// Forward sends what comes out of r to the host.
func Forward(events *json.Encoder, r io.Reader) error {
	buf := make([]byte, wire.OutputSize)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			if err := events.Encode(wire.Event{Output: buf[:n]}); err != nil {
				return fmt.Errorf("sending the program's output: %w", err)
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading the program's output: %w", err)
		}
	}
}
