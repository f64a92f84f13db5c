package teesim

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"github.com/sealpod/sealpod/attester"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// open returns a simulator, whose machines the test can run.
func open(t *testing.T, kind string) *Simulator {
	t.Helper()
	if strings.HasPrefix(kind, "az-") {
		testenv.Tool(t, "swtpm")
	} else {
		testenv.FUSE(t)
	}
	s, err := Open(kind, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// rootDir is short enough for sockets in it.
func rootDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "m-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return filepath.Join(dir, "root")
}

func mounts(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// Every kind of machine is found by the guest's detection, attests, binds init
// data, and leaves nothing.
func TestMachinesAreWhatTheyClaim(t *testing.T) {
	for kind, tee := range map[string]string{TDX: "tdx", SNP: "snp", AzTDX: "az-tdx-vtpm", AzSNP: "az-snp-vtpm"} {
		t.Run(kind, func(t *testing.T) {
			s, root := open(t, kind), rootDir(t)
			digest := []byte("the digest of init data, 32 byte")
			m, err := s.Boot(t.Context(), root, Launch{InitData: digest})
			if err != nil {
				t.Fatal(err)
			}
			tees, err := attester.Detect(t.Context(), attester.Options{Host: m.Host()})
			if err != nil || tees.TEE() != tee || m.TEE() != tee {
				t.Fatalf("found %v, %v; the machine says %s", tees, err, m.TEE())
			}
			if err := tees.BindInitData(t.Context(), digest); err != nil {
				t.Error(err)
			}
			evidence, err := tees.Evidence(t.Context(), make([]byte, 48))
			if err != nil || !json.Valid(evidence) {
				t.Errorf("evidence %.80s, %v", evidence, err)
			}
			if len(m.ReferenceValues()) < 4 {
				t.Errorf("reference values %v", m.ReferenceValues())
			}
			if !slices.Contains(m.Env(), podvm.HostRootEnv+"="+root) {
				t.Errorf("environment %v", m.Env())
			}
			if err := errors.Join(m.Close(), m.Close()); err != nil {
				t.Error(err)
			}
			if _, err := os.Stat(root); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the root is still there: %v", err)
			}
			if strings.Contains(mounts(t), root) {
				t.Error("something is still mounted")
			}
		})
	}
}

func TestOneMachineAtATime(t *testing.T) {
	s, root := open(t, TDX), rootDir(t)
	m, err := s.Boot(t.Context(), root, Launch{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Boot(t.Context(), root, Launch{}); !errors.Is(err, ErrRunning) {
		t.Errorf("a second machine: %v", err)
	}
	if _, err := attester.Detect(t.Context(), attester.Options{Host: m.Host(), Allow: []string{"tdx"}}); err != nil {
		t.Errorf("the first machine was disturbed: %v", err)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	again, err := s.Boot(t.Context(), root, Launch{})
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
}

func TestARootThatIsSomebodyElses(t *testing.T) {
	s, root := open(t, SNP), rootDir(t)
	if err := os.MkdirAll(filepath.Join(root, "dev"), 0o700); err != nil {
		t.Fatal(err)
	}
	mine := filepath.Join(root, "letters.txt")
	if err := os.WriteFile(mine, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Boot(t.Context(), root, Launch{}); err == nil || !strings.Contains(err.Error(), "letters.txt") {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(mine); err != nil {
		t.Error(err)
	}
	if err := os.Remove(mine); err != nil {
		t.Fatal(err)
	}
	// What is left now could be of a machine that was killed.
	m, err := s.Boot(t.Context(), root, Launch{})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
}

func TestABootThatFailsLeavesNothing(t *testing.T) {
	for _, kind := range []string{TDX, AzSNP} {
		s, root := open(t, kind), rootDir(t)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := s.Boot(ctx, root, Launch{}); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", kind, err)
		}
		if _, err := os.Stat(root); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: the root is still there: %v", kind, err)
		}
	}
}

// killedEnv names the root of a machine that this binary boots to be killed.
const killedEnv = "TEESIM_KILLED_ROOT"

func TestAMachineThatWasKilledLeavesNothingForLong(t *testing.T) {
	for _, kind := range []string{TDX, AzSNP} {
		t.Run(kind, func(t *testing.T) {
			if root := os.Getenv(killedEnv); root != "" {
				s, err := Open(kind, "")
				if err == nil {
					_, err = s.Boot(t.Context(), root, Launch{})
				}
				t.Fatal(err, syscall.Kill(os.Getpid(), syscall.SIGKILL))
			}
			s, root := open(t, kind), rootDir(t)
			t.Setenv("TMPDIR", t.TempDir())
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+strings.ReplaceAll(t.Name(), "/", "$/^")+"$")
			cmd.Env = append(os.Environ(), killedEnv+"="+root)
			if out, err := cmd.CombinedOutput(); cmd.ProcessState.ExitCode() != -1 {
				t.Fatalf("%v: %s", err, out)
			}
			if _, err := os.Lstat(root); err != nil {
				t.Error("it left nothing in the first place:", err)
			}
			m, err := s.Boot(t.Context(), root, Launch{})
			if err != nil {
				t.Fatal(err)
			}
			if err := m.Close(); err != nil {
				t.Error(err)
			}
			for _, dir := range []string{filepath.Dir(root), os.TempDir()} {
				if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
					t.Errorf("left in %s: %v, %v", dir, left, err)
				}
			}
			if strings.Contains(mounts(t), root) {
				t.Error("something is still mounted")
			}
		})
	}
}

func TestUnknownKind(t *testing.T) {
	if _, err := Open("sgx-sim\x1b", t.TempDir()); !errors.Is(err, ErrKind) || strings.Contains(err.Error(), "\x1b") {
		t.Errorf("got %v", err)
	}
}

// The maker of a directory stays the same, so a relying party that trusts it
// does so after a restart.
func TestIdentityLasts(t *testing.T) {
	for _, kind := range []string{TDX, SNP} {
		dir, name := t.TempDir(), map[string]string{TDX: "tdx-root.pem", SNP: "snp-Milan.pem"}[kind]
		var pems []string
		for range 2 {
			s, err := Open(kind, dir)
			if err != nil {
				t.Fatal(err)
			}
			pem, err := os.ReadFile(filepath.Join(s.Trust(), name))
			if err != nil {
				t.Fatal(err)
			}
			pems = append(pems, string(pem))
		}
		if pems[0] != pems[1] {
			t.Errorf("%s: another root after a restart", kind)
		}
	}
}
