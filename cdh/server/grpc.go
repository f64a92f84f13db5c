package server

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sealpod/sealpod/api/datahub"
	"github.com/sealpod/sealpod/api/keyprovider"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/rpc"
)

// GRPCAddr is where upstream's gRPC tools look for a data hub.
// Source: guest-components confidential-data-hub/hub/src/bin/grpc-cdh-tool.rs at
// 8246e5e.
const GRPCAddr = "127.0.0.1:50000"

// GRPC is the [grpc] table: the services beside those on the socket, for callers
// who speak nothing else. A port has no permissions and there is no TLS: who
// reaches it gets every resource this guest may have.
type GRPC struct {
	Listen string `config:"listen"` // HOST:PORT of a loopback address; "" is nowhere
	// AnyAddress allows Listen to be an address that other machines reach.
	AnyAddress bool `config:"any_address"`
}

// String is the table in one line.
func (g GRPC) String() string {
	if g.Listen == "" {
		return "off"
	}
	return g.Listen
}

func (g GRPC) check() error {
	if g.Listen == "" {
		return nil
	}
	_, err := g.addr()
	return err
}

func (g GRPC) addr() (netip.AddrPort, error) {
	if !g.AnyAddress {
		return rpc.LoopbackAddr(g.Listen)
	}
	a, err := netip.ParseAddrPort(g.Listen)
	if err != nil {
		return a, fmt.Errorf("address %q: want HOST:PORT, with HOST a number, as in %s", podvm.Printable(g.Listen, 200), GRPCAddr)
	}
	return a, nil
}

// grpcPort is a listener for gRPC; nil where there is to be none.
type grpcPort struct{ net.Listener }

func listenGRPC(ctx context.Context, g GRPC, log *slog.Logger) (*grpcPort, error) {
	if g.Listen == "" {
		return nil, nil
	}
	addr, err := g.addr()
	if err != nil {
		return nil, err
	}
	l, err := rpc.ListenTCP(ctx, addr)
	if err != nil {
		return nil, err
	}
	if addr.Addr().Unmap().IsLoopback() {
		log.Warn("Every process of this network namespace may ask for resources and keys", "address", l.Addr().String())
	} else {
		log.Warn("Every machine that reaches this port may ask for resources and keys, which the network sees", "address", l.Addr().String())
	}
	return &grpcPort{l}, nil
}

// Close closes the listener. Serving does so too.
func (p *grpcPort) Close() error {
	if p == nil {
		return nil
	}
	return p.Listener.Close()
}

func (p *grpcPort) serve(ctx context.Context, h *Hub, log *slog.Logger) error {
	if p == nil {
		return nil
	}
	return rpc.ServeGRPC(ctx, p.Listener, log, rpc.HubLimits, h.RegisterGRPC)
}

// Names on the wire.
const (
	getResourceService  = "api.GetResourceService"
	imagePullService    = "api.ImagePullService"
	sealedSecretService = "api.SealedSecretService"
	secureMountService  = "api.SecureMountService"
	keyProviderService  = "keyprovider.KeyProviderService"
)

// RegisterGRPC adds the hub's services to srv as upstream's grpc-cdh has them.
func (h *Hub) RegisterGRPC(srv grpc.ServiceRegistrar) {
	add[datahub.GetResourceServiceService](srv, getResourceService, resourceService{h},
		rpc.Unary(getResourceService, "GetResource", datahub.GetResourceServiceService.GetResource))
	add[datahub.ImagePullServiceService](srv, imagePullService, pullService{h},
		rpc.Unary(imagePullService, "PullImage", datahub.ImagePullServiceService.PullImage))
	add[datahub.SealedSecretServiceService](srv, sealedSecretService, secretService{h},
		rpc.Unary(sealedSecretService, "UnsealSecret", datahub.SealedSecretServiceService.UnsealSecret))
	add[datahub.SecureMountServiceService](srv, secureMountService, mountService{h},
		rpc.Unary(secureMountService, "SecureMount", datahub.SecureMountServiceService.SecureMount))
	add[keyprovider.KeyProviderServiceService](srv, keyProviderService, grpcKeyService{keyService{h, textGRPCUnwrapParse}},
		rpc.Unary(keyProviderService, "UnWrapKey", keyprovider.KeyProviderServiceService.UnWrapKey),
		rpc.Unary(keyProviderService, "WrapKey", keyprovider.KeyProviderServiceService.WrapKey))
}

func add[Srv any](srv grpc.ServiceRegistrar, name string, impl Srv, methods ...grpc.MethodDesc) {
	srv.RegisterService(&grpc.ServiceDesc{ServiceName: name, HandlerType: (*Srv)(nil), Methods: methods}, impl)
}

// What upstream's gRPC server says in other words than its ttrpc server.
// Source: guest-components confidential-data-hub/hub/src/bin/grpc_server/mod.rs
// at 8246e5e.
const textGRPCUnwrapParse = "[ERROR] CDH Unwrap Key failed"

type grpcKeyService struct{ keyService }

// WrapKey implements keyprovider.KeyProviderService: a guest wraps no keys.
func (grpcKeyService) WrapKey(context.Context, *keyprovider.KeyProviderKeyWrapProtocolInput) (*keyprovider.KeyProviderKeyWrapProtocolOutput, error) {
	return nil, status.Error(codes.Unimplemented, "WrapKey not implemented.")
}
