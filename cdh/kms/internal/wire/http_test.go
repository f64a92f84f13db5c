package wire

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sealpod/sealpod/podvm"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func client(t testing.TB, cfg ClientConfig) *Client {
	t.Helper()
	cfg.Log = slog.New(slog.DiscardHandler)
	if cfg.Backoff == 0 {
		cfg.Backoff = time.Microsecond
	}
	c := NewClient(cfg)
	t.Cleanup(c.Close)
	return c
}

func serve(t testing.TB, h http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s
}

func env(vars map[string]string) podvm.Host {
	return podvm.Host{LookupEnv: func(name string) (string, bool) { v, ok := vars[name]; return v, ok }}
}

func TestTriesAndTheirNumber(t *testing.T) {
	status := func(codes ...int) func(int, http.ResponseWriter) {
		return func(n int, w http.ResponseWriter) { w.WriteHeader(codes[min(n, len(codes))-1]) }
	}
	for name, tt := range map[string]struct {
		answer func(n int, w http.ResponseWriter)
		again  func(*Response) bool
		status int // 0: no answer
		is     error
		tries  int64
	}{
		"well":               {answer: status(200), status: 200, tries: 1},
		"not found":          {answer: status(404), status: 404, tries: 1},
		"500 then well":      {answer: status(500, 200), status: 200, tries: 2},
		"429 and 503 then":   {answer: status(429, 503, 200), status: 200, tries: 3},
		"503 for good":       {answer: status(503), status: 503, tries: 3},
		"the provider's 412": {answer: status(412, 200), again: func(r *Response) bool { return r.Status == 412 }, status: 200, tries: 2},
		"well, unread": {
			answer: status(200), status: 200, tries: 1, // what it brought is the provider's alone, copies and all
			again: func(*Response) bool { t.Error("an answer of 200 was looked at"); return true },
		},
		"a redirect": {
			answer: func(_ int, w http.ResponseWriter) { w.Header().Set("Location", "/elsewhere"); w.WriteHeader(307) },
			is:     ErrService, tries: 1,
		},
		"not modified": {answer: status(304), is: ErrService, tries: 1},
		"hung up, then well": {
			answer: func(n int, w http.ResponseWriter) {
				if n == 1 {
					conn, _, err := http.NewResponseController(w).Hijack()
					if err == nil {
						_ = conn.Close()
					}
				}
			},
			status: 200, tries: 2,
		},
		"reset in the body": {
			answer: func(_ int, w http.ResponseWriter) {
				w.Header().Set("Content-Length", "10")
				_, _ = io.WriteString(w, "x")
			},
			is: ErrUnreachable, tries: 3,
		},
		"1 MiB": {answer: func(_ int, w http.ResponseWriter) { _, _ = w.Write(make([]byte, maxBody)) }, status: 200, tries: 1},
		"more than 1 MiB": {
			answer: func(_ int, w http.ResponseWriter) { _, _ = w.Write(make([]byte, maxBody+1)) },
			is:     ErrService, tries: 1,
		},
		"headers without end": {
			answer: func(_ int, w http.ResponseWriter) {
				for range 200 {
					w.Header().Add("X", strings.Repeat("x", 1000))
				}
			},
			is: ErrUnreachable, tries: 3,
		},
	} {
		t.Run(name, func(t *testing.T) {
			var tries, signed atomic.Int64
			s := serve(t, func(w http.ResponseWriter, r *http.Request) {
				body, _ := io.ReadAll(r.Body)
				if string(body) != "body" || r.Header.Get("X-Signed") == "" || r.URL.Path != "/a" {
					t.Errorf("%s %s %q", r.Method, r.URL, body)
				}
				tt.answer(int(tries.Add(1)), w)
			})
			resp, err := client(t, ClientConfig{}).Do(t.Context(), Request{
				Service: "the service", Method: http.MethodPost, URL: s.URL + "/a?token=hunter2", Body: []byte("body"),
				Sign:  func(r *http.Request) error { signed.Add(1); r.Header.Set("X-Signed", "x"); return nil },
				Again: tt.again,
			})
			if !errors.Is(err, tt.is) || tries.Load() != tt.tries || signed.Load() != tt.tries {
				t.Fatalf("%v after %d tries", err, tries.Load())
			}
			if err != nil && (!strings.Contains(podvm.Cause(err), "the service ") || strings.Contains(err.Error(), "hunter2")) {
				t.Errorf("%v, cause %q", err, podvm.Cause(err))
			}
			if err == nil && resp.Status != tt.status {
				t.Errorf("status %d", resp.Status)
			}
		})
	}
}

func TestNothingListens(t *testing.T) {
	s := serve(t, nil)
	s.Close()
	_, err := client(t, ClientConfig{}).Do(t.Context(), Request{Service: "X", Method: "GET", URL: s.URL + "/?sig=hunter2"})
	if !errors.Is(err, ErrUnreachable) || podvm.Cause(err) != "X not reachable: connection refused" || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("%v", err)
	}
}

func TestCallerWhoGivesUpIsNotKept(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var tries atomic.Int64
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if tries.Add(1) == 1 {
			w.WriteHeader(503)
			return
		}
		cancel()
		<-r.Context().Done()
	})
	_, err := client(t, ClientConfig{}).Do(ctx, Request{Service: "X", Method: "GET", URL: s.URL})
	if !errors.Is(err, context.Canceled) || tries.Load() != 2 || podvm.Cause(err) != "X not reachable: the caller gave up" {
		t.Errorf("%v, %d tries", err, tries.Load())
	}
}

// TestRetryAfterBeyondTheDeadlineIsNotWaitedFor: the answer in hand says more
// than a deadline that passes.
func TestRetryAfterBeyondTheDeadlineIsNotWaitedFor(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "4000")
		w.WriteHeader(503)
	})
	ctx, cancel := context.WithTimeout(t.Context(), 9*time.Second)
	defer cancel()
	resp, err := client(t, ClientConfig{}).Do(ctx, Request{Service: "X", Method: "GET", URL: s.URL})
	if err != nil || resp.Status != 503 || ctx.Err() != nil {
		t.Errorf("%v, %v", resp, err)
	}
}

func TestSlowAnswersEnd(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).Flush() // headers, and nothing more
		<-r.Context().Done()
	})
	_, err := client(t, ClientConfig{TryTimeout: 20 * time.Millisecond}).Do(t.Context(), Request{Service: "X", Method: "GET", URL: s.URL})
	if !errors.Is(err, ErrUnreachable) || podvm.Cause(err) != "X not reachable: no answer in time" {
		t.Error(err)
	}
}

func TestNoCookiesAndNoTransparentDecompression(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Cookie") != "" || r.Header.Get("Accept-Encoding") != "" || !strings.HasPrefix(r.UserAgent(), "sealpod/") {
			t.Errorf("headers %v", r.Header)
		}
		w.Header().Set("Set-Cookie", "a=b")
	})
	c := client(t, ClientConfig{})
	for range 2 {
		if _, err := c.Do(t.Context(), Request{Service: "X", Method: "GET", URL: s.URL}); err != nil {
			t.Fatal(err)
		}
	}
}

// TestConnectionsDoNotPileUp: settings name as many hosts as they like.
func TestConnectionsDoNotPileUp(t *testing.T) {
	s := serve(t, func(http.ResponseWriter, *http.Request) {})
	var open atomic.Int64
	c := client(t, ClientConfig{Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, network, s.Listener.Addr().String())
		if err != nil {
			return nil, err
		}
		open.Add(1)
		return counted{conn, sync.OnceFunc(func() { open.Add(-1) })}, nil
	}})
	for i := range 5 * maxIdle {
		if _, err := c.Do(t.Context(), Request{Service: "X", Method: "GET", URL: fmt.Sprintf("http://host-%d.example", i)}); err != nil {
			t.Fatal(err)
		}
	}
	if n := open.Load(); n > maxIdle {
		t.Errorf("%d connections", n)
	}
}

// counted tells when it is closed.
type counted struct {
	net.Conn
	closed func()
}

func (c counted) Close() error {
	c.closed()
	return c.Conn.Close()
}

func TestProxyOfTheEnvironment(t *testing.T) {
	var asked atomic.Value
	proxy := serve(t, func(w http.ResponseWriter, r *http.Request) { asked.Store(r.Method + " " + r.Host); w.WriteHeader(403) })
	direct := errors.New("dialled directly")
	dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		if addr != proxy.Listener.Addr().String() {
			return nil, direct
		}
		return (&net.Dialer{}).DialContext(ctx, network, addr)
	}
	for name, tt := range map[string]struct {
		vars map[string]string
		want string // of the proxy, "" for a direct connection
	}{
		"none":     {nil, ""},
		"https":    {map[string]string{"HTTPS_PROXY": proxy.URL}, "CONNECT kms.example:443"},
		"in lower": {map[string]string{"https_proxy": proxy.URL}, "CONNECT kms.example:443"},
		"for http": {map[string]string{"HTTP_PROXY": proxy.URL}, ""},
		"excepted": {map[string]string{"HTTPS_PROXY": proxy.URL, "NO_PROXY": "other,.example"}, ""},
	} {
		asked.Store("")
		c := client(t, ClientConfig{Host: env(tt.vars), Dial: dial})
		_, err := c.Do(t.Context(), Request{Service: "X", Method: "GET", URL: "https://kms.example/"})
		if got := asked.Load(); !errors.Is(err, ErrUnreachable) || got != tt.want || errors.Is(err, direct) != (tt.want == "") {
			t.Errorf("%s: asked %q, %v", name, got, err)
		}
		asked.Store("")
		_, err = c.Direct().Do(t.Context(), Request{Service: "X", Method: "GET", URL: "https://kms.example/"})
		if !errors.Is(err, direct) || asked.Load() != "" {
			t.Errorf("%s: Direct asked %q, %v", name, asked.Load(), err)
		}
	}
}

func TestTrust(t *testing.T) {
	s := httptest.NewUnstartedServer(http.NotFoundHandler())
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.StartTLS()
	t.Cleanup(s.Close)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	c := client(t, ClientConfig{})
	ask := func(c *Client, url string) error {
		_, err := c.Do(t.Context(), Request{Service: "X", Method: "GET", URL: url})
		return err
	}
	if err := ask(c, s.URL); !errors.Is(err, ErrUnreachable) || podvm.Cause(err) != "X not reachable: its TLS certificate is not trusted" {
		t.Errorf("unknown CA: %v", err)
	}
	own, err := c.Trusting(ca)
	if err != nil {
		t.Fatal(err)
	}
	if err := ask(own, s.URL); err != nil {
		t.Errorf("its own CA: %v", err)
	}
	if again, err := c.Trusting(ca); again != own || err != nil {
		t.Errorf("a second client for one CA: %v", err)
	}
	u, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	if err := ask(own, "https://localhost:"+u.Port()); podvm.Cause(err) != "X not reachable: its TLS certificate is for another name" {
		t.Errorf("another name: %v", err)
	}
	plain := serve(t, http.NotFound)
	if err := ask(c, "https"+strings.TrimPrefix(plain.URL, "http")); podvm.Cause(err) != "X not reachable: it does not speak TLS" {
		t.Errorf("no TLS: %v", err)
	}
	if _, err := c.Trusting([]byte("hunter2")); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("not PEM: %v", err)
	}
	for i := range 2 * maxRoots { // hostile files do not pile up clients
		if _, err := c.Trusting(append(ca, byte(i))); err != nil {
			t.Fatal(err)
		}
	}
	if len(c.derived) != maxRoots {
		t.Errorf("%d clients kept", len(c.derived))
	}
}
