package demo

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

var build struct {
	once sync.Once
	path string
	err  error
	out  []byte
}

func TestMain(m *testing.M) {
	if os.Getenv(envStore) != "" {
		fmt.Fprintln(os.Stderr, beRelyingParty())
		os.Exit(1)
	}
	if dir := os.Getenv(envModels); dir != "" {
		fmt.Fprintln(os.Stderr, beStore(dir))
		os.Exit(1)
	}
	code := m.Run()
	if build.path != "" {
		_ = os.RemoveAll(filepath.Dir(build.path))
	}
	os.Exit(code)
}

// sealpod builds the guest binary once, with the race detector when the test
// itself has it.
func sealpod(t testing.TB) string {
	t.Helper()
	build.once.Do(func() {
		dir, err := os.MkdirTemp("", "sealpod-bin-")
		if err != nil {
			build.err = err
			return
		}
		build.path = filepath.Join(dir, "sealpod")
		args := []string{"build", "-trimpath", "-ldflags=-s -w", "-o", build.path}
		env := append(os.Environ(), "CGO_ENABLED=0")
		if raceEnabled {
			args, env = append(args, "-race"), os.Environ()
		}
		cmd := exec.Command("go", append(args, "github.com/sealpod/sealpod/cmd/sealpod")...)
		cmd.Env = env
		build.out, build.err = cmd.CombinedOutput()
	})
	if build.err != nil {
		t.Fatalf("building sealpod: %v\n%s", build.err, build.out)
	}
	return build.path
}

// world is an owner with a registry and a pod beside it.
type world struct {
	*owner
	*pod
	dir     string
	kbsURL  string
	outside *keeper // of the relying party, once it has a process of its own
}

// newWorld starts all of it and stops it when the test ends.
func newWorld(t testing.TB, registries ...string) *world {
	t.Helper()
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "world-") // t.TempDir is too long for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	own, err := startOwner(ctx, dir, nil)
	if own != nil {
		t.Cleanup(func() {
			if err := own.stop(); err != nil {
				t.Error(err)
			}
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := own.setPolicies(ctx); err != nil {
		t.Fatal(err)
	}
	if err := own.startRegistry(ctx, filepath.Join(dir, "registry")); err != nil {
		t.Fatal(err)
	}
	g, err := own.guestConfig(ctx, dir, own.url(), registries...)
	if err != nil {
		t.Fatal(err)
	}
	p, err := startPod(ctx, sealpod(t), g)
	t.Cleanup(func() {
		if err := p.stop(); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return &world{owner: own, pod: p, dir: dir, kbsURL: own.url()}
}
