package server

import (
	"google.golang.org/grpc"

	aa "github.com/sealpod/sealpod/api/attestationagent"
	"github.com/sealpod/sealpod/podvm/rpc"
)

const grpcServiceName = "attestation_agent.AttestationAgentService"

// grpcService describes the service to gRPC: seven unary methods over the
// messages that ttrpc has too.
var grpcService = grpc.ServiceDesc{
	ServiceName: grpcServiceName,
	HandlerType: (*aa.AttestationAgentServiceService)(nil),
	Methods: []grpc.MethodDesc{
		rpc.Unary(grpcServiceName, "GetEvidence", aa.AttestationAgentServiceService.GetEvidence),
		rpc.Unary(grpcServiceName, "GetAdditionalEvidence", aa.AttestationAgentServiceService.GetAdditionalEvidence),
		rpc.Unary(grpcServiceName, "GetToken", aa.AttestationAgentServiceService.GetToken),
		rpc.Unary(grpcServiceName, "ExtendRuntimeMeasurement", aa.AttestationAgentServiceService.ExtendRuntimeMeasurement),
		rpc.Unary(grpcServiceName, "BindInitData", aa.AttestationAgentServiceService.BindInitData),
		rpc.Unary(grpcServiceName, "GetTeeType", aa.AttestationAgentServiceService.GetTeeType),
		rpc.Unary(grpcServiceName, "GetAdditionalTees", aa.AttestationAgentServiceService.GetAdditionalTees),
	},
}
