package luks

import (
	"os"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"
)

// TestMain is also what the programs of the fake machine in fake_test.go are:
// links to this binary.
func TestMain(m *testing.M) {
	switch name := filepath.Base(os.Args[0]); name {
	case "cryptsetup", "mkfs.ext4":
		os.Exit(fakeProgram(name, os.Args[1:]))
	}
	if os.Getenv(mountProcessEnv) != "" {
		os.Exit(mountProcess())
	}
	goleak.VerifyTestMain(m)
}
