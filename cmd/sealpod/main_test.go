package main

import (
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestMain lets scripts run this program under each of its names.
func TestMain(m *testing.M) {
	names := map[string]func(){"sealpod": main}
	for _, a := range applets() {
		names[a.Name()] = main
	}
	testscript.Main(m, names)
}

// TestScripts runs testdata/script/*.txtar: what a user types and sees.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata/script", RequireExplicitExec: true})
}
