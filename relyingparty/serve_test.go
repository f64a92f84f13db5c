package relyingparty

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/sealpod/sealpod/relyingparty/session"
	"github.com/sealpod/sealpod/relyingparty/store"
)

// slowStore holds List until it is released.
type slowStore struct {
	store.Store
	entered, release chan struct{}
}

func (s slowStore) List(ctx context.Context, ns store.Namespace) ([]string, error) {
	close(s.entered)
	<-s.release
	return s.Store.List(ctx, ns)
}

func TestServeFinishesRunningRequestsAndStops(t *testing.T) {
	slow := slowStore{store.NewMemory(), make(chan struct{}), make(chan struct{})}
	s, err := Open(Config{Store: slow})
	must(t, err)
	defer func() { must(t, s.Close()) }()
	token := string(s.AdminToken())
	var lc net.ListenConfig
	ln, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	must(t, err)
	ctx, stop := context.WithCancel(t.Context())
	served, got := make(chan error, 1), make(chan string, 1)
	go func() { served <- s.Serve(ctx, ln) }()
	tr := &http.Transport{DisableKeepAlives: true}
	go func() {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+ln.Addr().String()+"/kbs/v0/resource", nil)
		if err != nil {
			got <- err.Error()
			return
		}
		withBearer(token)(req)
		resp, err := tr.RoundTrip(req)
		if err != nil {
			got <- err.Error()
			return
		}
		defer resp.Body.Close() //nolint:errcheck // test
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			got <- err.Error()
			return
		}
		got <- string(body)
	}()
	<-slow.entered
	stop()
	close(slow.release)
	if body := <-got; body != "[]" {
		t.Errorf("the running request got %q", body)
	}
	if err := <-served; err != nil {
		t.Errorf("Serve: %v", err)
	}
}

func TestServeReportsABrokenListener(t *testing.T) {
	s, err := Open(Config{Store: store.NewMemory()})
	must(t, err)
	defer func() { must(t, s.Close()) }()
	var lc net.ListenConfig
	ln, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	must(t, err)
	must(t, ln.Close())
	if err := s.Serve(t.Context(), ln); err == nil || !strings.Contains(err.Error(), "serving") {
		t.Errorf("Serve: %v", err)
	}
}

func TestPanicBecomesAnError(t *testing.T) {
	p := newParty(t, func(c *Config) { c.Sessions = nilSessions{} })
	if a := p.do("POST", "/kbs/v0/auth", authBody); a.status != 401 || a.variant() != "PluginInternalError" {
		t.Error(a)
	}
	if !strings.Contains(p.log.String(), "Handler panicked") {
		t.Error("the panic is not in the log")
	}
}

// nilSessions panics on every use.
type nilSessions struct{ session.Store }
