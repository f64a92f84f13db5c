package vmtest

import (
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"
)

// packages have tests that only a virtual machine can run, named TestVM… Each
// package has its own disks. Tests named TestVMBeforeReboot… leave something on
// them for those named TestVMAfterReboot…, which run in a second machine.
var packages = []string{"./cdh/mount", "./cdh/mount/luks", "./cdh/mount/scratch", "./cmd/sealpod", "./forwarder/volume"}

// diskSizes are in MiB, from /dev/vdb on.
var diskSizes = []int64{128, 128, 256, 64}

const (
	packageTime = 10 * time.Minute // of a machine
	testTime    = "9m30s"          // of its tests, so that go test's report of a hang gets out
)

func TestPackagesThatNeedAMachine(t *testing.T) {
	Enabled(t)
	t.Parallel()
	for _, pkg := range packages {
		t.Run(pkg, func(t *testing.T) {
			t.Parallel()
			bin := BuildTest(t, pkg)
			var disks []*Disk
			for _, size := range diskSizes {
				disks = append(disks, NewDisk(t, size<<20))
			}
			runTests(t, bin, disks, "-test.run", "^TestVM", "-test.skip", "^TestVMAfterReboot")
			if listsTests(t, bin, "^TestVMAfterReboot") {
				runTests(t, bin, disks, "-test.run", "^TestVMAfterReboot")
			}
		})
	}
}

func listsTests(t *testing.T, bin, pattern string) bool {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), bin, "-test.list", pattern).Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(string(out), "TestVM")
}

// runTests runs tests in a machine, where none may be skipped.
func runTests(t *testing.T, bin string, disks []*Disk, args ...string) {
	t.Helper()
	began := time.Now()
	out := Run(t, Config{
		Cmd:     append([]string{"/bin/guest.test", "-test.v", "-test.timeout", testTime}, args...),
		Files:   map[string]string{"/bin/guest.test": bin},
		Disks:   disks,
		Timeout: packageTime,
		// Half of it is /tmp, where tests of commands have a copy of themselves for
		// each applet.
		Memory: 2048,
	})
	passed, problem := summary(out)
	if problem != "" {
		t.Errorf("%s\n%s", problem, out)
	}
	t.Logf("%d tests passed in a machine of %v", passed, time.Since(began).Round(time.Second))
	for line := range strings.Lines(out) {
		if _, figure, ok := strings.Cut(line, "FIGURE "); ok {
			t.Log("FIGURE", strings.TrimSpace(figure))
		}
	}
}

var ended = regexp.MustCompile(`(?m)^ *--- (PASS|SKIP|FAIL): (\S+)`)

// summary counts the tests that passed in what go test -v has written with exit
// status 0, and says what is wrong with it all the same.
func summary(out string) (passed int, problem string) {
	for _, m := range ended.FindAllStringSubmatch(out, -1) {
		if m[1] != "PASS" {
			return 0, m[2] + " ended as " + m[1]
		}
		passed++
	}
	if passed == 0 {
		return 0, "no tests have run"
	}
	return passed, ""
}

func TestSummary(t *testing.T) {
	for name, c := range map[string]struct {
		out     string
		passed  int
		problem string
	}{
		"all pass":     {"=== RUN   TestVM\n    --- PASS: TestVM/sub (0.00s)\n--- PASS: TestVM (0.10s)\nPASS\n", 2, ""},
		"a skip":       {"--- PASS: TestVMA (0.10s)\n    --- SKIP: TestVM/sub (0.00s)\nPASS\n", 0, "TestVM/sub ended as SKIP"},
		"no tests":     {"testing: warning: no tests to run\nPASS\n", 0, "no tests have run"},
		"a mere quote": {"    a_test.go:1: see --- SKIP: x\n--- PASS: TestVM (0.10s)\nPASS\n", 1, ""},
	} {
		t.Run(name, func(t *testing.T) {
			if passed, problem := summary(c.out); passed != c.passed || problem != c.problem {
				t.Errorf("%d passed, %q", passed, problem)
			}
		})
	}
}
