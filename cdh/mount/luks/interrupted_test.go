package luks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sealpod/sealpod/podvm"
)

const mountProcessEnv = "SEALPOD_TEST_MOUNT_PROCESS"

// mountProcess does what its environment says in a process that can be killed.
func mountProcess() int {
	var v Volume
	if err := json.Unmarshal([]byte(os.Getenv(mountProcessEnv)), &struct{ *Volume }{&v}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	if v.Digest == "keyed" {
		v.Key = keyOf(string(testKey))
	}
	if err := fakeDriver(os.Getenv(podvm.HostRootEnv), slog.Default()).Mount(context.Background(), v); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// At whatever step a call fails or is cancelled, nothing stays and a retry
// succeeds.
func TestEveryStepIsTakenBack(t *testing.T) {
	for _, kind := range []string{"ephemeral", "keyed"} {
		for _, stage := range []string{"format", "open", "mkfs"} {
			t.Run(kind+" "+stage, func(t *testing.T) {
				m := newMachine(t)
				disk := m.disk("a", 64<<20)
				v := m.ephemeral(disk, "x/y/a")
				if kind == "keyed" {
					v = m.keyed(disk, "x/y/a")
				}
				m.fault(stage, "fail")
				m.fails(v, nil, "")
				if strings.ContainsRune(m.log.String(), 0x1b) {
					t.Error("terminal escapes in the log")
				}
				m.nothingLeft()

				for _, when := range []string{"hang before", "hang after"} {
					m.fault(stage, when)
					ctx, cancel := context.WithCancel(t.Context())
					done := make(chan error)
					go func() { done <- m.Mount(ctx, v) }()
					m.reached(stage)
					cancel()
					if err := <-done; !errors.Is(err, context.Canceled) {
						t.Fatalf("%s: %v", when, err)
					}
					m.nothingLeft()
					if err := os.Remove(filepath.Join(m.root, "faults", stage+".reached")); err != nil {
						t.Fatal(err)
					}
				}
				m.mount(v)
				m.unmount(v.MountPoint)
			})
		}
	}
	t.Run("mount", func(t *testing.T) {
		m := newMachine(t)
		v := m.ephemeral(m.disk("a", 64<<20), "a/b")
		write(t, m.point("a"), "a file in the way")
		m.fails(v, nil, "mount point")
		if err := os.Remove(m.point("a")); err != nil {
			t.Fatal(err)
		}
		m.nothingLeft()
	})
}

// The process is killed at every step; the next one converges.
func TestKilledAtEveryStep(t *testing.T) {
	for _, kind := range []string{"ephemeral", "keyed"} {
		for _, stage := range []string{"format", "open", "mkfs"} {
			for _, when := range []string{"hang before", "hang after"} {
				t.Run(kind+" "+stage+" "+when, func(t *testing.T) {
					m := newMachine(t)
					v := m.ephemeral(m.disk("a", 64<<20), "a")
					if kind == "keyed" {
						v = m.keyed(v.Device, "a")
					}
					m.fault(stage, when)
					raw, err := json.Marshal(map[string]any{
						"Device": v.Device, "MapperName": v.MapperName, "Filesystem": true, "MountPoint": v.MountPoint, "Digest": v.Digest,
					})
					if err != nil {
						t.Fatal(err)
					}
					cmd := exec.Command("/proc/self/exe")
					cmd.Env = append(os.Environ(), podvm.HostRootEnv+"="+m.root, mountProcessEnv+"="+string(raw))
					cmd.Stderr = os.Stderr
					if err := cmd.Start(); err != nil {
						t.Fatal(err)
					}
					m.reached(stage)
					if err := cmd.Process.Kill(); err != nil {
						t.Fatal(err)
					}
					_ = cmd.Wait()
					m.mount(v)
					write(t, filepath.Join(v.MountPoint, "file"), "x")
					m.mount(v)
					holds(t, filepath.Join(v.MountPoint, "file"), "x")
					if n, err := filepath.Glob(filepath.Join(m.root, "dm/*")); err != nil || len(n) != 1 {
						t.Errorf("mappings %v, %v", n, err)
					}
					m.unmount(v.MountPoint)
				})
			}
		}
	}
}
