package main

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/sealpod/sealpod/cdh/rest"
	"github.com/sealpod/sealpod/podvm/rpc"
)

// Each daemon says that it is ready when who asks at once is answered, then that
// it is not stuck, and at the end that it stops.
func TestDaemonsTellSystemd(t *testing.T) {
	dir := t.TempDir()
	sock := func(name string) string { return filepath.Join(dir, name) }
	config := filepath.Join(dir, "cdh.toml")
	if err := os.WriteFile(config, []byte("socket = \"unix://"+sock("cdh")+"\"\n[kbc]\nname = \"offline_fs_kbc\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, daemon := range []struct {
		args    []string
		answers func(context.Context) error
	}{
		{[]string{"attestation-agent", "-a", "unix://" + sock("aa")},
			func(ctx context.Context) error { return rpc.Answers(ctx, sock("aa")) }},
		{[]string{"attestation-agent", "-a", "127.0.0.1:50982"},
			func(ctx context.Context) error { return rpc.AnswersGRPC(ctx, "127.0.0.1:50982") }},
		{[]string{"confidential-data-hub", "-c", config},
			func(ctx context.Context) error { return rpc.Answers(ctx, sock("cdh")) }},
		{[]string{"api-server-rest", "-b", "unix://" + sock("rest")},
			func(ctx context.Context) error {
				return rest.Answers(ctx, &net.UnixAddr{Name: sock("rest"), Net: "unix"})
			}},
	} {
		t.Run(daemon.args[0], func(t *testing.T) {
			manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: sock("notify"), Net: "unixgram"})
			if err != nil {
				t.Fatal(err)
			}
			defer manager.Close()
			defer os.Remove(sock("notify"))
			next := func() string {
				b := make([]byte, 64)
				n, err := manager.Read(b)
				if err != nil {
					t.Fatal(err)
				}
				return string(b[:n])
			}
			cmd := exec.CommandContext(t.Context(), daemon.args[0], daemon.args[1:]...)
			cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+sock("notify"), "WATCHDOG_USEC=200000")
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
			if got := next(); got != "READY=1" {
				t.Fatal(got)
			}
			if err := daemon.answers(t.Context()); err != nil {
				t.Errorf("ready, but %v", err)
			}
			for range 3 {
				if got := next(); got != "WATCHDOG=1" {
					t.Fatal(got)
				}
			}
			if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			got := next()
			for got == "WATCHDOG=1" {
				got = next()
			}
			if err := cmd.Wait(); err != nil || got != "STOPPING=1" {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
}
