package web

import (
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sealpod/sealpod/model/source"
	"github.com/sealpod/sealpod/model/source/settings"
	"github.com/sealpod/sealpod/podvm"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func environ(t testing.TB, vars map[string]string) *settings.Env {
	t.Helper()
	env, err := settings.Load(podvm.Host{LookupEnv: func(name string) (string, bool) {
		v, ok := vars[name]
		return v, ok
	}}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	env.Backoff = time.Millisecond
	return env
}

func TestOneFile(t *testing.T) {
	const body = "weights of a model"
	var header http.Header
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		header = r.Header
		switch r.URL.Path {
		case "/m/model v1.onnx", "/m/p.html":
			w.Header().Set("Etag", `"1"`)
			w.Header().Set("Content-Type", map[bool]string{true: "text/html", false: "application/octet-stream"}[r.URL.Path == "/m/p.html"])
			http.ServeContent(w, r, "", time.Time{}, strings.NewReader(body))
		case "/m/login.onnx":
			w.Header().Set("Content-Type", "text/html; charset=utf-8")
			_, _ = io.WriteString(w, "<html>")
		case "/m/stream.tgz":
			_ = http.NewResponseController(w).Flush()
			_, _ = io.WriteString(w, body)
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(s.Close)
	for path, want := range map[string]struct {
		name string
		size int64
		is   error
	}{
		"/m/model%20v1.onnx?sig=hunter2": {"model v1.onnx", 18, nil},
		"/m/p.html":                      {"p.html", 18, nil},
		"/m/stream.tgz":                  {"stream.tgz", -1, nil},
		"/m/login.onnx":                  {"", 0, source.ErrRefused},
		"/m/none":                        {"", 0, source.ErrNotFound},
		"/m/.x.part":                     {"", 0, source.ErrNotFound},
	} {
		src, err := New(s.URL+path, environ(t, map[string]string{"127.0.0.1-headers": `{"X-Api-Key":"k","authorization":"Bearer b"}`}))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(src.Close)
		if strings.Contains(src.String(), "hunter2") {
			t.Error(src)
		}
		got, err := src.List(t.Context())
		if !errors.Is(err, want.is) || err != nil && podvm.Cause(err) == "" {
			t.Errorf("%s: %v", path, err)
		}
		if header.Get("X-Api-Key") != "k" || header.Get("Authorization") != "Bearer b" {
			t.Errorf("%s: %v", path, header)
		}
		if err != nil {
			continue
		}
		if len(got) != 1 || got[0].Path != want.name || got[0].Size != want.size {
			t.Errorf("%s: %v", path, got)
			continue
		}
		r, err := src.Open(t.Context(), got[0], 0, -1)
		if err != nil {
			t.Error(err)
			continue
		}
		b, err := io.ReadAll(r)
		r.Close()
		if err != nil || string(b) != body {
			t.Errorf("%s: %q, %v", path, b, err)
		}
		_, err = src.Open(t.Context(), got[0], 5, 3)
		if want := path == "/m/stream.tgz"; errors.Is(err, source.ErrNoRanges) != want {
			t.Errorf("%s: range: %v", path, err)
		}
		if _, err := src.Open(t.Context(), source.Object{Path: "other"}, 0, -1); !errors.Is(err, source.ErrNotFound) {
			t.Errorf("another file: %v", err)
		}
	}
}

func TestCredentialsInTheAddress(t *testing.T) {
	src, err := New("https://user:hunter2@example.com/a/b.tar?x=hunter2#f", environ(t, nil))
	if err != nil {
		t.Fatal(err)
	}
	if src.request.Header.Get("Authorization") != "Basic dXNlcjpodW50ZXIy" || src.request.URL != "https://example.com/a/b.tar?x=hunter2" || src.String() != "https://example.com/a/b.tar" {
		t.Errorf("%+v %s", src.request, src)
	}
}

func TestAddressesAndHeadersThatMakeNoSense(t *testing.T) {
	for _, address := range []string{"", "http://", "http:///x", "https://example.com", "https://example.com/", "https://example.com/a/", "ftp://example.com/x", "https://[/x", "https://example.com/%zz", "https://example.com/" + strings.Repeat("x", maxAddress)} {
		if s, err := New(address, environ(t, nil)); !errors.Is(err, source.ErrUsage) || podvm.Cause(err) == "" {
			t.Errorf("%.60q: %v, %v", address, s, err)
		}
	}
	for _, text := range []string{`[]`, `{"a":1}`, `{"a b":"hunter2"}`, `{"a":"hunter2\r\nX: y"}`, `{"Range":"hunter2"}`, `{"host":"hunter2"}`, `{"accept-encoding":"gzip"}`, `{`} {
		if _, err := New("https://example.com/x", environ(t, map[string]string{"example.com-headers": text})); !errors.Is(err, source.ErrUsage) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func FuzzAddress(f *testing.F) {
	for _, s := range []string{"https://example.com/a/b.tar?x#y", "http://u:p@h/x%2f..", "https://h/..", "https://h/a/."} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, address string) {
		s, err := New(address, environ(t, nil))
		if err == nil && (s.name == "" || s.text == "" || strings.Contains(s.name, "/") && !strings.Contains(address, "%")) {
			t.Errorf("%q: %q", address, s.name)
		}
		if err != nil && !errors.Is(err, source.ErrUsage) {
			t.Error(err)
		}
	})
}
