package main

import (
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/sealpod/sealpod/cdh/rest"
	"github.com/sealpod/sealpod/podvm/rpc"
)

// toldDaemon is a daemon with a service manager that it tells how it fares.
type toldDaemon struct {
	t       *testing.T
	cmd     *exec.Cmd
	manager *net.UnixConn
	log     bytes.Buffer
}

func startTold(t *testing.T, args ...string) *toldDaemon {
	socket := filepath.Join(t.TempDir(), "notify")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	d := &toldDaemon{t: t, manager: manager, cmd: exec.CommandContext(t.Context(), args[0], args[1:]...)}
	d.cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+socket, "WATCHDOG_USEC=200000")
	d.cmd.Stderr = &d.log
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.cmd.Process.Kill(); _ = d.cmd.Wait(); _ = manager.Close() })
	return d
}

// next is what the manager is told next. A daemon that tells nothing for long never
// will: it may have ended.
func (d *toldDaemon) next() string {
	d.t.Helper()
	b := make([]byte, 64)
	err := d.manager.SetReadDeadline(time.Now().Add(30 * time.Second))
	n := 0
	if err == nil {
		n, err = d.manager.Read(b)
	}
	if err != nil {
		_ = d.cmd.Process.Kill()
		d.t.Fatalf("%v; %v; its log:\n%s", err, d.cmd.Wait(), d.log.String())
	}
	return string(b[:n])
}

func (d *toldDaemon) wants(state string, times int) {
	d.t.Helper()
	for range times {
		if got := d.next(); got != state {
			d.t.Fatalf("%q, want %q", got, state)
		}
	}
}

// freePort is an address of loopback that nobody listens at.
func freePort(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// Each daemon says that it is ready when who asks at once is answered, then that
// it is not stuck, and at the end that it stops.
func TestDaemonsTellSystemd(t *testing.T) {
	dir := t.TempDir()
	sock := func(name string) string { return filepath.Join(dir, name) }
	config, port := filepath.Join(dir, "cdh.toml"), freePort(t)
	if err := os.WriteFile(config, []byte("socket = \"unix://"+sock("cdh")+"\"\n[kbc]\nname = \"offline_fs_kbc\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, daemon := range []struct {
		args    []string
		answers func(context.Context) error
	}{
		{[]string{"attestation-agent", "-a", "unix://" + sock("aa")},
			func(ctx context.Context) error { return rpc.Answers(ctx, sock("aa")) }},
		{[]string{"attestation-agent", "-a", port},
			func(ctx context.Context) error { return rpc.AnswersGRPC(ctx, port) }},
		{[]string{"confidential-data-hub", "-c", config},
			func(ctx context.Context) error { return rpc.Answers(ctx, sock("cdh")) }},
		{[]string{"api-server-rest", "-b", "unix://" + sock("rest")},
			func(ctx context.Context) error {
				return rest.Answers(ctx, &net.UnixAddr{Name: sock("rest"), Net: "unix"})
			}},
	} {
		t.Run(daemon.args[0], func(t *testing.T) {
			d := startTold(t, daemon.args...)
			d.wants("READY=1", 1)
			if err := daemon.answers(t.Context()); err != nil {
				t.Errorf("ready, but %v", err)
			}
			d.wants("WATCHDOG=1", 3)
			if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			got := d.next()
			for got == "WATCHDOG=1" {
				got = d.next()
			}
			if err := d.cmd.Wait(); err != nil || got != "STOPPING=1" {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
}

// Containers can hold all connections of the REST server. That is waited out, and
// no reason for the service manager to kill it.
func TestRESTWithoutFreeConnectionsIsNotStuck(t *testing.T) {
	sock := filepath.Join(t.TempDir(), "rest")
	d := startTold(t, "api-server-rest", "-b", "unix://"+sock)
	d.wants("READY=1", 1)
	for range 300 {
		c, err := net.Dial("unix", sock)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	d.wants("WATCHDOG=1", 20) // more than were told meanwhile
}
