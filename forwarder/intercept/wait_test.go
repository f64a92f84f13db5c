package intercept

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/api/agent"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/testenv"
)

const target = "/run/kata-containers/shared/direct-volumes/dm9s"

// waited returns a request with a mount whose volume a driver is to mount.
func waited(list string) *agent.CreateContainerRequest {
	req := container(bind(target, "/data"))
	req.OCI.Annotations[targetPaths] = list
	return req
}

func TestAVolumeThatNeverComes(t *testing.T) {
	for name, list := range map[string]string{
		"alone": target, "with a comma before": "," + target, "with spaces and empty ones": "/a, ," + " " + target + " ,,", "twice": target + "," + target,
	} {
		t.Run(name, func(t *testing.T) {
			p := newPod(t)
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				_, err := p.create(t, waited(list))
				if !errors.Is(err, errNotMounted) || errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("%v", err)
				}
				if took := time.Since(start); took != 3*time.Minute {
					t.Errorf("gave up after %v", took)
				}
				if cause := podvm.Cause(err); cause != "a volume of the container was not mounted in time" {
					t.Errorf("cause %q", cause)
				}
			})
		})
	}
}

func TestTheCallersDeadlineIsShorter(t *testing.T) {
	p := newPod(t)
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		start := time.Now()
		_, err := p.createContainer(ctx, encode(t, waited(target)))
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != time.Minute {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.createContainer(ctx, encode(t, waited(target))); !errors.Is(err, context.Canceled) {
		t.Errorf("without a caller: %v", err)
	}
}

func TestNothingIsAwaited(t *testing.T) {
	for name, list := range map[string]string{
		"no list": "", "commas": ",,, ,", "another path": target + "/", "a part of the path": filepath.Dir(target), "half a path": target[:20] + "," + target[20:],
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			cancel() // whoever waits fails
			if _, err := newPod(t).createContainer(ctx, encode(t, waited(list))); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("no source in the list", func(t *testing.T) {
		req := container(&agent.Mount{Destination: "/proc", Type: "proc"})
		req.OCI.Annotations[targetPaths] = ", ,"
		if _, err := newPod(t).create(t, req); err != nil {
			t.Error(err)
		}
	})
}

// The driver may come before the request or later, whoever makes the directory.
func TestAVolumeThatComes(t *testing.T) {
	testenv.Root(t)
	for _, early := range []bool{true, false} {
		p := newPod(t)
		where := p.root + target
		mount := func() {
			if err := os.MkdirAll(where, 0o755); err != nil {
				t.Error(err)
			}
			if err := unix.Mount("tmpfs", where, "tmpfs", 0, "size=4k"); err != nil {
				t.Error(err)
			}
		}
		t.Cleanup(func() {
			if err := unix.Unmount(where, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		})
		if early {
			mount()
		}
		done := make(chan error, 1)
		go func() { _, err := p.createContainer(t.Context(), encode(t, waited(target))); done <- err }()
		if !early {
			for { // until the call waits: it has made the directory just before
				if _, err := os.Stat(where); err == nil {
					break
				}
				time.Sleep(time.Millisecond)
			}
			select {
			case err := <-done:
				t.Fatalf("it did not wait: %v", err)
			default:
			}
			mount()
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func TestPathsOfAPeerAreShownSafely(t *testing.T) {
	p := newPod(t)
	req := container(bind("/\x1b[2J\n"+strings.Repeat("x", 5000), "/data"))
	req.OCI.Annotations[targetPaths] = strings.TrimSpace(req.OCI.Mounts[0].Source)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := p.createContainer(ctx, encode(t, req))
	if err == nil || strings.ContainsAny(err.Error(), "\x1b\n") || len(err.Error()) > 500 {
		t.Errorf("%q", err)
	}
}
