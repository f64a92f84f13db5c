package main

import (
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	aaserver "github.com/sealpod/sealpod/attester/server"
	"github.com/sealpod/sealpod/cdh/rest"
	"github.com/sealpod/sealpod/cdh/server"
	"github.com/sealpod/sealpod/forwarder/relay"
	"github.com/sealpod/sealpod/imagepull"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/metrics"
)

func TestEveryMetricIsInTheDocumentation(t *testing.T) {
	doc, err := os.ReadFile("../../docs/METRICS.md")
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "proc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "proc/cmdline"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	host := podvm.Host{Root: root, LookupEnv: func(string) (string, bool) { return "", false }}
	config, _, err := server.LoadConfig("", host)
	if err != nil {
		t.Fatal(err)
	}
	hub, err := server.Open(t.Context(), config, host, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer hub.Close() //nolint:errcheck // a test
	agent := aaserver.New(aaserver.Deps{Log: slog.New(slog.DiscardHandler)})
	defer agent.Close()

	server, err := rest.New(rest.Config{Features: "all", CDHAddr: "unix:///cdh.sock", AAAddr: "unix:///aa.sock"})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close() //nolint:errcheck // a test

	forwards := metrics.New("sealpod")
	relay.NewMetrics(forwards)
	source, err := os.ReadFile("../../forwarder/status.go") // the rest takes a network
	if err != nil {
		t.Fatal(err)
	}

	served := map[string]bool{}
	for _, m := range regexp.MustCompile(`\("(sealpod_forwarder_\w+)"`).FindAllStringSubmatch(string(source), -1) {
		served[m[1]] = true
	}
	text := hub.Metrics().Text() + agent.Metrics().Text() + server.Metrics().Text() + forwards.Text()
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (\S+) `).FindAllStringSubmatch(text, -1) {
		served[m[1]] = true
	}
	documented := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `(sealpod_\\w+)`").FindAllStringSubmatch(string(doc), -1) {
		documented[m[1]] = true
	}
	if got, want := slices.Sorted(maps.Keys(served)), slices.Sorted(maps.Keys(documented)); !slices.Equal(got, want) || len(got) < 10 {
		t.Errorf("served\n%q\ndocumented\n%q", got, want)
	}
	for _, result := range imagepull.Results() {
		if !strings.Contains(string(doc), result) {
			t.Errorf("the result %s is not documented", result)
		}
	}
	for _, phase := range imagepull.Phases() {
		if !strings.Contains(string(doc), string(phase)+" (") && phase != imagepull.PhaseMount {
			t.Errorf("the phase %s is not documented", phase)
		}
	}
}
