package testenv

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// unprivilegedEnv marks the process RerunUnprivileged starts.
const unprivilegedEnv = "SEALPOD_TEST_UNPRIVILEGED"

// Unprivileged reports whether this is the run RerunUnprivileged started.
func Unprivileged() bool { return os.Getenv(unprivilegedEnv) != "" }

// RerunUnprivileged runs all other tests of the package again as an ordinary
// user (uid and gid 65534), so that a run as root covers both. It needs root.
func RerunUnprivileged(t *testing.T) {
	t.Helper()
	Root(t)
	// go test keeps the binary where nobody else can read it.
	bin := filepath.Join(SharedDir(t), "test")
	raw, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(bin, raw, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), bin, "-test.short")
	cmd.Env = append(os.Environ(), unprivilegedEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// SharedDir is t.TempDir for other users too.
func SharedDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}
