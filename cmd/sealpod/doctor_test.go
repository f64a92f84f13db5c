package main

import (
	"bytes"
	"encoding/json"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/sealpod/sealpod/podvm/doctor"
	"github.com/sealpod/sealpod/podvm/rpc"
	"github.com/sealpod/sealpod/relyingparty"
	"github.com/sealpod/sealpod/relyingparty/store"
)

// A real agent attests at a real relying party, and each step of that has a time.
func TestDoctorReachesTheRelyingParty(t *testing.T) {
	rp, err := relyingparty.Open(relyingparty.Config{Store: store.NewMemory()})
	if err != nil {
		t.Fatal(err)
	}
	defer rp.Close() //nolint:errcheck // a test
	srv := httptest.NewServer(rp.Handler())
	defer srv.Close()
	dir := t.TempDir()
	socket, config := filepath.Join(dir, "aa.sock"), filepath.Join(dir, "aa.toml")
	if err := os.WriteFile(config, []byte("[token_configs.kbs]\nurl = \""+srv.URL+"\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	agent := exec.CommandContext(t.Context(), "attestation-agent", "-c", config, "-a", "unix://"+socket)
	agent.Env = append(os.Environ(), "SEALPOD_ATTESTERS=sample")
	var log bytes.Buffer
	agent.Stderr = &log
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = agent.Process.Kill(); _ = agent.Wait() }()
	for range 400 {
		if rpc.Answers(t.Context(), socket) == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}

	out, err := exec.CommandContext(t.Context(), "sealpod", "doctor", "-a", "unix://"+socket, "--aa-config", config, "--json", "kbs", "clock", "dns").Output()
	var got struct {
		Status doctor.Status
		Checks []doctor.Report
	}
	if err != nil || json.Unmarshal(out, &got) != nil {
		t.Fatalf("%v\n%s\n%s", err, out, log.Bytes())
	}
	if len(got.Checks) != 3 || got.Checks[2].Check != "kbs" || got.Checks[2].Status != doctor.OK {
		t.Fatalf("%s", out)
	}
	for _, step := range []string{"connect", "challenge", "attestation agent: challenge", "attestation agent: evidence", "attestation agent: attestation"} {
		if got.Checks[2].Seconds[step] <= 0 {
			t.Errorf("no time of %q: %v", step, got.Checks[2].Seconds)
		}
	}
}
