package main

import (
	"os"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/sealpod/sealpod/podvm/testenv"
)

// TestMain lets scripts run this program.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"sealctl": main})
}

// TestScripts runs testdata/script/*.txtar: what a user types and sees.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata/script", RequireExplicitExec: true})
}

// TestMachineScripts runs testdata/machine/*.txtar, which take simulated
// machines. There the command wait-for waits for a file.
func TestMachineScripts(t *testing.T) {
	testenv.FUSE(t)
	testscript.Run(t, testscript.Params{
		Dir: "testdata/machine", RequireExplicitExec: true,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"wait-for": waitFor},
	})
}

func waitFor(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: wait-for FILE")
	}
	path := ts.MkAbs(args[0])
	for range 1000 {
		if _, err := os.Stat(path); err == nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	ts.Fatalf("%s did not appear", args[0])
}
