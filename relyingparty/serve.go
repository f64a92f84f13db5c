package relyingparty

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"golang.org/x/net/netutil"
	"golang.org/x/sync/errgroup"
)

// Limits of the HTTP server, so that slow or many peers cost little.
const (
	maxConnections    = 1024
	readHeaderTimeout = 10 * time.Second
	readTimeout       = 60 * time.Second
	requestTimeout    = 60 * time.Second
	writeTimeout      = readTimeout + requestTimeout
	idleTimeout       = 2 * time.Minute
	shutdownTimeout   = 10 * time.Second
)

// Serve answers requests on the listener until ctx ends, then lets running
// requests finish within ten seconds. It closes the listener. The result is nil
// after an orderly stop. For HTTPS the listener is one of crypto/tls.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	srv := &http.Server{
		Handler:           s.Handler(),
		ReadHeaderTimeout: readHeaderTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		err := srv.Serve(netutil.LimitListener(ln, maxConnections))
		if errors.Is(err, http.ErrServerClosed) {
			return nil
		}
		return fmt.Errorf("serving %s: %w", ln.Addr(), err)
	})
	g.Go(func() error {
		<-gctx.Done()
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
		defer cancel()
		if err := srv.Shutdown(stop); err != nil {
			return errors.Join(fmt.Errorf("waiting for running requests: %w", err), srv.Close())
		}
		return nil
	})
	return g.Wait()
}
