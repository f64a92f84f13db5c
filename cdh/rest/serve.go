package rest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"golang.org/x/net/netutil"
)

// Limits of the HTTP server. Reading is for small requests on loopback; writing
// leaves room for the longest call. http.Server.ReadTimeout is not used: it
// would cancel the context of a call that takes longer.
const (
	readTimeout  = 15 * time.Second // headers, and again a body
	writeTimeout = slotWait + callTimeout + peerWait + readTimeout
	idleTimeout  = 60 * time.Second
	maxHeader    = 16 << 10
	maxConns     = 256
	drainTime    = 20 * time.Second
)

// Serve answers HTTP/1 on l, and probe, until ctx ends; then it lets running
// requests finish for up to 20 s and returns nil.
func Serve(ctx context.Context, l net.Listener, probe *Probe, h http.Handler, log *slog.Logger) error {
	srv := &http.Server{
		Handler: h,
		// "OPTIONS *" is for the handler, which knows who may ask.
		DisableGeneralOptionsHandler: true,
		ReadHeaderTimeout:            readTimeout,
		WriteTimeout:                 writeTimeout,
		IdleTimeout:                  idleTimeout,
		MaxHeaderBytes:               maxHeader,
		ErrorLog:                     slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	done := make(chan error, 2)
	go func() { done <- srv.Serve(netutil.LimitListener(l, maxConns)) }()
	go func() { done <- srv.Serve(probe) }()
	select {
	case err := <-done:
		return errors.Join(fmt.Errorf("serving %s: %w", l.Addr(), err), srv.Close())
	case <-ctx.Done():
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
	defer cancel()
	err := srv.Shutdown(drain)
	if errors.Is(err, context.DeadlineExceeded) {
		log.Warn("Requests still running at shutdown are cut off")
		err = srv.Close()
	}
	for range cap(done) {
		if e := <-done; !errors.Is(e, http.ErrServerClosed) {
			err = errors.Join(err, e)
		}
	}
	return err
}
