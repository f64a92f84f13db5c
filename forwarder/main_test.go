package forwarder

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/sealpod/sealpod/forwarder/agenttest"
)

func TestMain(m *testing.M) {
	agenttest.Main() // in a child that is the agent
	if args := os.Getenv(floorEnv); args != "" {
		if err := beFloor(strings.Fields(args)); err != nil {
			fmt.Fprintln(os.Stderr, "floor:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		if build.path != "" {
			_ = os.RemoveAll(filepath.Dir(build.path))
		}
		os.Exit(code)
	}))
}
