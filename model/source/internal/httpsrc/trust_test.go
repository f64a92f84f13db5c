package httpsrc

import (
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sealpod/sealpod/model/source"
	"github.com/sealpod/sealpod/podvm"
)

func TestWhoTheServerIsTLSSays(t *testing.T) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(content))
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.StartTLS()
	t.Cleanup(s.Close)
	dir := t.TempDir()
	ca := filepath.Join(dir, "cabundle.crt")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	r := Request{URL: s.URL}
	if _, err := fetch(t.Context(), client(t, nil), r, 0, 10, 300_000); !errors.Is(err, source.ErrUnreachable) || errors.Is(err, ErrAgain) || !strings.Contains(podvm.Cause(err), "not trusted") {
		t.Errorf("without its CA: %v", err)
	}
	for name, c := range map[string]*Client{
		"of the cluster": client(t, nil, "CA_BUNDLE_CONFIGMAP_NAME", "x", "CA_BUNDLE_VOLUME_MOUNT_POINT", dir),
		"of the service": client(t, func(c *Config) { c.CAFile = "AWS_CA_BUNDLE" }, "AWS_CA_BUNDLE", ca),
		"skipped":        client(t, func(c *Config) { c.SkipVerify = true }),
	} {
		if got, err := fetch(t.Context(), c, r, 0, 10, 300_000); err != nil || got != text[:10] {
			t.Errorf("CA %s: %q, %v", name, got, err)
		}
	}
	// A page of one is no other's.
	if _, err := fetch(t.Context(), client(t, nil, "AWS_CA_BUNDLE", ca), r, 0, 10, 300_000); !errors.Is(err, source.ErrUnreachable) {
		t.Errorf("CA of another service: %v", err)
	}
	if err := os.WriteFile(ca, []byte("none"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := client(t, nil)
	c.cfg.CAFile = "AWS_CA_BUNDLE"
	c.cfg.Env.Host.LookupEnv = func(string) (string, bool) { return ca, true }
	if _, err := New(c.cfg); !errors.Is(err, source.ErrUsage) {
		t.Errorf("no certificate in it: %v", err)
	}
}

func TestProxyOfTheEnvironment(t *testing.T) {
	proxied := 0
	proxy := serve(t, func(w http.ResponseWriter, r *http.Request) {
		proxied++
		if r.URL.Host != "store.example" {
			t.Errorf("asked for %s", r.URL)
		}
		content(w, r)
	})
	for _, name := range []string{"HTTP_PROXY", "http_proxy"} {
		got, err := fetch(t.Context(), client(t, nil, name, proxy.URL), Request{URL: "http://store.example/x"}, 0, 10, 300_000)
		if err != nil || got != text[:10] {
			t.Errorf("%q, %v", got, err)
		}
	}
	if proxied != 2 {
		t.Errorf("%d requests by the proxy", proxied)
	}
}

func TestRoundOfRangesUsesOneConnection(t *testing.T) {
	conns := map[string]bool{}
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		conns[r.RemoteAddr] = true
		if r.Header.Get("Range") == "bytes=0-9" { // in chunks
			w.Header().Set("Content-Range", "bytes 0-9/300000")
			w.WriteHeader(http.StatusPartialContent)
			_ = http.NewResponseController(w).Flush()
			_, _ = io.WriteString(w, text[:10])
			return
		}
		content(w, r)
	})
	c := client(t, nil)
	for range 10 {
		for _, n := range []int64{10, 70_000} {
			b, err := c.Open(t.Context(), Request{URL: s.URL}, 0, n, 300_000)
			if err != nil {
				t.Fatal(err)
			}
			// As package fetch reads: all of it, and not its end.
			if _, err := io.ReadFull(b, make([]byte, n)); err != nil {
				t.Fatal(err)
			}
			b.Close()
		}
	}
	if len(conns) != 1 {
		t.Errorf("%d connections", len(conns))
	}
}
