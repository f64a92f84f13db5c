package podvm

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
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

// spy remembers the memory it read into.
type spy struct {
	from io.Reader
	into [][]byte
}

func (s *spy) Read(b []byte) (int, error) {
	s.into = append(s.into, b)
	return s.from.Read(b)
}

func TestReadMax(t *testing.T) {
	broken := errors.New("broken")
	for name, tt := range map[string]struct {
		from  io.Reader
		limit int64
		want  int // bytes
		is    error
	}{
		"nothing":            {strings.NewReader(""), 0, 0, nil},
		"as much as fits":    {strings.NewReader(strings.Repeat("x", 4000)), 4000, 4000, nil},
		"more than fits":     {strings.NewReader(strings.Repeat("x", 4001)), 4000, 0, ErrTooLarge},
		"far more":           {strings.NewReader(strings.Repeat("x", 1<<20)), 700, 0, ErrTooLarge},
		"one where none may": {strings.NewReader("x"), 0, 0, ErrTooLarge},
		"byte by byte":       {iotest.OneByteReader(strings.NewReader(strings.Repeat("x", 3000))), 1 << 20, 3000, nil},
		"data beside EOF":    {iotest.DataErrReader(strings.NewReader(strings.Repeat("x", 600))), 600, 600, nil},
		"a stream that ends": {io.MultiReader(strings.NewReader(strings.Repeat("x", 2000)), iotest.ErrReader(broken)), 4000, 0, broken},
		"an end within":      {io.MultiReader(strings.NewReader("x"), iotest.ErrReader(fmt.Errorf("cut: %w", io.EOF))), 4000, 0, io.EOF},
	} {
		s := &spy{from: tt.from}
		b, err := ReadMax(s, tt.limit)
		if !errors.Is(err, tt.is) || string(b) != strings.Repeat("x", tt.want) {
			t.Errorf("%s: %d bytes, %v, want %d, %v", name, len(b), err, tt.want, tt.is)
		}
		Secret(b).Wipe()
		for _, b := range s.into {
			if strings.Contains(string(b), "x") {
				t.Errorf("%s: a copy stays behind", name)
				break
			}
		}
	}
}

func TestSizeText(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 999: "999 B", 1000: "1.0 kB", 1_500_000: "1.5 MB", 2_000_000_000: "2.0 GB", 5e15: "5000.0 TB"} {
		if got := SizeText(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}
