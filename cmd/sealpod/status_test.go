package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	aaserver "github.com/sealpod/sealpod/attester/server"
	"github.com/sealpod/sealpod/cdh/server"
	"github.com/sealpod/sealpod/imagepull"
)

func TestStatusTable(t *testing.T) {
	began := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	s := podStatus{
		Agent: agentStatus{Socket: "/aa.sock", Up: true, TEE: "tdx", Devices: []string{"nvidia"}, Details: &aaserver.Status{Version: "v1", EventLog: true}},
		Hub: hubStatus{Socket: "/cdh.sock", Up: true, Details: &server.Status{
			Version: "v1", KBC: "cc_kbc",
			Pulls: []server.Pull{{Status: imagepull.Status{
				Image: "registry.example/app:1", Phase: imagepull.PhaseLayers, FetchedBytes: 1e6, TotalBytes: 4e6, Layers: 3, LayersDone: 1, Elapsed: 2,
			}}},
			Last: []server.Pull{
				{Status: imagepull.Status{Image: "registry.example/app:0", Started: began, Elapsed: 3}, Result: "ok"},
				{
					Status: imagepull.Status{Image: "evil\x1b[2J\nname", Started: began, Elapsed: 0.1}, Result: "denied",
					Cause: "Failed to pull image x: \nimage: a, error: no\nimage: b, error: \x1b[2Jno",
				},
			},
		}},
	}
	var b bytes.Buffer
	if err := s.print(&b, false); err != nil {
		t.Fatal(err)
	}
	want := `DAEMON                 STATE  VERSION  SOCKET     DETAILS
attestation-agent      up     v1       /aa.sock   TEE tdx and nvidia, event log on
confidential-data-hub  up     v1       /cdh.sock  resources from cc_kbc, images being pulled: 1

PULLING
registry.example/app:1
   25%  1.0 MB of 4.0 MB  1/3 layers  2.0s

LAST PULLS
2026-03-04T05:06:07Z  ok  3.0s  registry.example/app:0
2026-03-04T05:06:07Z  denied  0.1s  evil [2J name
  Failed to pull image x: ; image: a, error: no; image: b, error:  [2Jno
`
	if b.String() != want {
		t.Errorf("got\n%swant\n%s", b.String(), want)
	}
}

// Colours do not move the columns.
func TestStatusColors(t *testing.T) {
	s := podStatus{Agent: agentStatus{Socket: "/aa.sock", Up: true, TEE: "tdx"}, Hub: hubStatus{Socket: "/cdh.sock", Problem: "no socket"}}
	var plain, colored bytes.Buffer
	if err := s.print(&plain, false); err != nil {
		t.Fatal(err)
	}
	if err := s.print(&colored, true); err != nil {
		t.Fatal(err)
	}
	text := colored.String()
	if !strings.Contains(text, "\x1b[32mup\x1b[0m") || !strings.Contains(text, "\x1b[31mdown\x1b[0m") {
		t.Errorf("%q", text)
	}
	if bare := strings.NewReplacer("\x1b[32m", "", "\x1b[31m", "", "\x1b[0m", "").Replace(text); bare != plain.String() {
		t.Errorf("%q, want %q", bare, plain.String())
	}
}
