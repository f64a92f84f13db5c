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

// Limits of a gRPC server, beside those of its calls. A process that calls as
// fast as it can, with the longest requests, drives an agent to 140 MB. It can
// also take all connections for itself: a port knows no callers.
const (
	maxConns    = 16
	maxStreams  = 4                // calls of one connection at once; a client queues more
	maxRequest  = 192 << 10        // bytes: the longest runtime data or event, and room
	maxResponse = 4 << 20          // bytes, what clients take by default, and as with ttrpc
	maxHeader   = 16 << 10         // bytes of one call's headers
	maxCallTime = 2 * time.Minute  // for callers that set no deadline
	maxConnIdle = 5 * time.Minute  // without calls
	maxConnAge  = 10 * time.Minute // then the client is told to connect again
	handshake   = 2 * time.Second  // until a connection has begun to speak HTTP/2
	pingEvery   = 30 * time.Second // of silence
	pingTime    = 10 * time.Second // for the answer
	minPings    = 10 * time.Second // between those of a client
)

// LoopbackAddr returns the address in "HOST:PORT", where HOST is the number of
// a loopback address, as in 127.0.0.1 or [::1]. No name is looked up.
func LoopbackAddr(addr string) (netip.AddrPort, error) {
	a, err := netip.ParseAddrPort(addr)
	if err != nil || !a.Addr().Unmap().IsLoopback() {
		return netip.AddrPort{}, fmt.Errorf("address %q: want HOST:PORT with a loopback address, as in 127.0.0.1:50002", podvm.Printable(addr, 200))
	}
	return a, nil
}

// ListenLoopback returns a listener on an address from LoopbackAddr.
func ListenLoopback(ctx context.Context, addr netip.AddrPort) (net.Listener, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", addr.String())
	if err != nil {
		return nil, fmt.Errorf("listening on %s: %w", addr, err)
	}
	return l, nil
}

// ServeGRPC is Serve for gRPC without TLS: the same bound on calls, the same
// context in handlers, the same end. A handler gets 2 minutes at most.
func ServeGRPC(ctx context.Context, l net.Listener, log *slog.Logger, register func(grpc.ServiceRegistrar)) error {
	return serveGRPC(ctx, l, log, drainTime, register) // tests wait less
}

func serveGRPC(ctx context.Context, l net.Listener, log *slog.Logger, drain time.Duration, register func(grpc.ServiceRegistrar)) error {
	g := newGate(log)
	srv := grpc.NewServer(
		grpc.UnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
			ctx, cancel := context.WithTimeout(ctx, maxCallTime)
			defer cancel()
			return g.run(ctx, info.FullMethod, func(ctx context.Context) (any, error) { return handle(ctx, req) })
		}),
		grpc.MaxRecvMsgSize(maxRequest),
		// Else they grow to 16 MiB of what nobody has read yet.
		grpc.InitialWindowSize(maxRequest), grpc.InitialConnWindowSize(maxRequest),
		grpc.MaxSendMsgSize(maxResponse),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.MaxHeaderListSize(maxHeader),
		grpc.ConnectionTimeout(handshake),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: minPings, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			MaxConnectionIdle: maxConnIdle, MaxConnectionAge: maxConnAge, MaxConnectionAgeGrace: maxCallTime,
			Time: pingEvery, Timeout: pingTime,
		}),
	)
	register(srv)
	done := make(chan error, 1)
	go func() { done <- srv.Serve(netutil.LimitListener(l, maxConns)) }()
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
