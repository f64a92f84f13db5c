package main

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	aaserver "github.com/sealpod/sealpod/attester/server"
	"github.com/sealpod/sealpod/cdh/server"
	"github.com/sealpod/sealpod/forwarder"
	"github.com/sealpod/sealpod/imagepull"
	"github.com/sealpod/sealpod/kbs"
	"github.com/sealpod/sealpod/podvm/metrics"
)

func TestStatusTable(t *testing.T) {
	began := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	now := began.Add(3*time.Hour + 5*time.Minute)
	s := podStatus{
		Agent: agentStatus{
			daemonStatus: daemonStatus{Socket: "/aa.sock", Up: true, Counters: map[string]float64{`aa_total{result="ok"}`: 3, `aa_total{result="failed"}`: 0}},
			TEE:          "tdx", Devices: []string{"nvidia"},
			Details: &aaserver.Status{
				Version: "v1", Started: began, EventLog: true, InitData: "abcd", KBS: "https://kbs",
				Token: &aaserver.Token{Since: now.Add(-90 * time.Second), Renewed: now.Add(50 * time.Hour), Expires: now.Add(60 * time.Hour)},
				Attestation: &aaserver.Attestation{
					Started: began, Result: "failed", Cause: "the KBS\nrefused", Elapsed: 1.5,
					Seconds: map[kbs.Step]float64{kbs.StepEvidence: 1, kbs.StepChallenge: 0.25},
				},
			},
		},
		Hub: hubStatus{daemonStatus: daemonStatus{Socket: "/cdh.sock", Up: true, Counters: map[string]float64{"bytes_total": 123456789}}, Details: &server.Status{
			Version: "v1", Started: now.Add(-50 * time.Hour), KBC: "cc_kbc",
			Pulls: []server.Pull{{Status: imagepull.Status{
				Image: "registry.example/app:1", Phase: imagepull.PhaseLayers, FetchedBytes: 1e6, TotalBytes: 4e6, Layers: 3, LayersDone: 1, Elapsed: 2,
			}}},
			Last: []server.Pull{
				{Status: imagepull.Status{
					Image: "registry.example/app:0", Started: began, Elapsed: 3,
					Seconds: map[imagepull.Phase]float64{imagepull.PhaseLayers: 2.5, imagepull.PhaseResolve: 0.125},
				}, Result: "ok"},
				{
					Status: imagepull.Status{Image: "evil\x1b[2J\nname", Started: began, Elapsed: 0.1}, Result: "denied",
					Cause: "Failed to pull image x: \nimage: a, error: no\nimage: b, error: \x1b[2Jno",
				},
			},
		}},
		REST: &restStatus{daemonStatus{Socket: "/api.sock", Problem: "nobody listens"}, nil},
		Forwarder: &forwarderStatus{daemonStatus{Socket: "/apf.sock", Up: true}, &forwarder.Status{
			Version: "v2", Started: now.Add(-time.Second), Listen: "0.0.0.0:15150", TLS: true, PodNamespace: "prod", PodName: "web", Clients: 1,
		}},
	}
	var b bytes.Buffer
	if err := s.print(&b, now, false); err != nil {
		t.Fatal(err)
	}
	want := `DAEMON                    STATE  VERSION  UPTIME  SOCKET     DETAILS
attestation-agent         up     v1       3h5m    /aa.sock   TEE tdx and nvidia, event log on, init data bound
confidential-data-hub     up     v1       2d2h    /cdh.sock  resources from cc_kbc, images being pulled: 1
api-server-rest           down   -        -       /api.sock  nobody listens
agent-protocol-forwarder  up     v2       1s      /apf.sock  listens on 0.0.0.0:15150, TLS on, clients: 1, pod prod/web

LAST ATTESTATION
2026-03-04T05:06:07Z  failed  1.5s  https://kbs
  challenge 0.250s, evidence 1.000s
  the KBS; refused

TOKEN
1m30s old, attests again in 2d2h, expires 2026-03-06T20:11:07Z

PULLING
registry.example/app:1
   25%  1.0 MB of 4.0 MB  1/3 layers  2.0s

LAST PULLS
2026-03-04T05:06:07Z  ok  3.0s  registry.example/app:0
  resolve 0.125s, layers 2.500s
2026-03-04T05:06:07Z  denied  0.1s  evil [2J name
  Failed to pull image x: ; image: a, error: no; image: b, error:  [2Jno

COUNTERS
aa_total{result="ok"} 3
bytes_total 123456789
`
	if b.String() != want {
		t.Errorf("got\n%swant\n%s", b.String(), want)
	}
}

// Colours do not move the columns.
func TestStatusColors(t *testing.T) {
	s := podStatus{Agent: agentStatus{daemonStatus: daemonStatus{Socket: "/aa.sock", Up: true}, TEE: "tdx"}, Hub: hubStatus{daemonStatus: daemonStatus{Socket: "/cdh.sock", Problem: "no socket"}}}
	var plain, colored bytes.Buffer
	if err := s.print(&plain, time.Now(), false); err != nil {
		t.Fatal(err)
	}
	if err := s.print(&colored, time.Now(), true); err != nil {
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

// A forwarder that is there is asked; one that hangs is down, one that is not there
// is not missed.
func TestStatusOfTheForwarder(t *testing.T) {
	if s := askForwarder(t.Context(), filepath.Join(t.TempDir(), "none.sock")); s != nil {
		t.Errorf("%+v", s)
	}
	path := filepath.Join(t.TempDir(), "apf.sock")
	set := metrics.New("sealpod")
	set.Counter("sealpod_x_total", "X.").Add(2)
	m := metrics.Listen(t.Context(), "unix://"+path, "", set, func() any { return forwarder.Status{Listen: "0.0.0.0:1"} }, slog.New(slog.DiscardHandler))
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); m.Serve(ctx) }()
	s := askForwarder(t.Context(), path)
	stop()
	<-done
	if s == nil || !s.Up || s.Details.Listen != "0.0.0.0:1" || s.Counters["sealpod_x_total"] != 2 {
		t.Errorf("%+v", s)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if s := askForwarder(short, path); s == nil || s.Up || s.Problem != "no answer in time" {
		t.Errorf("%+v", s)
	}
}
