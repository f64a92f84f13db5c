package server

import (
	"context"

	"google.golang.org/grpc"

	aa "github.com/sealpod/sealpod/api/attestationagent"
)

const grpcServiceName = "attestation_agent.AttestationAgentService"

// grpcService describes the service to gRPC: seven unary methods over the
// messages that ttrpc has too.
var grpcService = grpc.ServiceDesc{
	ServiceName: grpcServiceName,
	HandlerType: (*aa.AttestationAgentServiceService)(nil),
	Methods: []grpc.MethodDesc{
		unary("GetEvidence", aa.AttestationAgentServiceService.GetEvidence),
		unary("GetAdditionalEvidence", aa.AttestationAgentServiceService.GetAdditionalEvidence),
		unary("GetToken", aa.AttestationAgentServiceService.GetToken),
		unary("ExtendRuntimeMeasurement", aa.AttestationAgentServiceService.ExtendRuntimeMeasurement),
		unary("BindInitData", aa.AttestationAgentServiceService.BindInitData),
		unary("GetTeeType", aa.AttestationAgentServiceService.GetTeeType),
		unary("GetAdditionalTees", aa.AttestationAgentServiceService.GetAdditionalTees),
	},
}

// unary describes one method, which call carries out.
func unary[In, Out any](name string, call func(aa.AttestationAgentServiceService, context.Context, *In) (*Out, error)) grpc.MethodDesc {
	return grpc.MethodDesc{
		MethodName: name,
		Handler: func(srv any, ctx context.Context, decode func(any) error, between grpc.UnaryServerInterceptor) (any, error) {
			in := new(In)
			if err := decode(in); err != nil {
				return nil, err
			}
			handle := func(ctx context.Context, req any) (any, error) {
				return call(srv.(aa.AttestationAgentServiceService), ctx, req.(*In))
			}
			if between == nil {
				return handle(ctx, in)
			}
			info := &grpc.UnaryServerInfo{Server: srv, FullMethod: "/" + grpcServiceName + "/" + name}
			return between(ctx, in, info, handle)
		},
	}
}
