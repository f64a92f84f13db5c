package luks

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"go.uber.org/goleak"
)

// TestMain is also what the programs of the fake machine in fake_test.go are:
// links to this binary.
func TestMain(m *testing.M) {
	switch name := filepath.Base(os.Args[0]); name {
	case "cryptsetup", "mkfs.ext4":
		syscall.Exit(fakeProgram(name, os.Args[1:])) // os.Exit takes a second under the race detector
	}
	if os.Getenv(mountProcessEnv) != "" {
		os.Exit(mountProcess())
	}
	goleak.VerifyTestMain(m)
}
