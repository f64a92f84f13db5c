package podvm

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSecretNeverPrints(t *testing.T) {
	s := Secret("hunter2")
	var b strings.Builder
	slog.New(slog.NewTextHandler(&b, nil)).Info("x", "key", s)
	fmt.Fprintf(&b, "%s %v %x %q %+v %d %#v", s, s, s, s, s, s, s)
	j, err := json.Marshal(map[string]any{"k": s})
	if err != nil {
		t.Fatal(err)
	}
	b.Write(j)
	for _, leak := range []string{"hunter2", "68756e74", "104"} {
		if strings.Contains(b.String(), leak) {
			t.Errorf("%q leaked in %s", leak, b.String())
		}
	}
	s.Wipe()
	if string([]byte(s)) != "\x00\x00\x00\x00\x00\x00\x00" {
		t.Error("Wipe left bytes")
	}
}

func TestExplain(t *testing.T) {
	inner := errors.New("dial 10.0.0.1: refused")
	err := fmt.Errorf("outer: %w", Explain(inner, "KBS not\treachable\nask its owner"))
	if got := Cause(err); got != "KBS not reachable\nask its owner" {
		t.Errorf("Cause = %q", got)
	}
	if got := Explain(inner, "refused").Error(); got != inner.Error() {
		t.Errorf("a cause the chain has already is repeated: %q", got)
	}
	if got := Cause(Explain(inner, strings.Repeat("x\n", 5000))); len(got) > maxCause+len("…") {
		t.Errorf("a cause of %d bytes", len(got))
	}
	if !errors.Is(err, inner) {
		t.Error("the chain is broken")
	}
	if Cause(inner) != "" || Explain(nil, "x") != nil {
		t.Error("a cause from nowhere")
	}
}

func TestLogLevel(t *testing.T) {
	for in, want := range map[string]slog.Level{
		"info": 0, "WARN": 4, "warn,aa=debug": 4, "aa=debug,error": 8, "off": 108,
		"attestation_agent=debug": -4, "a=loud, b = Warn": 4,
	} {
		if got, err := LogLevel(in); err != nil || got != want {
			t.Errorf("%q: %v, %v", in, got, err)
		}
	}
	for _, in := range []string{"loud", "", ",", "a=loud", "=debug", "a=b=debug"} {
		if _, err := LogLevel(in); err == nil {
			t.Errorf("%q accepted", in)
		}
	}
}

func TestKernelParams(t *testing.T) {
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "proc"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "proc/cmdline"), []byte("ro a=1 b a=2=3\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := Host{Root: root}.KernelParams()
	if err != nil {
		t.Fatal(err)
	}
	if v, ok := p.First("a"); !ok || v != "1" {
		t.Error("First", v, ok)
	}
	if v, ok := p.Last("a"); !ok || v != "2=3" {
		t.Error("Last", v, ok)
	}
	if _, ok := p.First("b"); ok {
		t.Error("b has no value")
	}
}

func TestHostFromEnv(t *testing.T) {
	if h := HostFromEnv(); h.Simulated() || h.Path("/dev/x") != "/dev/x" || h.MetadataURL("/a") != "http://169.254.169.254/a" ||
		h.ECSMetadataURL("/a") != "http://100.100.100.200/a" {
		t.Errorf("without settings: %+v", h)
	}
	t.Setenv(HostRootEnv, "/tmp/m")
	t.Setenv(IMDSEnv, "http://127.0.0.1:1")
	if h := HostFromEnv(); !h.Simulated() || h.Path("/dev/x") != "/tmp/m/dev/x" || h.MetadataURL("/a") != "http://127.0.0.1:1/a" ||
		h.ECSMetadataURL("/a") != "http://127.0.0.1:1/a" {
		t.Errorf("on a simulated machine: %+v", h)
	}
}
