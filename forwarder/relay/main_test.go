package relay

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"go.uber.org/goleak"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

func TestMain(m *testing.M) {
	if kind := os.Getenv(middleEnv); kind != "" {
		middleMain(kind, os.Getenv(middleSocketEnv))
		return
	}
	goleak.VerifyTestMain(m)
}

const service = "grpc.AgentService"

// testAgent is a ttrpc server in the place of kata-agent.
type testAgent struct {
	path    string
	srv     *ttrpc.Server
	done    chan struct{}
	mu      sync.Mutex
	conns   []net.Conn
	seen    []string      // payloads of Echo
	entered chan struct{} // a Block began
	cancel  context.CancelFunc
}

type bytesValue = wrapperspb.BytesValue

// startAgent serves on path.
func startAgent(t testing.TB, path string) *testAgent {
	t.Helper()
	a := &testAgent{path: path, done: make(chan struct{}), entered: make(chan struct{}, 1024)}
	var err error
	if a.srv, err = ttrpc.NewServer(); err != nil {
		t.Fatal(err)
	}
	a.srv.RegisterService(service, &ttrpc.ServiceDesc{
		Methods: map[string]ttrpc.Method{"Echo": a.echo, "Size": size, "Fail": fail, "Block": a.block, "Left": left, "Meta": meta},
		Streams: map[string]ttrpc.Stream{
			"Talk":  {Handler: talk, StreamingClient: true, StreamingServer: true},
			"Count": {Handler: count, StreamingServer: true},
		},
	})
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	a.cancel = cancel
	go func() {
		defer close(a.done)
		_ = a.srv.Serve(ctx, listener{l, a})
	}()
	t.Cleanup(a.stop)
	return a
}

// listener remembers what it accepts: ttrpc closes no connection with calls.
type listener struct {
	net.Listener
	a *testAgent
}

func (l listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		l.a.mu.Lock()
		defer l.a.mu.Unlock()
		l.a.conns = append(l.a.conns, c)
	}
	return c, err
}

// stop ends the agent as its death would: its connections close at once, and
// calls that run answer nobody any more.
func (a *testAgent) stop() {
	if a.srv == nil {
		return
	}
	_ = a.srv.Close()
	<-a.done
	a.mu.Lock()
	for _, c := range a.conns {
		_ = c.Close()
	}
	a.mu.Unlock()
	a.cancel()
	a.srv = nil
}

func (a *testAgent) echo(_ context.Context, unmarshal func(any) error) (any, error) {
	var v bytesValue
	if err := unmarshal(&v); err != nil {
		return nil, err
	}
	if n := len(v.Value); n > 0 && n < 64 {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.seen = append(a.seen, string(v.Value))
	}
	return &v, nil
}

var megabytes = make([]byte, 8<<20)

func size(_ context.Context, unmarshal func(any) error) (any, error) {
	var n wrapperspb.UInt32Value
	if err := unmarshal(&n); err != nil {
		return nil, err
	}
	return &bytesValue{Value: megabytes[:n.Value]}, nil
}

func fail(context.Context, func(any) error) (any, error) {
	st, err := status.New(codes.FailedPrecondition, "not so").WithDetails(&errdetails.ErrorInfo{Reason: "why", Domain: "d"})
	if err != nil {
		return nil, err
	}
	return nil, st.Err()
}

func (a *testAgent) block(ctx context.Context, unmarshal func(any) error) (any, error) {
	var v bytesValue
	if err := unmarshal(&v); err != nil {
		return nil, err
	}
	a.entered <- struct{}{}
	<-ctx.Done()
	return &v, ctx.Err()
}

// left answers with the time the caller has left.
func left(ctx context.Context, unmarshal func(any) error) (any, error) {
	var v bytesValue
	if err := unmarshal(&v); err != nil {
		return nil, err
	}
	end, ok := ctx.Deadline()
	if !ok {
		return &durationpb.Duration{}, nil
	}
	return durationpb.New(time.Until(end)), nil
}

// meta answers with the metadata under "key".
func meta(ctx context.Context, unmarshal func(any) error) (any, error) {
	var v bytesValue
	if err := unmarshal(&v); err != nil {
		return nil, err
	}
	s, _ := ttrpc.GetMetadataValue(ctx, "key")
	return &bytesValue{Value: []byte(s)}, nil
}

// talk sends back what it gets.
func talk(_ context.Context, ss ttrpc.StreamServer) (any, error) {
	for {
		var v bytesValue
		err := ss.RecvMsg(&v)
		if errors.Is(err, io.EOF) {
			return nil, nil
		}
		if err == nil {
			err = ss.SendMsg(&v)
		}
		if err != nil {
			return nil, err
		}
	}
}

// count sends as many messages as it is asked for.
func count(_ context.Context, ss ttrpc.StreamServer) (any, error) {
	var n wrapperspb.UInt32Value
	if err := ss.RecvMsg(&n); err != nil {
		return nil, err
	}
	for i := range n.Value {
		if err := ss.SendMsg(&wrapperspb.UInt32Value{Value: i}); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// dialTo returns a Config.Dial for a socket.
func dialTo(path string) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}
}

// socket is a path for an agent.
func socket(t testing.TB) string { return filepath.Join(t.TempDir(), "a.sock") }

// tcpPair returns the two ends of a TCP connection.
func tcpPair(t testing.TB) (client, server net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if client, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if server, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	return client, server
}

// tlsPair is tcpPair with TLS 1.3 over it.
func tlsPair(t testing.TB) (client, server net.Conn) {
	t.Helper()
	client, server = tcpPair(t)
	return secure(t, client, server)
}

// socketPair is tlsPair with a Socket under the server's end.
func socketPair(t testing.TB) (client, server net.Conn) {
	t.Helper()
	client, server = tcpPair(t)
	return secure(t, client, NewSocket(server))
}

func secure(t testing.TB, client, server net.Conn) (net.Conn, net.Conn) {
	c := tls.Client(client, &tls.Config{InsecureSkipVerify: true})
	s := tls.Server(server, &tls.Config{Certificates: []tls.Certificate{certificate()}})
	errs := make(chan error, 1)
	go func() { errs <- s.Handshake() }()
	if err := errors.Join(c.Handshake(), <-errs); err != nil {
		t.Fatal(err)
	}
	return c, s
}

var certificate = sync.OnceValue(func() tls.Certificate {
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "podvm"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		panic(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
})

// served is a host connection that is served until the test ends.
type served struct {
	net.Conn // the host's end
	relay    *Relay
	cancel   context.CancelFunc
	result   chan error
	once     sync.Once
	err      error
}

// serve relays between the pair's server end and what cfg dials.
func serve(t testing.TB, cfg Config, pair func(testing.TB) (client, server net.Conn)) *served {
	t.Helper()
	client, server := pair(t)
	ctx, cancel := context.WithCancel(context.Background())
	s := &served{Conn: client, relay: New(cfg), cancel: cancel, result: make(chan error, 1)}
	go func() { s.result <- s.relay.Serve(ctx, server) }()
	t.Cleanup(func() {
		client.Close()
		cancel()
		s.wait()
	})
	return s
}

// wait returns what Serve did.
func (s *served) wait() error {
	s.once.Do(func() { s.err = <-s.result })
	return s.err
}

// client is a ttrpc client over a relay to the agent at path.
func client(t testing.TB, cfg Config) *ttrpc.Client {
	t.Helper()
	c := ttrpc.NewClient(serve(t, cfg, socketPair).Conn)
	t.Cleanup(func() { c.Close() })
	return c
}

// echo makes an Echo call.
func echo(ctx context.Context, c *ttrpc.Client, text string) (string, error) {
	var out bytesValue
	err := c.Call(ctx, service, "Echo", &bytesValue{Value: []byte(text)}, &out)
	return string(out.Value), err
}

// within is a context for a test's step.
func within(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestCallsPass(t *testing.T) {
	path := socket(t)
	startAgent(t, path)
	for name, pair := range map[string]func(testing.TB) (net.Conn, net.Conn){"tls": tlsPair, "tcp": tcpPair, "socket": socketPair} {
		t.Run(name, func(t *testing.T) {
			c := ttrpc.NewClient(serve(t, Config{Dial: dialTo(path)}, pair).Conn)
			defer c.Close()
			for i := range 100 {
				text := string(bytes.Repeat([]byte{byte('a' + i%26)}, i*i*20))
				if got, err := echo(t.Context(), c, text); err != nil || got != text {
					t.Fatalf("%d bytes: got %d, %v", len(text), len(got), err)
				}
			}
		})
	}
}
