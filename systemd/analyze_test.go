package systemd_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/sealpod/sealpod/podvm/testenv"
)

// bars are the highest exposure a unit may have, as systemd-analyze security
// counts it; kata-agent is not ours and runs containers.
var bars = map[string]float64{
	"api-server-rest": 2, "attestation-agent": 2, "process-user-data": 2, "azure-ready": 2,
	"confidential-data-hub": 4, "agent-protocol-forwarder": 4, "scratch-storage": 4, "setup-nat-for-imds": 4, "netns@": 4,
	"kata-agent": 10,
}

func analyze(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), testenv.Tool(t, "systemd-analyze"), args...)
	cmd.Env = append(os.Environ(), "SYSTEMD_COLORS=0", "SYSTEMD_PAGER=cat", "LC_ALL=C")
	var out, problems strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &problems
	err = cmd.Run()
	return out.String(), problems.String(), err
}

func TestExposure(t *testing.T) {
	units, err := filepath.Glob("system/*.service")
	if err != nil || len(units) < len(bars) {
		t.Fatal(units, err)
	}
	for _, path := range units {
		name := strings.TrimSuffix(filepath.Base(path), ".service")
		bar, ok := bars[name]
		if !ok {
			t.Errorf("%s has no bar", name)
		}
		// The sum is only in the text.
		out, problems, err := analyze(t, "security", "--offline=true", "--no-pager", path)
		if err != nil || problems != "" {
			t.Errorf("%s: %v\n%s", name, err, problems)
			continue
		}
		_, sum, _ := strings.Cut(out, "Overall exposure level for ")
		_, sum, _ = strings.Cut(sum, ": ")
		figure, _, _ := strings.Cut(sum, " ")
		exposure, err := strconv.ParseFloat(figure, 64)
		if err != nil {
			t.Errorf("%s: %v in\n%s", name, err, out)
			continue
		}
		t.Logf("FIGURE exposure %3.1f  %s (at most %.1f)", exposure, name, bar)
		if ok && exposure > bar {
			t.Errorf("%s: exposure %.1f is above %.1f:\n%s", name, exposure, bar, bad(t, path))
		}
	}
}

// bad lists what a unit lacks.
func bad(t *testing.T, path string) string {
	out, _, err := analyze(t, "security", "--offline=true", "--json=short", path)
	if err != nil {
		return err.Error()
	}
	var rows []struct{ Name, Description, Exposure string }
	if err := json.Unmarshal([]byte(out), &rows); err != nil {
		return err.Error()
	}
	var b strings.Builder
	for _, r := range rows {
		if r.Exposure != "" && r.Exposure != "0.0" {
			b.WriteString("  " + r.Exposure + " " + r.Name + ": " + r.Description + "\n")
		}
	}
	return b.String()
}

// root makes a directory like an image with the units and stands-ins for programs.
func root(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.CopyFS(filepath.Join(dir, "usr/lib/systemd/system"), os.DirFS("system")); err != nil {
		t.Fatal(err)
	}
	for _, program := range []string{"sealpod", "attestation-agent", "confidential-data-hub", "api-server-rest", "kata-agent",
		"agent-protocol-forwarder", "process-user-data", "azure-ready", "scratch-storage", "setup-nat-for-imds"} {
		write("usr/local/bin/"+program, "#!/bin/sh\n", 0o755)
	}
	for _, program := range []string{"umount", "rm"} {
		write("usr/bin/"+program, "#!/bin/sh\n", 0o755)
	}
	// Units of systemd that ours name; the others are targets it makes up.
	for _, name := range []string{"sysinit.target", "basic.target", "network.target", "network-online.target", "shutdown.target", "multi-user.target", "paths.target",
		"system.slice", "-.slice", "-.mount", "tmp.mount"} {
		write("usr/lib/systemd/system/"+name, "[Unit]\nDescription=x\n", 0o644)
	}
	return dir
}

// Every line is one that systemd knows, and every program is where units say.
func TestVerify(t *testing.T) {
	dir := root(t)
	var names []string
	for _, kind := range []string{"service", "path"} {
		found, err := filepath.Glob("system/*." + kind)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range found {
			names = append(names, strings.Replace(filepath.Base(path), "@.", "@podns.", 1))
		}
	}
	args := append([]string{"verify", "--man=no", "--recursive-errors=no", "--root=" + dir}, names...)
	if out, problems, err := analyze(t, args...); err != nil || problems != "" {
		t.Errorf("%v\n%s%s", err, out, problems)
	}
	// And it does find what is wrong.
	broken := filepath.Join(dir, "usr/lib/systemd/system/azure-ready.service")
	if err := os.WriteFile(broken, []byte("[Service]\nExecStart=/no/such/program\nRestrat=always\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, problems, err := analyze(t, "verify", "--man=no", "--recursive-errors=no", "--root="+dir, "azure-ready.service")
	if err == nil || !strings.Contains(problems, "/no/such/program") || !strings.Contains(problems, "Restrat") {
		t.Errorf("%v\n%s", err, problems)
	}
}
