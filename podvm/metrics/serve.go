package metrics

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/netutil"

	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/rpc"
)

// Limits of the HTTP server: few callers, small requests, quick answers.
const (
	maxConns    = 16
	maxHeader   = 4 << 10
	readTimeout = 2 * time.Second
	idleTimeout = 15 * time.Second
	stopTime    = 2 * time.Second
)

// Off is the address for Listen that means no listener at all.
const Off = "off"

// Socket returns where the metrics of the daemon with this socket are: the same
// path, with -metrics before .sock.
func Socket(daemon string) string {
	return strings.TrimSuffix(daemon, ".sock") + "-metrics.sock"
}

// Check says whether addr is one that Listen takes.
func Check(addr string) error {
	if addr == "" || addr == Off {
		return nil
	}
	if _, err := rpc.SocketPath(addr); err == nil {
		return nil
	}
	if _, err := rpc.LoopbackAddr(addr); err != nil {
		return fmt.Errorf("want unix://PATH, HOST:PORT of a loopback address, or off: %w", err)
	}
	return nil
}

// Server answers GET /metrics and, on sockets, GET /status and GET and PUT
// /log-level.
type Server struct {
	log   *slog.Logger
	parts []part
}

type part struct {
	l net.Listener
	h http.Handler
}

// Listen opens what addr, from a configuration, asks for: "" the socket beside
// the daemon's at path, "unix://PATH" another socket, "HOST:PORT" a loopback
// port with the metrics and, for the status, the socket beside the daemon's,
// "off" nothing. A daemon without a socket has path "". status returns what is
// shown as JSON. Sockets are for root and the daemon's own user alone.
//
// A daemon is needed more than its metrics: what cannot be opened is a warning
// in log, and the rest is served.
func Listen(ctx context.Context, addr, path string, set *Set, status func() any, log *slog.Logger) *Server {
	s := &Server{log: log}
	add := func(l net.Listener, err error, h http.Handler) {
		if err != nil {
			log.Warn("Metrics are not served", "err", err)
			return
		}
		s.parts = append(s.parts, part{l, h})
	}
	socket := ""
	if path != "" {
		socket = Socket(path)
	}
	switch port, err := rpc.LoopbackAddr(addr); {
	case addr == Off:
		return s
	case err == nil:
		l, err := rpc.ListenTCP(ctx, port)
		add(l, err, handler(set))
	case addr != "":
		if socket, err = rpc.SocketPath(addr); err != nil {
			add(nil, err, nil)
			return s
		}
	}
	if socket != "" && socket == path {
		add(nil, fmt.Errorf("%s is the daemon's own socket", path), nil)
	} else if socket != "" {
		l, err := rpc.ListenPrivate(ctx, socket)
		add(l, err, private(handler(set), status, log))
	}
	return s
}

// Serve answers until ctx ends; then running requests have two seconds. It
// closes what Listen opened. What goes wrong is a warning in the log.
func (s *Server) Serve(ctx context.Context) {
	var wg sync.WaitGroup
	for _, p := range s.parts {
		wg.Go(func() {
			if err := serve(ctx, p.l, p.h, s.log); err != nil {
				s.log.Warn("Metrics are not served any more", "err", err)
			}
		})
	}
	wg.Wait()
}

func serve(ctx context.Context, l net.Listener, h http.Handler, log *slog.Logger) error {
	srv := &http.Server{
		Handler: h, ReadHeaderTimeout: readTimeout, ReadTimeout: readTimeout, WriteTimeout: 5 * readTimeout,
		IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(netutil.LimitListener(l, maxConns)) }()
	select {
	case err := <-done:
		return fmt.Errorf("serving metrics on %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTime)
	defer cancel()
	err := srv.Shutdown(stop)
	if errors.Is(err, context.DeadlineExceeded) {
		err = srv.Close()
	}
	if e := <-done; !errors.Is(e, http.ErrServerClosed) {
		err = errors.Join(err, e)
	}
	return err
}

// handler answers with the metrics.
func handler(set *Set) *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", ContentType)
		_, _ = w.Write([]byte(set.Text()))
	})
	return mux
}

// maxLevel caps a log level, in bytes: a list of targets may be long.
const maxLevel = 1 << 10

// private adds to mux what is for root alone: the status, and the level of log, as
// text that podvm.LogLevel takes.
func private(mux *http.ServeMux, status func() any, log *slog.Logger) http.Handler {
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		b, err := json.Marshal(status())
		if err != nil {
			http.Error(w, "no status", http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(append(b, '\n'))
	})
	level := podvm.LevelOf(log)
	if level == nil {
		return mux
	}
	mux.HandleFunc("GET "+levelPath, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprintln(w, podvm.LevelName(level.Level()))
	})
	mux.HandleFunc("PUT "+levelPath, func(w http.ResponseWriter, r *http.Request) {
		text, err := podvm.ReadMax(r.Body, maxLevel)
		to, err2 := podvm.LogLevel(string(text))
		if err := errors.Join(err, err2); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		from := level.Level()
		level.Set(to)
		log.Log(r.Context(), max(to, slog.LevelInfo), "The log level was changed", "from", podvm.LevelName(from), "to", podvm.LevelName(to))
		_, _ = fmt.Fprintln(w, podvm.LevelName(to))
	})
	return mux
}

// levelPath is where the log level is.
const levelPath = "/log-level"
