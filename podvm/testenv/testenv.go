// Package testenv says what the machine a test runs on must offer. A test that
// needs a program or a privilege asks here; it is skipped with a reason when
// that is missing, or fails when SEALPOD_REQUIRE_TOOLS=1 says that nothing may
// be missing, as it does in CI. Only tests import this package.
package testenv

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// RequireEnv is the variable that turns every skip into a failure when "1".
const RequireEnv = "SEALPOD_REQUIRE_TOOLS"

// SkipsEnv names a file that takes a line per skip, since go test says nothing
// of skips; make test prints it at the end.
const SkipsEnv = "SEALPOD_SKIPS"

// Tool returns the path of the program name: one that is installed, or that go
// install put into bin/tools of this module.
func Tool(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		path, err = ownTool(name)
	}
	if err != nil {
		Missing(t, "needs the program "+name+", which is not installed")
	}
	return path
}

// ownTool looks into bin/tools of the module that the working directory is in.
func ownTool(name string) (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil || dir == "/" {
			return exec.LookPath(filepath.Join(dir, "bin", "tools", name))
		}
	}
}

// Root returns only when the test runs as root.
func Root(t testing.TB) {
	t.Helper()
	if Unprivileged() {
		t.Skip("needs root, this is the unprivileged run")
	}
	if os.Geteuid() != 0 {
		Missing(t, "needs root")
	}
}

// Missing ends a test whose needs this machine does not meet, as why says.
func Missing(t testing.TB, why string) {
	t.Helper()
	if os.Getenv(RequireEnv) == "1" {
		t.Fatal(why)
		return
	}
	if path := os.Getenv(SkipsEnv); path != "" {
		if f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0); err == nil {
			fmt.Fprintf(f, "%s: %s\n", t.Name(), why)
			f.Close()
		}
	}
	t.Skip(why)
}

// FUSE returns only where FUSE file systems can be mounted: as root, or with the
// setuid program fusermount3.
func FUSE(t testing.TB) {
	t.Helper()
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		Missing(t, "needs /dev/fuse: "+err.Error())
		return
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() != 0 {
		Tool(t, "fusermount3")
	}
}
