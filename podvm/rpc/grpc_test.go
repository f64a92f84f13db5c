package rpc

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/sealpod/sealpod/api/datahub"
)

type resources interface {
	GetResource(context.Context, *datahub.GetResourceRequest) (*datahub.GetResourceResponse, error)
}

const getResourceMethod = "/test.Resources/GetResource"

// startGRPC serves h by gRPC and returns a client of it, and what ends it.
func startGRPC(t *testing.T, h resources, drain time.Duration) (*grpc.ClientConn, func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	addr, err := LoopbackAddr("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l, err := ListenTCP(ctx, addr)
	if err != nil {
		t.Fatal(err)
	}
	desc := grpc.ServiceDesc{ServiceName: "test.Resources", HandlerType: (*resources)(nil), Methods: []grpc.MethodDesc{
		Unary("test.Resources", "GetResource", resources.GetResource),
	}}
	done := make(chan error, 1)
	go func() {
		done <- serveGRPC(ctx, l, slog.New(slog.DiscardHandler), AgentLimits, drain, func(s grpc.ServiceRegistrar) { s.RegisterService(&desc, h) })
	}()
	conn, err := grpc.NewClient("passthrough:"+l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	stopped := false
	stop := func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		return <-done
	}
	t.Cleanup(func() {
		if err := errors.Join(conn.Close(), stop()); err != nil {
			t.Error(err)
		}
	})
	return conn, stop
}

func getGRPC(ctx context.Context, conn *grpc.ClientConn, path string) (string, error) {
	out := &datahub.GetResourceResponse{}
	err := conn.Invoke(ctx, getResourceMethod, &datahub.GetResourceRequest{ResourcePath: path}, out)
	return string(out.GetResource()), err
}

func TestGRPCCallsAreGuardedLikeThoseOfTtrpc(t *testing.T) {
	conn, _ := startGRPC(t, &hub{}, drainTime)
	_, err := getGRPC(t.Context(), conn, "fail")
	if st := status.Convert(err); st.Code() != codes.Internal || strings.Contains(st.Message(), "secret") ||
		!strings.HasPrefix(st.Message(), "[CDH] [ERROR]: Get Resource failed: no such resource (request ") {
		t.Errorf("got %v", err)
	}
	if _, err := getGRPC(t.Context(), conn, "panic"); status.Code(err) != codes.Internal || strings.Contains(err.Error(), "boom") {
		t.Errorf("a panic: %v", err)
	}
	if _, err := getGRPC(t.Context(), conn, strings.Repeat("x", AgentLimits.Request)); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("an oversized request: %v", err)
	}
	if err := conn.Invoke(t.Context(), "/test.Resources/Nope", &datahub.GetResourceRequest{}, &datahub.GetResourceResponse{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("an unknown method: %v", err)
	}
	if got, err := getGRPC(t.Context(), conn, "x"); err != nil || got != "x" {
		t.Errorf("after all that: %q, %v", got, err)
	}
}

func TestGRPCHandlersHaveADeadline(t *testing.T) {
	conn, _ := startGRPC(t, deadlines{}, drainTime)
	if got, err := getGRPC(t.Context(), conn, ""); err != nil || got != "at most 2m0s" {
		t.Errorf("%q, %v", got, err)
	}
}

// deadlines tells how long it may take.
type deadlines struct{}

func (deadlines) GetResource(ctx context.Context, _ *datahub.GetResourceRequest) (*datahub.GetResourceResponse, error) {
	end, ok := ctx.Deadline()
	if left := time.Until(end); !ok || left > AgentLimits.Call {
		return nil, errors.New("no deadline, or a long one")
	}
	return &datahub.GetResourceResponse{Resource: []byte("at most " + AgentLimits.Call.String())}, nil
}

func TestServeGRPCLetsCallsFinish(t *testing.T) {
	h := &hub{entered: make(chan struct{}), release: make(chan struct{})}
	conn, stop := startGRPC(t, h, drainTime)
	answer := make(chan error, 1)
	go func() {
		_, err := getGRPC(t.Context(), conn, "block")
		answer <- err
	}()
	<-h.entered
	ended := make(chan error, 1)
	go func() { ended <- stop() }()
	close(h.release)
	if err := <-answer; err != nil {
		t.Errorf("the running call: %v", err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestServeGRPCCutsOffCallsThatTakeTooLong(t *testing.T) {
	h := &slowHub{entered: make(chan struct{})}
	conn, stop := startGRPC(t, h, time.Millisecond)
	called := make(chan error, 1)
	go func() {
		_, err := getGRPC(t.Context(), conn, "x")
		called <- err
	}()
	<-h.entered
	if err := stop(); err != nil {
		t.Error(err)
	}
	if !h.undone.Load() {
		t.Error("ServeGRPC returned while a call it cut off was still running")
	}
	if err := <-called; err == nil {
		t.Error("the call that was cut off succeeded")
	}
}

// Bytes that are not HTTP/2 end their connection only, and a caller that holds
// one open does not keep the server from ending.
func TestGRPCSurvivesStrangers(t *testing.T) {
	conn, stop := startGRPC(t, &hub{}, drainTime)
	addr := strings.TrimPrefix(conn.Target(), "passthrough:")
	junk, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer junk.Close()
	_ = junk.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := junk.Write([]byte("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(junk); errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a stranger is not sent away: %v", err)
	}
	silent, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	if got, err := getGRPC(t.Context(), conn, "x"); err != nil || got != "x" {
		t.Errorf("beside strangers: %q, %v", got, err)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

func TestLoopbackAddr(t *testing.T) {
	for addr, ok := range map[string]bool{
		"127.0.0.1:50002": true, "127.1.2.3:0": true, "[::1]:50002": true, "[::ffff:127.0.0.1]:1": true,
		"": false, "127.0.0.1": false, "localhost:50002": false, "0.0.0.0:50002": false, "[::]:50002": false,
		":50002": false, "10.0.0.1:50002": false, "127.0.0.1:65536": false, "tcp://127.0.0.1:1": false,
		"unix:///run/aa.sock": false, "169.254.169.254:80": false,
	} {
		if got, err := LoopbackAddr(addr); (err == nil) != ok || ok && !got.Addr().Unmap().IsLoopback() {
			t.Errorf("%q: %v, %v", addr, got, err)
		}
	}
}
