package forwarder

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/forwarder/relay"
	"github.com/sealpod/sealpod/podvm"
)

// A peer that is gone without a word is noticed by these: probes when nothing is
// under way, an end to waiting for an acknowledgement when something is. There is
// no hurry: one that is gone costs little and makes room for others, and one that
// only cannot be reached for a while never comes back when it is given up, for
// cloud-api-adaptor (pkg/util/agentproto/redirector.go at fbdde756) dials once.
// Go's own probes, which upstream has, give up after two and a half minutes.
const (
	probeAfter    = 30 * time.Second
	probeInterval = 30 * time.Second
	probes        = 9
	ackTime       = 5 * time.Minute
)

// limits of a server; tests have smaller ones.
type limits struct {
	handshake time.Duration // of TLS, from accept to end
	strangers int           // connections that have not shown who they are
	clients   int           // connections that have
	drain     time.Duration // for running calls when the server stops
}

var defaultLimits = limits{handshake: 10 * time.Second, strangers: 64, clients: 64, drain: 2 * time.Second}

// Back-off after a failure to accept, as when files run out.
const (
	minPause = 5 * time.Millisecond
	maxPause = time.Second
)

// listen opens the port.
func listen(ctx context.Context, addr string) (net.Listener, error) {
	lc := net.ListenConfig{
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: probeAfter, Interval: probeInterval, Count: probes},
		// Accepted connections inherit it.
		Control: func(_, _ string, c syscall.RawConn) (err error) {
			cerr := c.Control(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(ackTime.Milliseconds()))
			})
			return errors.Join(cerr, err)
		},
	}
	lc.SetMultipathTCP(false) // its sockets know none of the above
	l, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listening for the adaptor: %w", err)
	}
	return l, nil
}

// server lets clients in and hands their connections on.
type server struct {
	tls    *tls.Config // nil for plain TCP
	limits limits
	// splice serves a connection until it or ctx ends, and closes it.
	splice func(ctx context.Context, conn net.Conn) error
	// running is how many calls want an answer soon.
	running func() int
	log     *slog.Logger
	count   *counters

	peers  *peers
	refuse quiet

	asking sync.Mutex
	own    string // address that alive asked from last
}

func newServer(c *tls.Config, l limits, log *slog.Logger, n *counters) *server {
	s := &server{limits: l, log: log, count: n, peers: newPeers(l), refuse: quiet{log: log}}
	if c != nil {
		s.tls = c.Clone()
		s.tls.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			s.peers.spoke(h.Conn.(*relay.Socket).Conn)
			return nil, nil
		}
	}
	return s
}

// serve accepts connections on l, which it closes, until ctx ends. Then running
// calls have a moment to be answered. No goroutine survives it.
func (s *server) serve(ctx context.Context, l net.Listener) error {
	served, cut := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cut()
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	pause := minPause
	for {
		conn, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				_ = conn.Close()
			}
			s.drain()
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("accepting connections: %w", err)
		case err != nil:
			s.log.Warn("A connection was not accepted", "err", err, "pause", pause)
			if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
				s.peers.shed()
			}
			wait(ctx, pause)
			pause = min(2*pause, maxPause)
			continue
		}
		pause = minPause
		wg.Go(func() { s.handle(ctx, served, conn.(*net.TCPConn)) })
	}
}

// drain waits until no call is running, or long enough.
func (s *server) drain() {
	ctx, cancel := context.WithTimeout(context.Background(), s.limits.drain)
	defer cancel()
	for s.running != nil && s.running() > 0 && ctx.Err() == nil {
		wait(ctx, 5*time.Millisecond)
	}
}

// wait waits for d or the end of ctx.
func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// handle serves one connection: a stranger until ctx ends, a client until served
// does.
func (s *server) handle(ctx, served context.Context, conn *net.TCPConn) {
	defer conn.Close() //nolint:errcheck // its owner is done with it
	from := conn.RemoteAddr().String()
	if s.isOwn(from) {
		return
	}
	p := s.peers.enter(conn)
	defer s.peers.leave(p)
	var host net.Conn = conn
	if s.tls != nil {
		secured := tls.Server(relay.NewSocket(conn), s.tls)
		limited, cancel := context.WithTimeout(ctx, s.limits.handshake)
		err := secured.HandshakeContext(limited)
		cancel()
		if err != nil {
			s.refused(ctx, p, from, err)
			return
		}
		host = secured
	}
	if !s.peers.admit(p) {
		s.count.ended("displaced")
		return
	}
	s.log.Info("A client is connected", "from", from)
	err := s.splice(served, host)
	switch {
	case s.peers.displaced(p):
		s.count.ended("displaced")
		s.log.Warn("A client was silent for longest and made room for another", "from", from)
	case err == nil || errors.Is(err, io.EOF) || served.Err() != nil:
		s.count.ended("closed")
		s.log.Info("A client is gone", "from", from)
	default:
		s.count.ended("failed")
		s.log.Warn("The connection to a client failed", "from", from, "err", err)
	}
}

// refused tells of a handshake that failed.
func (s *server) refused(ctx context.Context, p *peer, from string, err error) {
	if ctx.Err() != nil {
		return
	}
	result := "refused"
	switch {
	case s.peers.displaced(p):
		result = "displaced"
	case errors.Is(err, context.DeadlineExceeded):
		result = "timeout"
	case errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET):
		result = "gone"
	}
	s.count.ended(result)
	if result == "gone" {
		// Scanners hang up like this.
		s.log.Debug("A stranger hung up", "from", from, "err", err)
		return
	}
	s.refuse.warn("A client was not let in", "from", from, "result", result, "err", podvm.Printable(err.Error(), 300))
}

// alive connects to the server's own address and waits to be dismissed, which takes
// the loop that accepts and one that handles, and nobody's place.
func (s *server) alive(ctx context.Context, l net.Listener) error {
	at, err := netip.ParseAddrPort(l.Addr().String())
	if err != nil {
		return err
	}
	if at.Addr().IsUnspecified() {
		at = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), at.Port())
	}
	var d net.Dialer
	s.asking.Lock() // until it is known which one this is
	conn, err := d.DialContext(ctx, "tcp", at.String())
	if err == nil {
		s.own = conn.LocalAddr().String()
	}
	s.asking.Unlock()
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	if _, err := io.Copy(io.Discard, conn); err != nil && !errors.Is(err, syscall.ECONNRESET) {
		return err
	}
	return nil
}

// isOwn reports whether it is alive that asks from this address.
func (s *server) isOwn(from string) bool {
	s.asking.Lock()
	defer s.asking.Unlock()
	return s.own == from
}

// quiet logs at most once a second, so that strangers cannot fill the journal.
type quiet struct {
	log     *slog.Logger
	mu      sync.Mutex
	last    time.Time
	skipped int
}

func (q *quiet) warn(msg string, args ...any) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if time.Since(q.last) < time.Second {
		q.skipped++
		return
	}
	q.log.Warn(msg, append(args, "unreported", q.skipped)...) //nolint:sloglint // constant at the callers
	q.last, q.skipped = time.Now(), 0
}
