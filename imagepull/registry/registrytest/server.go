// Package registrytest is a registry in this process that can be told to
// misbehave, and small images to put into it. It is for tests only.
package registrytest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
)

// Server is a registry on loopback. Hooks see every request first.
type Server struct {
	*httptest.Server
	Host string // host:port

	next http.Handler
	mu   sync.Mutex
	hook func(w http.ResponseWriter, r *http.Request) bool
	seen []string
	open map[net.Conn]http.ConnState
	idle *sync.Cond        // open changed
	kept map[string][]byte // blobs by path, which next would copy for each range
}

// New starts a plain HTTP registry that ends with the test.
func New(tb testing.TB) *Server { return start(tb, (*httptest.Server).Start) }

// NewTLS starts an HTTPS registry; its CA is Server.Certificate.
func NewTLS(tb testing.TB) *Server { return start(tb, (*httptest.Server).StartTLS) }

func start(tb testing.TB, begin func(*httptest.Server)) *Server {
	tb.Helper()
	s := &Server{next: registry.New(registry.Logger(log.New(io.Discard, "", 0))), open: map[net.Conn]http.ConnState{}, kept: map[string][]byte{}}
	s.idle = sync.NewCond(&s.mu)
	s.Server = httptest.NewUnstartedServer(s)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.Config.ConnState = s.connState
	begin(s.Server)
	s.Host = s.Listener.Addr().String()
	tb.Cleanup(s.Close)
	return s
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.seen = append(s.seen, r.Method+" "+r.URL.Path)
	hook := s.hook
	s.mu.Unlock()
	if hook != nil && hook(w, r) {
		return
	}
	if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/") {
		s.next.ServeHTTP(w, r)
		return
	}
	s.mu.Lock()
	b, ok := s.kept[r.URL.Path]
	s.mu.Unlock()
	if ok {
		ServeBlob(w, r, b)
		return
	}
	// The registry below has its own idea of ranges.
	whole := r.Clone(r.Context())
	whole.Header.Del("Range")
	answer := httptest.NewRecorder()
	s.next.ServeHTTP(answer, whole)
	if answer.Code != http.StatusOK {
		w.WriteHeader(answer.Code)
		_, _ = w.Write(answer.Body.Bytes())
		return
	}
	ServeBlob(w, r, answer.Body.Bytes())
}

// ServeBlob answers r with b, or the range of it that r asks for.
func ServeBlob(w http.ResponseWriter, r *http.Request, b []byte) {
	w.Header().Set("Content-Type", "application/octet-stream")
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
}

func (s *Server) connState(c net.Conn, state http.ConnState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if state == http.StateClosed || state == http.StateHijacked {
		delete(s.open, c)
	} else {
		s.open[c] = state
	}
	s.idle.Broadcast()
}

// WaitNoConns returns when no client is connected any more; until then the test
// hangs, and goes out with its own deadline.
func (s *Server) WaitNoConns() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.open) > 0 {
		s.idle.Wait()
	}
}

// Conns returns how many clients are connected.
func (s *Server) Conns() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.open)
}

// Hook installs f, which returns true when it has answered. Nil removes it.
func (s *Server) Hook(f func(w http.ResponseWriter, r *http.Request) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hook = f
}

// Seen returns how many requests had a method and path containing part.
func (s *Server) Seen(part string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, r := range s.seen {
		if strings.Contains(r, part) {
			n++
		}
	}
	return n
}

// PutBlob stores b, whatever a hook says, and returns its digest.
func (s *Server) PutBlob(tb testing.TB, repo string, b []byte) string {
	tb.Helper()
	digest := Digest(b)
	s.put(tb, http.MethodPost, fmt.Sprintf("/v2/%s/blobs/uploads/?digest=%s", repo, digest), "application/octet-stream", b)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kept["/v2/"+repo+"/blobs/"+digest] = b
	return digest
}

// PutManifest stores b under the tag and its digest, which it returns.
func (s *Server) PutManifest(tb testing.TB, repo, tag, mediaType string, b []byte) string {
	tb.Helper()
	digest := Digest(b)
	for _, target := range []string{digest, tag} {
		s.put(tb, http.MethodPut, fmt.Sprintf("/v2/%s/manifests/%s", repo, target), mediaType, b)
	}
	return digest
}

func (s *Server) put(tb testing.TB, method, url, mediaType string, b []byte) {
	tb.Helper()
	r := httptest.NewRequestWithContext(context.Background(), method, url, bytes.NewReader(b))
	r.Header.Set("Content-Type", mediaType)
	w := httptest.NewRecorder()
	s.next.ServeHTTP(w, r)
	if w.Code != http.StatusCreated {
		tb.Fatalf("%s %s: %d %s", method, url, w.Code, w.Body)
	}
}
