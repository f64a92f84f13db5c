package rpc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"golang.org/x/net/netutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"github.com/sealpod/sealpod/podvm"
)

// Limits of a gRPC server, beside GRPCLimits and those of its calls.
const (
	maxStreams  = 4                // calls of one connection at once; a client queues more
	window      = 192 << 10        // bytes of one call or connection that nobody has read yet
	maxResponse = 4 << 20          // bytes, what clients take by default, and as with ttrpc
	maxHeader   = 16 << 10         // bytes of one call's headers
	maxConnIdle = 5 * time.Minute  // without calls
	maxConnAge  = 10 * time.Minute // then the client is told to connect again
	handshake   = 2 * time.Second  // until a connection has begun to speak HTTP/2
	pingEvery   = 30 * time.Second // of silence
	pingTime    = 10 * time.Second // for the answer
	minPings    = 10 * time.Second // between those of a client
)

// GRPCLimits bound what the callers of one gRPC server take: with maxStreams calls
// on each connection, each of the longest request, as fast as they can. They can
// also take all connections for themselves: a port knows no callers.
type GRPCLimits struct {
	Conns   int
	Request int           // bytes of a request
	Call    time.Duration // of a call, for callers that set no deadline
}

// AgentLimits are for the longest runtime data or event, and room. Callers drive
// an agent to 140 MB.
var AgentLimits = GRPCLimits{Conns: 16, Request: 192 << 10, Call: 2 * time.Minute}

// HubLimits are for requests as long as those of ttrpc, and for image pulls: as
// long as kata-agent waits for one. Callers drive a data hub to 460 MB.
var HubLimits = GRPCLimits{Conns: 8, Request: 4 << 20, Call: 20 * time.Minute}

// LoopbackAddr returns the address in "HOST:PORT", where HOST is the number of
// a loopback address, as in 127.0.0.1 or [::1]. No name is looked up.
func LoopbackAddr(addr string) (netip.AddrPort, error) {
	a, err := netip.ParseAddrPort(addr)
	if err != nil || !a.Addr().Unmap().IsLoopback() {
		return netip.AddrPort{}, fmt.Errorf("address %q: want HOST:PORT with a loopback address, as in 127.0.0.1:50002", podvm.Printable(addr, 200))
	}
	return a, nil
}

// ListenTCP returns a listener on addr, as from LoopbackAddr.
func ListenTCP(ctx context.Context, addr netip.AddrPort) (net.Listener, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", addr.String())
	if err != nil {
		return nil, fmt.Errorf("listening on %s: %w", addr, err)
	}
	return l, nil
}

// ServeGRPC is Serve for gRPC without TLS: the same bound on calls, the same
// context in handlers, the same end.
func ServeGRPC(ctx context.Context, l net.Listener, log *slog.Logger, limits GRPCLimits, register func(grpc.ServiceRegistrar)) error {
	return serveGRPC(ctx, l, log, limits, drainTime, register) // tests wait less
}

func serveGRPC(ctx context.Context, l net.Listener, log *slog.Logger, limits GRPCLimits, drain time.Duration, register func(grpc.ServiceRegistrar)) error {
	g := newGate(log)
	srv := grpc.NewServer(
		grpc.UnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
			ctx, cancel := context.WithTimeout(ctx, limits.Call)
			defer cancel()
			return g.run(ctx, info.FullMethod, func(ctx context.Context) (any, error) { return handle(ctx, req) })
		}),
		grpc.MaxRecvMsgSize(limits.Request),
		// Else they grow to 16 MiB of what nobody has read yet.
		grpc.InitialWindowSize(window), grpc.InitialConnWindowSize(window),
		grpc.MaxSendMsgSize(maxResponse),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.MaxHeaderListSize(maxHeader),
		grpc.ConnectionTimeout(handshake),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: minPings, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			MaxConnectionIdle: maxConnIdle, MaxConnectionAge: maxConnAge, MaxConnectionAgeGrace: limits.Call,
			Time: pingEvery, Timeout: pingTime,
		}),
	)
	register(srv)
	done := make(chan error, 1)
	go func() { done <- srv.Serve(netutil.LimitListener(l, limits.Conns)) }()
	select {
	case err := <-done:
		return fmt.Errorf("serving %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	err := l.Close()
	g.end(drain, srv.Stop)
	srv.Stop()
	if e := <-done; !errors.Is(e, net.ErrClosed) && !errors.Is(e, grpc.ErrServerStopped) {
		err = errors.Join(err, e)
	}
	return err
}

// Unary describes one method of a gRPC service, which call carries out. Our
// services are made of such methods only, over the messages ttrpc has too.
func Unary[Srv, In, Out any](service, name string, call func(Srv, context.Context, *In) (*Out, error)) grpc.MethodDesc {
	return grpc.MethodDesc{
		MethodName: name,
		Handler: func(srv any, ctx context.Context, decode func(any) error, between grpc.UnaryServerInterceptor) (any, error) {
			in := new(In)
			if err := decode(in); err != nil {
				return nil, err
			}
			handle := func(ctx context.Context, req any) (any, error) { return call(srv.(Srv), ctx, req.(*In)) }
			if between == nil {
				return handle(ctx, in)
			}
			return between(ctx, in, &grpc.UnaryServerInfo{Server: srv, FullMethod: "/" + service + "/" + name}, handle)
		},
	}
}
