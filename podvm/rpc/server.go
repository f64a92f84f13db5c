// Package rpc is how Sealpod's daemons speak ttrpc over unix sockets: a
// listener whose appearance means "ready", a server that counts, bounds and
// drains its calls, a client that survives its peer, and the one way an error
// leaves the process. The same server speaks gRPC over loopback to callers who
// know nothing else.
//
// Data path: kata-agent, api-server-rest and the forwarder are the callers;
// the attestation agent and the data hub are the servers.
//
// Trust: callers are local but not trusted. Frames are capped at 4 MiB by
// ttrpc itself, frames of other kinds than requests end their connection,
// concurrency is capped here, a panic in a handler fails that call only. A unix
// socket has permissions; a loopback port is open to every process of the
// network namespace.
package rpc

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sealpod/sealpod/podvm"
)

// Limits of a server.
const (
	// maxCalls is how many calls run at once; further ones wait within their
	// own deadline.
	maxCalls = 256
	// maxWaiting is how many wait; beyond that a call is refused, so a flood
	// cannot grow memory without bound.
	maxWaiting = 1024
	// drainTime is how long a stopping server waits for running calls, and
	// undoTime how long for those it then cuts off to clean up.
	drainTime = 20 * time.Second
	undoTime  = 5 * time.Second
	// toAnswer, or a tenth of its time if that is less, is how long before a
	// caller's deadline its call ends: at the deadline the caller stops
	// listening, and would never be told why.
	toAnswer = 500 * time.Millisecond
)

// SocketPath returns the path in a "unix://PATH" address.
func SocketPath(addr string) (string, error) {
	p, ok := strings.CutPrefix(addr, "unix://")
	if !ok || p == "" {
		return "", fmt.Errorf("socket address %q: want unix://PATH", podvm.Printable(addr, 200))
	}
	return p, nil
}

// RemoveStale removes a socket at path that nobody listens on: its existence
// means "ready" to others, and a daemon that crashed leaves it behind. Anything
// else there stays.
func RemoveStale(ctx context.Context, path string) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err == nil {
		return conn.Close()
	}
	if st, serr := os.Lstat(path); serr != nil || st.Mode()&fs.ModeSocket == 0 || !errors.Is(err, syscall.ECONNREFUSED) {
		return nil
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing a stale socket: %w", err)
	}
	return nil
}

// Listen makes the directory of path, takes the place of a stale socket there
// and returns a listener. The socket appears under its name only once it
// accepts connections. A file at path that is not a socket is an error.
func Listen(ctx context.Context, path string) (net.Listener, error) {
	return listen(ctx, path, 0)
}

// ListenPrivate is Listen for a socket of mode 0600.
func ListenPrivate(ctx context.Context, path string) (net.Listener, error) {
	return listen(ctx, path, 0o600)
}

// listen leaves the mode to the umask if it is 0.
func listen(ctx context.Context, path string, mode fs.FileMode) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("creating the socket directory: %w", err)
	}
	if st, err := os.Lstat(path); err == nil && st.Mode()&fs.ModeSocket == 0 {
		return nil, fmt.Errorf("listening on %s: the path exists and is not a socket", path)
	}
	tmp := fmt.Sprintf("%s.%d", path, os.Getpid())
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("removing a stale socket: %w", err)
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "unix", tmp)
	if err != nil {
		return nil, fmt.Errorf("listening on %s: %w", path, err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	if mode != 0 {
		err = os.Chmod(tmp, mode)
	}
	var mine fs.FileInfo
	if err == nil {
		mine, err = os.Lstat(tmp)
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("publishing the socket: %w", err), l.Close(), os.Remove(tmp))
	}
	return &listener{Listener: l, path: path, mine: mine}, nil
}

// listener removes its socket file when closed, unless a successor already
// put its own there.
type listener struct {
	net.Listener
	path string
	mine fs.FileInfo
	once sync.Once
	err  error
}

// Addr is the address others connect to, not the one that was bound.
func (l *listener) Addr() net.Addr { return &net.UnixAddr{Name: l.path, Net: "unix"} }

func (l *listener) Close() error {
	l.once.Do(func() {
		l.err = l.Listener.Close()
		if st, err := os.Lstat(l.path); err == nil && os.SameFile(st, l.mine) {
			l.err = errors.Join(l.err, os.Remove(l.path))
		}
	})
	return l.err
}

// Serve registers services on a new server and serves them on l until ctx
// ends; then it stops accepting, lets running calls finish for up to 20 s, gives
// those it cuts off 5 s more to return, and returns nil. Handlers see a context
// that carries a request id and log, and ends a little before the caller's.
func Serve(ctx context.Context, l net.Listener, log *slog.Logger, register func(*ttrpc.Server)) error {
	return serve(ctx, l, log, drainTime, register) // tests wait less
}

func serve(ctx context.Context, l net.Listener, log *slog.Logger, drain time.Duration, register func(*ttrpc.Server)) error {
	g := newGate(log)
	srv, err := ttrpc.NewServer(ttrpc.WithUnaryServerInterceptor(g.intercept))
	if err != nil {
		return fmt.Errorf("creating the server: %w", err)
	}
	register(srv)
	// Calls outlive ctx while draining, so the server gets a context of its own.
	callCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- srv.Serve(callCtx, requestListener{l}) }()
	select {
	case err := <-done:
		return fmt.Errorf("serving %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	err = l.Close()
	// ttrpc's own Shutdown closes connections with calls in flight
	// (v1.2.10 marks a connection active only when it replies), so wait first.
	g.end(drain, cancel)
	cancel()
	err = errors.Join(err, srv.Close())
	if e := <-done; !errors.Is(e, net.ErrClosed) && !errors.Is(e, ttrpc.ErrServerClosed) {
		err = errors.Join(err, e)
	}
	return err
}

// gate stands before every handler: it bounds, counts and names calls.
type gate struct {
	log   *slog.Logger
	slots chan struct{}

	mu       sync.Mutex
	running  int // or waiting for a slot
	draining bool
	idle     chan struct{} // closed when draining and nothing runs
}

func newGate(log *slog.Logger) *gate {
	return &gate{log: log, slots: make(chan struct{}, maxCalls), idle: make(chan struct{})}
}

// end refuses new calls and waits for the running ones, after drain for those
// that cut ended.
func (g *gate) end(drain time.Duration, cut func()) {
	drained := g.drain()
	select {
	case <-drained:
		return
	case <-time.After(drain):
	}
	g.log.Warn("Calls still running at shutdown are cut off")
	cut()
	// What they hold is closed after this: let them put it in order.
	select {
	case <-drained:
	case <-time.After(undoTime):
		g.log.Warn("Calls that do not end are left behind")
	}
}

// drain refuses new calls and returns a channel that closes shortly after the
// last running one returned.
func (g *gate) drain() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.draining = true
	if g.running == 0 {
		close(g.idle)
	}
	out := make(chan struct{})
	go func() {
		<-g.idle
		// A handler's return is not yet its reply on the wire: ttrpc writes
		// that from another goroutine and has no call to wait for it.
		<-time.After(50 * time.Millisecond)
		close(out)
	}()
	return out
}

// enter counts a call in, or returns the status to refuse it with.
func (g *gate) enter() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.draining:
		return status.Error(codes.Unavailable, "shutting down")
	case g.running >= cap(g.slots)+maxWaiting:
		return errTooMany
	}
	g.running++
	return nil
}

var errTooMany = status.Error(codes.ResourceExhausted, "too many calls at once")

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.running--
	if g.draining && g.running == 0 {
		close(g.idle)
	}
}

func (g *gate) intercept(ctx context.Context, um ttrpc.Unmarshaler, info *ttrpc.UnaryServerInfo, method ttrpc.Method) (any, error) {
	return g.run(ctx, info.FullMethod, func(ctx context.Context) (any, error) { return method(ctx, um) })
}

// run runs one call of a method.
func (g *gate) run(ctx context.Context, method string, handle func(context.Context) (any, error)) (resp any, err error) {
	if err := g.enter(); err != nil {
		return nil, err
	}
	defer g.leave()
	if end, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, end.Add(-min(toAnswer, time.Until(end)/10)))
		defer cancel()
	}
	select {
	case g.slots <- struct{}{}:
		defer func() { <-g.slots }()
	case <-ctx.Done():
		return nil, errTooMany
	}
	req := newRequestID()
	log := g.log.With("req", req, "method", method)
	ctx = context.WithValue(ctx, callKey{}, &call{id: req, log: log})
	start := time.Now()
	defer func() {
		if p := recover(); p != nil {
			log.Error("A handler panicked", "panic", p, "stack", string(debug.Stack()))
			resp, err = nil, status.Errorf(codes.Internal, "internal fault (request %s)", req)
		}
		log.Debug("Answered", "dur", time.Since(start), "ok", err == nil)
	}()
	return handle(ctx)
}
