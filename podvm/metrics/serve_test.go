package metrics

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sealpod/sealpod/podvm"
)

// served is a Server on what addr asks for, until the test ends.
func served(t *testing.T, addr, daemon string) *Server {
	t.Helper()
	set := New("sealpod")
	set.Counter("n_total", "Things.").Inc()
	s := Listen(t.Context(), addr, daemon, set, func() any { return map[string]string{"daemon": "d"} }, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); s.Serve(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return s
}

// get asks for path at an address of a network.
func get(t *testing.T, network, addr, path string) (int, string) {
	t.Helper()
	tr := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, addr)
	}}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://x"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close() //nolint:errcheck // a test
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func TestSocketBesideTheDaemonsIsForItsUserAlone(t *testing.T) {
	daemon := filepath.Join(t.TempDir(), "cdh.sock")
	served(t, "", daemon)
	path := Socket(daemon)
	st, err := os.Stat(path)
	if err != nil || filepath.Base(path) != "cdh-metrics.sock" || st.Mode().Perm() != 0o600 {
		t.Fatalf("%s: %v, %v", path, st, err)
	}
	if code, text := get(t, "unix", path, "/metrics"); code != http.StatusOK || !strings.Contains(text, "\nn_total 1\n") {
		t.Error(code, text)
	}
	var got struct{ Daemon string }
	if err := Status(t.Context(), path, &got); err != nil || got.Daemon != "d" {
		t.Error(got, err)
	}
	if code, _ := get(t, "unix", path, "/debug/pprof"); code != http.StatusNotFound {
		t.Error(code)
	}
}

func TestPortHasNoStatus(t *testing.T) {
	daemon := filepath.Join(t.TempDir(), "cdh.sock")
	s := served(t, "127.0.0.1:0", daemon)
	addr := s.parts[0].l.Addr().String()
	if code, text := get(t, "tcp", addr, "/metrics"); code != http.StatusOK || !strings.Contains(text, "\nn_total 1\n") {
		t.Error(code, text)
	}
	if code, _ := get(t, "tcp", addr, "/status"); code != http.StatusNotFound {
		t.Error("what is pulled can be read at a port")
	}
	if code, _ := get(t, "unix", Socket(daemon), "/status"); code != http.StatusOK {
		t.Error("the socket is gone")
	}
}

func TestAddresses(t *testing.T) {
	for addr, ok := range map[string]bool{
		"": true, "off": true, "unix:///run/x.sock": true, "127.0.0.1:9900": true, "[::1]:9900": true,
		"0.0.0.0:9900": false, "10.0.0.1:9900": false, "localhost:9900": false, "/run/x.sock": false, "on": false,
	} {
		if err := Check(addr); (err == nil) != ok {
			t.Errorf("Check(%q) = %v", addr, err)
		}
	}
	dir := t.TempDir()
	served(t, Off, filepath.Join(dir, "cdh.sock"))
	if list, err := os.ReadDir(dir); err != nil || len(list) != 0 {
		t.Errorf("off made %v, %v", list, err)
	}
	served(t, "unix://"+dir+"/other.sock", filepath.Join(dir, "cdh.sock"))
	if list, err := os.ReadDir(dir); err != nil || len(list) != 1 || list[0].Name() != "other.sock" {
		t.Errorf("%v, %v", list, err)
	}
}

// The daemon starts all the same.
func TestListenWhereNothingCanBe(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "x-metrics.sock"), []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if s := served(t, "", filepath.Join(dir, "x.sock")); len(s.parts) != 0 {
		t.Error("it listens")
	}
	own := filepath.Join(dir, "own.sock")
	if s := served(t, "unix://"+own, own); len(s.parts) != 0 {
		t.Error("it took the daemon's place")
	}
}

// Connections that say nothing, and more of them than are served at once, are
// ended, and the next one is answered.
func TestFlood(t *testing.T) {
	daemon := filepath.Join(t.TempDir(), "cdh.sock")
	served(t, "", daemon)
	var conns []net.Conn
	for i := range 3 * maxConns {
		c, err := (&net.Dialer{}).DialContext(t.Context(), "unix", Socket(daemon))
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
		if i%2 == 0 {
			if _, err := c.Write([]byte("GET /status HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 2*maxHeader))); err != nil {
				t.Log(err) // refused early
			}
		}
	}
	defer func() {
		for _, c := range conns {
			c.Close() //nolint:errcheck // a test
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var got struct{ Daemon string }
	if err := Status(ctx, Socket(daemon), &got); err != nil || got.Daemon != "d" {
		t.Error(got, err)
	}
}

func TestStatusOfAHostileDaemon(t *testing.T) {
	for name, answer := range map[string]string{
		"too long":  "HTTP/1.1 200 OK\r\n\r\n" + strings.Repeat(" ", maxStatus+1),
		"not JSON":  "HTTP/1.1 200 OK\r\n\r\n<html>",
		"not found": "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
		"not HTTP":  "220 mail\r\n",
		"redirects": "HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "s")
			l, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", path)
			if err != nil {
				t.Fatal(err)
			}
			done := make(chan struct{})
			go func() {
				defer close(done)
				c, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = c.Read(make([]byte, 4096))
				_, _ = c.Write([]byte(answer))
				_ = c.Close()
			}()
			var got map[string]any
			if err := Status(t.Context(), path, &got); err == nil {
				t.Errorf("took %v", got)
			}
			_ = l.Close()
			<-done
		})
	}
}

// The level of a daemon's log is changed while it runs, at the socket and nowhere
// else.
func TestLogLevelIsChangedAtTheSocket(t *testing.T) {
	var out strings.Builder
	log, _, err := podvm.NewLogger(&out, podvm.Host{LookupEnv: func(string) (string, bool) { return "", false }}, "d", "warn")
	if err != nil {
		t.Fatal(err)
	}
	log = log.With("kept", 1).WithGroup("g")
	daemon := filepath.Join(t.TempDir(), "d.sock")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	s := Listen(t.Context(), addr, daemon, New("sealpod"), func() any { return nil }, log)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); s.Serve(ctx) }()
	defer func() { cancel(); <-done }()

	for _, step := range [][2]string{{"", "warn"}, {"debug", "debug"}, {"", "debug"}, {"off", "off"}, {"warn,x=debug", "warn"}, {"TRACE", "trace"}} {
		if got, err := LogLevel(t.Context(), Socket(daemon), step[0]); err != nil || got != step[1] {
			t.Errorf("%q: %q, %v", step[0], got, err)
		}
	}
	if _, err := LogLevel(t.Context(), Socket(daemon), "loud"); err == nil || !strings.Contains(err.Error(), "want trace, debug") {
		t.Errorf("%v", err)
	}
	if _, err := LogLevel(t.Context(), Socket(daemon), strings.Repeat("x", 2000)); err == nil {
		t.Error("a level of 2000 bytes")
	}
	if !log.Enabled(t.Context(), slog.LevelDebug) {
		t.Error("the log is not at trace")
	}
	log.Debug("Seen")
	if !strings.Contains(out.String(), "msg=Seen applet=d kept=1") || strings.Count(out.String(), "level was changed") != 4 {
		t.Error(out.String())
	}
	if code, _ := get(t, "tcp", addr, "/log-level"); code != http.StatusNotFound {
		t.Errorf("the port answers %d", code)
	}
}
