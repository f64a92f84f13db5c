package key

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sealpod/sealpod/podvm"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const id = "kbs:///acme/models/m"

// fetch asks a server that gives these answers in turn, and the last one for ever.
func fetch(t *testing.T, answers ...http.HandlerFunc) (podvm.Secret, int, error) {
	t.Helper()
	var n atomic.Int32
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/cdh/resource/acme/models/m" || r.Method != http.MethodGet {
			t.Errorf("%s %s", r.Method, r.URL)
		}
		answers[min(int(n.Add(1)), len(answers))-1](w, r)
	}))
	defer s.Close()
	secret, err := Fetch(t.Context(), Config{Addr: s.URL, Log: slog.New(slog.DiscardHandler), pause: time.Millisecond, patience: 50 * time.Millisecond}, id)
	return secret, int(n.Load()), err
}

func answer(status int, reason, text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		if reason != "" {
			w.Header().Set(reasonHeader, reason)
		}
		w.WriteHeader(status)
		_, _ = w.Write([]byte(text))
	}
}

func TestRefusedAndUnreachableAreToldApart(t *testing.T) {
	ok := answer(200, "", "key")
	for name, tt := range map[string]struct {
		answers []http.HandlerFunc
		want    error
		once    bool // waiting helps nobody
		says    string
	}{
		"there":                     {[]http.HandlerFunc{ok}, nil, true, ""},
		"there after a while":       {[]http.HandlerFunc{answer(500, "unreachable", "x"), answer(500, "", "x"), answer(503, "", "x"), ok}, nil, false, ""},
		"denied":                    {[]http.HandlerFunc{answer(500, "denied", "ttrpc request error: access denied: launch_digest\r\n\x1b[2J")}, ErrRefused, true, "launch_digest"},
		"not there":                 {[]http.HandlerFunc{answer(500, "not-found", "x")}, ErrRefused, true, id},
		"unreachable":               {[]http.HandlerFunc{answer(500, "unreachable", "attestation agent not reachable")}, ErrUnreachable, false, "attestation agent"},
		"upstream's server":         {[]http.HandlerFunc{answer(500, "", "ttrpc request error")}, ErrRefused, false, "ttrpc request error"},
		"a word nobody knows":       {[]http.HandlerFunc{answer(500, "perhaps", "x")}, ErrRefused, false, ""},
		"feature off":               {[]http.HandlerFunc{answer(404, "", "Resource Feature Not Enabled")}, ErrRefused, true, "Not Enabled"},
		"empty":                     {[]http.HandlerFunc{answer(200, "", "")}, ErrRefused, true, "empty"},
		"too long":                  {[]http.HandlerFunc{answer(200, "", strings.Repeat("k", maxKey+1))}, ErrUnreachable, true, ""},
		"leads elsewhere":           {[]http.HandlerFunc{answer(302, "", "x")}, ErrRefused, true, ""},
		"a long text of a stranger": {[]http.HandlerFunc{answer(400, "", strings.Repeat("x", 1<<20))}, ErrRefused, true, ""},
	} {
		t.Run(name, func(t *testing.T) {
			secret, n, err := fetch(t, tt.answers...)
			if !errors.Is(err, tt.want) || (err == nil) != (string(secret) == "key") || (n == 1) != tt.once {
				t.Errorf("%d tries, %v", n, err)
			}
			if cause := podvm.Cause(err); !strings.Contains(cause, tt.says) || strings.ContainsAny(cause, "\r\x1b") || err != nil && cause == "" {
				t.Errorf("%q", cause)
			}
		})
	}
}

func TestNobodyListens(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := "http://" + l.Addr().String()
	l.Close()
	cfg := Config{Addr: addr, Log: slog.New(slog.DiscardHandler), pause: time.Millisecond, patience: 20 * time.Millisecond}
	if _, err := Fetch(t.Context(), cfg, id); !errors.Is(err, ErrUnreachable) || !strings.Contains(podvm.Cause(err), addr) {
		t.Error(err)
	}
	cfg.pause, cfg.patience = time.Hour, 2*time.Hour
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := Fetch(ctx, cfg, id); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

func TestKeysComeFromThisMachineOnly(t *testing.T) {
	for _, addr := range []string{
		"http://192.0.2.1:8006", "http://cdh.example:8006", "https://127.0.0.1:8006", "127.0.0.1:8006", "http://127.0.0.1:8006/x", "http://u@127.0.0.1",
		"http://127.0.0.1:8006?x", "http://[::]:8006", "http://0.0.0.0:8006", "http://localhost.example", "http://127.0.0.1.example", "\x00", "unix:///x",
	} {
		if _, err := Fetch(t.Context(), Config{Addr: addr}, id); !errors.Is(err, ErrUsage) || podvm.Cause(err) == "" {
			t.Errorf("%s: %v", addr, err)
		}
	}
	for addr, want := range map[string]string{
		"": DefaultAddr, "http://localhost:8006/": DefaultAddr, "http://[::1]:8006": "http://[::1]:8006", "http://LOCALHOST": "http://127.0.0.1:80", "http://127.9.9.9:1": "http://127.9.9.9:1",
	} {
		if got, err := address(addr); err != nil || got != want {
			t.Errorf("%s: %s %v", addr, got, err)
		}
	}
	for _, bad := range []string{"", "acme/models/m", "kbs:///acme/m", "kbs:///a/b/../c", "kbs:///a/b/c?x\r\nHost: y"} {
		if _, err := Fetch(t.Context(), Config{Addr: "http://127.0.0.1:1", patience: time.Nanosecond}, bad); err == nil || errors.Is(err, ErrRefused) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func FuzzAddress(f *testing.F) {
	f.Add("http://127.0.0.1:8006")
	f.Add("http://[::ffff:127.0.0.1%25eth0]:1")
	f.Fuzz(func(t *testing.T, addr string) {
		got, err := address(addr)
		if err == nil && !strings.HasPrefix(got, "http://127.") && !strings.HasPrefix(got, "http://[::") {
			t.Errorf("%q: %q", addr, got)
		}
	})
}
