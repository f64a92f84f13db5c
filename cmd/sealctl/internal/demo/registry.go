package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
)

// server is an HTTP server of the demo's own on a loopback port.
type server struct {
	addr string
	http *http.Server
	done chan error
}

// serve starts h on a free loopback port.
func serve(ctx context.Context, h http.Handler) (*server, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listening on loopback: %w", err)
	}
	s := &server{
		addr: l.Addr().String(),
		http: &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, ErrorLog: log.New(io.Discard, "", 0)},
		done: make(chan error, 1),
	}
	go func() { s.done <- s.http.Serve(l) }()
	return s, nil
}

func (s *server) stop() error {
	err := s.http.Close()
	if e := <-s.done; !errors.Is(e, http.ErrServerClosed) {
		err = errors.Join(err, e)
	}
	return err
}

// hostileRegistry is an OCI registry on disk whose operator can change a byte
// of one blob on its way out.
type hostileRegistry struct {
	http.Handler
	tamper atomic.Pointer[string] // digest of the blob to change, nil for none
}

func newRegistry(dir string) *hostileRegistry {
	return &hostileRegistry{Handler: registry.New(
		registry.Logger(log.New(io.Discard, "", 0)),
		registry.WithBlobHandler(registry.NewDiskBlobHandler(dir)),
	)}
}

func (r *hostileRegistry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if d := r.tamper.Load(); d != nil && req.Method == http.MethodGet && strings.HasSuffix(req.URL.Path, "/blobs/"+*d) {
		w = &flipper{ResponseWriter: w}
	}
	r.Handler.ServeHTTP(w, req)
}

// flipper changes one bit of the first bytes written.
type flipper struct {
	http.ResponseWriter
	done bool
}

func (f *flipper) Write(p []byte) (int, error) {
	if f.done || len(p) == 0 {
		return f.ResponseWriter.Write(p)
	}
	f.done = true
	q := append([]byte(nil), p...)
	q[len(q)/2] ^= 1
	return f.ResponseWriter.Write(q)
}
