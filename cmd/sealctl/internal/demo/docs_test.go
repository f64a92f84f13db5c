package demo

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sealpod/sealpod/podvm/testenv"
)

// TestWithoutHardwareAsTheDocumentSays runs the commands of docs/EVIDENCE.md,
// only on other ports, and only until a container has its secret and a token.
func TestWithoutHardwareAsTheDocumentSays(t *testing.T) {
	testenv.FUSE(t)
	testenv.Tool(t, "curl")
	text, err := os.ReadFile("../../../../docs/EVIDENCE.md")
	if err != nil {
		t.Fatal(err)
	}
	_, script, _ := strings.Cut(string(text), "\n## Without hardware\n")
	_, script, _ = strings.Cut(script, "```sh\n")
	script, _, found := strings.Cut(script, "```\n")
	if !found {
		t.Fatal("there are no commands")
	}
	rp, rest := address(t), address(t)
	script = strings.NewReplacer(
		"127.0.0.1:8080", rp, "127.0.0.1:8006", rest, "api-server-rest", "api-server-rest -b "+rest,
		"sealctl relying-party", "sealctl relying-party --listen "+rp, "sealctl kbs", "sealctl kbs --kbs http://"+rp,
	).Replace(script)
	dir := shortTemp(t)
	programs := filepath.Dir(sealpod(t))
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", programs, "github.com/sealpod/sealpod/cmd/sealctl").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), "bash", "-e", "-c", script)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &stdout, &stderr
	cmd.Env = append(os.Environ(), "PATH="+programs+":"+os.Getenv("PATH"))
	// What the script started ends as on Ctrl-C, whatever became of the script.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGINT) }
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Run(); err != nil {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGINT)
		t.Errorf("%v\n%s", err, stderr.String())
	}
	for _, want := range []string{"hunter2\n", `{"token":"ey`} {
		if !strings.Contains(stdout.String(), want) {
			t.Errorf("no %q in what it said:\n%s\n%s", want, stdout.String(), stderr.String())
		}
	}
	if strings.Contains(mounts(t), dir) {
		t.Error("something is still mounted")
	}
}

// address is one on loopback that nothing listens on right now.
func address(t *testing.T) string {
	t.Helper()
	addr, err := freeAddr(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return addr
}
