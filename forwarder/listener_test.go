package forwarder

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// echo is a splice that sends back what comes.
func echo(ctx context.Context, conn net.Conn) error {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	_, err := io.Copy(struct{ io.Writer }{conn}, struct{ io.Reader }{conn})
	return err
}

// serving starts a server with an echo behind it.
func serving(t *testing.T, c *tls.Config, l limits) (s *server, addr string) {
	t.Helper()
	at, err := listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s = newServer(c, l, silent, newCounters())
	s.splice = echo
	start(t, s, at)
	return s, at.Addr().String()
}

func start(t *testing.T, s *server, l net.Listener) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func autoServer(t *testing.T, l limits) (s *server, addr string, client *tls.Config) {
	t.Helper()
	w := autoWorker(t)
	c, err := TLS{}.config(w.file(), silent)
	if err != nil {
		t.Fatal(err)
	}
	s, addr = serving(t, c, l)
	return s, addr, w.config(t)
}

func dial(t *testing.T, addr string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// works says whether what is sent comes back.
func works(conn net.Conn) error {
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte("x")); err != nil {
		return err
	}
	_, err := io.ReadFull(conn, make([]byte, 1))
	return err
}

func client(t *testing.T, addr string, c *tls.Config) *tls.Conn {
	t.Helper()
	conn := tls.Client(dial(t, addr), c)
	if err := works(conn); err != nil {
		t.Fatal(err)
	}
	return conn
}

// until waits for something to become true.
func until(t testing.TB, what string, is func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for !is() {
		if wait(ctx, time.Millisecond); ctx.Err() != nil {
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

func (s *server) are(strangers, clients int) func() bool {
	return func() bool {
		a, b := s.peers.counts()
		return a == strangers && b == clients
	}
}

func TestHandshakesHaveADeadline(t *testing.T) {
	l := defaultLimits
	l.handshake = 50 * time.Millisecond
	s, addr, c := autoServer(t, l)
	silent, slow := dial(t, addr), dial(t, addr)
	if _, err := slow.Write([]byte("\x16\x03\x01\x02\x00\x01")); err != nil {
		t.Fatal(err)
	}
	for _, conn := range []net.Conn{silent, slow} {
		if _, err := io.Copy(io.Discard, conn); err != nil && !errors.Is(err, syscall.ECONNRESET) {
			t.Error(err)
		}
	}
	until(t, "they are forgotten", s.are(0, 0))
	if text := s.count.set.Text(); !strings.Contains(text, `connections_ended_total{result="timeout"} 2`) {
		t.Error(text)
	}
	var conn *tls.Conn
	until(t, "a quick one gets in", func() bool {
		conn = tls.Client(dial(t, addr), c)
		return works(conn) == nil
	})
	wait(t.Context(), 3*l.handshake) // it is not for those who got in
	if err := works(conn); err != nil {
		t.Error(err)
	}
}

func TestAFloodOfStrangersKeepsNobodyOut(t *testing.T) {
	s, addr, c := autoServer(t, limits{handshake: time.Minute, strangers: 8, clients: 4, drain: time.Second})
	old := client(t, addr, c)
	var flood sync.WaitGroup
	stop := make(chan struct{})
	for range 4 {
		flood.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if conn, err := net.Dial("tcp", addr); err == nil {
					defer conn.Close()
				}
				wait(context.Background(), time.Millisecond)
			}
		})
	}
	until(t, "no place is left", func() bool { n, _ := s.peers.counts(); return n == 8 })
	for range 20 {
		// An adaptor dials again until it is in.
		until(t, "a client gets in", func() bool {
			conn := tls.Client(dial(t, addr), c)
			defer conn.Close()
			return works(conn) == nil
		})
	}
	if err := works(old); err != nil {
		t.Errorf("a client that was in: %v", err)
	}
	if n, _ := s.peers.counts(); n > 8 {
		t.Errorf("%d strangers", n)
	}
	close(stop)
	flood.Wait()
}

func TestASuccessorTakesThePlaceOfTheMostSilent(t *testing.T) {
	s, addr, c := autoServer(t, limits{handshake: time.Minute, strangers: 8, clients: 3, drain: time.Second})
	var conns []net.Conn
	for range 3 {
		conns = append(conns, client(t, addr, c))
	}
	wait(t.Context(), 20*time.Millisecond)
	for _, busy := range []int{0, 2} {
		if err := works(conns[busy]); err != nil {
			t.Fatal(err)
		}
	}
	conns = append(conns, client(t, addr, c))
	for i, conn := range conns {
		if err := works(conn); (err != nil) != (i == 1) {
			t.Errorf("connection %d: %v", i, err)
		}
	}
	until(t, "three are left", s.are(0, 3))
}

func TestPlainConnectionsThatSaidNothingGoFirst(t *testing.T) {
	s, addr := serving(t, nil, limits{strangers: 8, clients: 2, drain: time.Second})
	good, probe := dial(t, addr), dial(t, addr)
	if err := works(good); err != nil {
		t.Fatal(err)
	}
	until(t, "both are there", s.are(0, 2))
	wait(t.Context(), 20*time.Millisecond)
	if err := works(dial(t, addr)); err != nil {
		t.Error(err)
	}
	if err := works(good); err != nil {
		t.Errorf("the one that spoke: %v", err)
	}
	if err := works(probe); err == nil {
		t.Error("the one that did not is still there")
	}
}

func TestOneNetworkDisplacesItsOwnOnly(t *testing.T) {
	s, addr, c := autoServer(t, limits{handshake: time.Minute, strangers: 3, clients: 4, drain: time.Second})
	from := func(ip string) net.Conn {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}}
		conn, err := d.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	good := from("127.0.0.2")
	until(t, "it is there", s.are(1, 0))
	for n := 2; n < 12; n++ {
		from("127.0.0.3")
		until(t, "the flood is there", s.are(min(n, 3), 0))
	}
	if err := works(tls.Client(good, c)); err != nil {
		t.Errorf("the oldest, of another network: %v", err)
	}
}

// failing is a listener that fails a few times first.
type failing struct {
	net.Listener
	errs []error
}

func (f *failing) Accept() (net.Conn, error) {
	if len(f.errs) > 0 {
		err := f.errs[0]
		f.errs = f.errs[1:]
		return nil, &net.OpError{Op: "accept", Err: err}
	}
	return f.Listener.Accept()
}

func TestAcceptGoesOnAfterErrors(t *testing.T) {
	l, err := listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := newServer(nil, defaultLimits, silent, newCounters())
	s.splice = echo
	start(t, s, &failing{l, []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ECONNABORTED}})
	if err := works(dial(t, l.Addr().String())); err != nil {
		t.Error(err)
	}
}

func TestAcceptEndsWithItsListener(t *testing.T) {
	l, err := listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	s := newServer(nil, defaultLimits, silent, newCounters())
	if err := s.serve(t.Context(), l); !errors.Is(err, net.ErrClosed) {
		t.Errorf("%v", err)
	}
}

func TestAStoppingServerWaitsForCalls(t *testing.T) {
	l, err := listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := newServer(nil, defaultLimits, silent, newCounters())
	s.splice = echo
	asked := make(chan int)
	s.running = func() int { return <-asked }
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.serve(ctx, l) }()
	conn := dial(t, l.Addr().String())
	if err := works(conn); err != nil {
		t.Fatal(err)
	}
	cancel()
	asked <- 1
	if err := works(conn); err != nil {
		t.Errorf("while it stops: %v", err)
	}
	if _, err := net.Dial("tcp", l.Addr().String()); err == nil {
		t.Error("it still accepts")
	}
	asked <- 0
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := works(conn); err == nil {
		t.Error("the connection is still there")
	}
}

func TestDeadPeersAreNoticedOnEveryConnection(t *testing.T) {
	got := make(chan [2]int, 1)
	l, err := listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := newServer(nil, defaultLimits, silent, newCounters())
	s.splice = func(_ context.Context, conn net.Conn) error {
		defer conn.Close()
		raw, err := conn.(*net.TCPConn).SyscallConn()
		if err != nil {
			return err
		}
		return raw.Control(func(fd uintptr) {
			alive, _ := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_KEEPALIVE)
			timeout, _ := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT)
			got <- [2]int{alive, timeout}
		})
	}
	start(t, s, l)
	dial(t, l.Addr().String())
	if v := <-got; v[0] != 1 || v[1] != 300000 {
		t.Errorf("keepalive %d, user timeout %d ms", v[0], v[1])
	}
}

func TestAlive(t *testing.T) {
	for name, plain := range map[string]bool{"TLS": false, "plain": true} {
		t.Run(name, func(t *testing.T) {
			var c *tls.Config
			if !plain {
				var err error
				if c, err = (TLS{}).config(autoWorker(t).file(), silent); err != nil {
					t.Fatal(err)
				}
			}
			l, err := listen(t.Context(), "0.0.0.0:0")
			if err != nil {
				t.Fatal(err)
			}
			s := newServer(c, defaultLimits, silent, newCounters())
			s.splice = echo
			stuck, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			if err := s.alive(stuck, l); err == nil {
				t.Error("nobody accepts, and it is alive")
			}
			start(t, s, l)
			if err := s.alive(t.Context(), l); err != nil {
				t.Error(err)
			}
		})
	}
}

// Who asks whether the server is stuck takes nobody's place, and is not talked about.
func TestAliveTakesNobodysPlace(t *testing.T) {
	l, err := listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	s := newServer(nil, limits{clients: 1, strangers: 1}, slog.New(slog.NewTextHandler(&said, &slog.HandlerOptions{Level: slog.LevelWarn})), newCounters())
	s.splice = echo
	start(t, s, l)
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ping := func() {
		t.Helper()
		if _, err := io.WriteString(client, "x"); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(client, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	ping()
	for range 3 {
		if err := s.alive(t.Context(), l); err != nil {
			t.Fatal(err)
		}
	}
	ping()
	if said.Len() > 0 {
		t.Error(said.String())
	}
}
