package store

import (
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/sealpod/sealpod/imagepull/layer"
)

// TestWithoutPrivilegeLayersAreMerged opens a store where overlay mounts are
// refused: as the user running the test, or as root in a user namespace, where
// trusted attributes are.
func TestWithoutPrivilegeLayersAreMerged(t *testing.T) {
	const inside = "STORE_TEST_UNPRIVILEGED"
	if os.Geteuid() == 0 && os.Getenv(inside) == "" {
		cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
		cmd.Env = append(os.Environ(), inside+"=1")
		mapping := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}}
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
			UidMappings: mapping, GidMappings: mapping,
		}
		out, err := cmd.CombinedOutput()
		if err != nil && len(out) == 0 {
			t.Skipf("needs user namespaces: %v", err)
		}
		if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	var log strings.Builder
	s, err := Open(t.Context(), t.TempDir(), Options{Log: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	if s.Mode() != layer.Plain || !strings.Contains(log.String(), "level=WARN") {
		t.Errorf("mode %v, log %q", s.Mode(), log.String())
	}
}
