package vmtest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"
)

// monitor is the connection to qemu's machine protocol.
// Source: qemu docs/interop/qmp-spec.txt.
type monitor struct {
	mu   sync.Mutex // one exchange at a time
	conn net.Conn
	in   *json.Decoder
}

// monitorTime bounds an exchange, the start of qemu included.
const monitorTime = 30 * time.Second

// networkArgs makes a network card; nothing beyond qemu is reachable through it
// from the guest, unless it is to have a router and name server, which qemu's DHCP
// server names only then. The guest is at wire.GuestIP. Qemu picks the ports of
// the host, so that nobody else can have taken them.
func networkArgs(ports []int, monitor int, router bool) []string {
	netdev := "user,id=net"
	if !router {
		netdev += ",restrict=on"
	}
	for _, port := range ports {
		netdev += fmt.Sprintf(",hostfwd=tcp:127.0.0.1:0-:%d", port)
	}
	return []string{
		"-netdev", netdev, "-device", "virtio-net-pci,netdev=net,romfile=",
		"-chardev", fmt.Sprintf("socket,id=monitor,fd=%d", monitor), "-mon", "chardev=monitor,mode=control",
	}
}

// openMonitor makes the monitor and returns qemu's end of it.
func (vm *VM) openMonitor() (theirs *os.File, err error) {
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer ours.Close() // FileConn has a copy
	conn, err := net.FileConn(ours)
	if err != nil {
		_ = theirs.Close()
		return nil, fmt.Errorf("opening qemu's monitor: %w", err)
	}
	vm.monitor = &monitor{conn: conn}
	return theirs, nil
}

// Addr is where the host reaches a TCP port of the guest that Config.Ports
// names, as address:port. A connection is refused, or closed at once, while
// nothing in the guest listens.
func (vm *VM) Addr(ctx context.Context, port int) (string, error) {
	if vm.monitor == nil {
		return "", errors.New("the machine has no network")
	}
	table, err := vm.monitor.human(ctx, "info usernet")
	if err != nil {
		return "", fmt.Errorf("asking qemu for its ports: %w", err)
	}
	return forwarded(table, port)
}

// forward is a line of qemu's table: protocol, descriptor, the host's address
// and port, the guest's.
var forward = regexp.MustCompile(`^TCP\[HOST_FORWARD\] +\d+ +([0-9.]+) +(\d+) +[0-9.]+ +(\d+) `)

func forwarded(table string, port int) (string, error) {
	for line := range strings.Lines(table) {
		m := forward.FindStringSubmatch(strings.TrimSpace(line) + " ")
		if m != nil && m[3] == strconv.Itoa(port) {
			return net.JoinHostPort(m[1], m[2]), nil
		}
	}
	return "", fmt.Errorf("qemu does not forward port %d: %q", port, table)
}

// human runs a command of the kind people type, and returns its answer.
func (m *monitor) human(ctx context.Context, command string) (answer string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.conn.SetDeadline(time.Now().Add(monitorTime)); err != nil {
		return "", err
	}
	stop := context.AfterFunc(ctx, func() { _ = m.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if m.in == nil {
		m.in = json.NewDecoder(bufio.NewReader(io.LimitReader(m.conn, 1<<20)))
		if _, err := m.execute(`{"execute": "qmp_capabilities"}`); err != nil {
			return "", err
		}
	}
	request, err := json.Marshal(map[string]any{
		"execute": "human-monitor-command", "arguments": map[string]string{"command-line": command},
	})
	if err != nil {
		return "", err
	}
	raw, err := m.execute(string(request))
	if err != nil {
		return "", err
	}
	return answer, json.Unmarshal(raw, &answer)
}

// execute sends a request and returns what it returned; the greeting and events
// that come before are nothing to us.
func (m *monitor) execute(request string) (json.RawMessage, error) {
	if _, err := io.WriteString(m.conn, request+"\n"); err != nil {
		return nil, err
	}
	for {
		var reply struct {
			Return json.RawMessage
			Error  *struct{ Desc string }
		}
		if err := m.in.Decode(&reply); err != nil {
			return nil, err
		}
		switch {
		case reply.Error != nil:
			return nil, fmt.Errorf("qemu refuses %s: %s", request, reply.Error.Desc)
		case reply.Return != nil:
			return reply.Return, nil
		}
	}
}
