package server

import (
	"context"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	aa "github.com/sealpod/sealpod/api/attestationagent"
	"github.com/sealpod/sealpod/kbs"
	"github.com/sealpod/sealpod/podvm/rpc"
)

// texts begin the message of a failed call. Callers match on them, and
// upstream's two servers have different ones.
type texts struct{ token, evidence, additional, extend, bind string }

// ttrpcTexts are those of ttrpc-aa. It refuses every BindInitData.
// Source: guest-components attestation-agent/src/bin/ttrpc_dep/server.rs at 8246e5e0.
var ttrpcTexts = texts{
	token:      "[ERROR:attestation-agent] AA-KBC get token failed",
	evidence:   "[ERROR:attestation-agent] AA-KBC get evidence failed",
	additional: "[ERROR:attestation-agent] AA-KBC get evidence failed",
	extend:     "[ERROR:attestation-agent] AA extend runtime measurement failed",
}

const bindMissing = "/attestation_agent.AttestationAgentService/BindInitData is not supported"

// grpcTexts are those of grpc-aa.
// Source: guest-components attestation-agent/src/bin/grpc-aa/server.rs at 8246e5e0.
var grpcTexts = texts{
	token:      "[ERROR:attestation-agent] AA get token failed",
	evidence:   "[ERROR:attestation-agent] AA get evidence failed",
	additional: "[ERROR:attestation-agent] AA get additional evidence failed",
	extend:     "[ERROR:attestation-agent] AA extend runtime measurement failed",
	bind:       "[ERROR:attestation-agent] AA binding init data failed",
}

// Register adds the service to srv as upstream's ttrpc-aa has it.
func (a *Agent) Register(srv *ttrpc.Server) {
	aa.RegisterAttestationAgentServiceService(srv, service{a, ttrpcTexts})
}

// RegisterGRPC adds the service to srv as upstream's grpc-aa has it.
func (a *Agent) RegisterGRPC(srv grpc.ServiceRegistrar) {
	srv.RegisterService(&grpcService, service{a, grpcTexts})
}

// service implements AttestationAgentService in the words of one server.
type service struct {
	a   *Agent
	say texts
}

// GetEvidence returns the primary TEE's evidence over the runtime data, which
// goes to the TEE unhashed.
func (s service) GetEvidence(ctx context.Context, req *aa.GetEvidenceRequest) (*aa.GetEvidenceResponse, error) {
	if err := checkRuntimeData(req.GetRuntimeData()); err != nil {
		return nil, rpc.Fail(ctx, codes.Internal, s.say.evidence, err)
	}
	out, err := s.a.asked.Evidence(ctx, req.GetRuntimeData())
	s.a.count.requests.Inc("GetEvidence", result(err))
	if err != nil {
		return nil, rpc.Fail(ctx, codes.Internal, s.say.evidence, err)
	}
	return &aa.GetEvidenceResponse{Evidence: out}, nil
}

// GetAdditionalEvidence returns the evidence of all devices, nothing without
// devices.
func (s service) GetAdditionalEvidence(ctx context.Context, req *aa.GetAdditionalEvidenceRequest) (*aa.GetEvidenceResponse, error) {
	if err := checkRuntimeData(req.GetRuntimeData()); err != nil {
		return nil, rpc.Fail(ctx, codes.Internal, s.say.additional, err)
	}
	out, err := s.a.tees.AdditionalEvidence(ctx, req.GetRuntimeData())
	s.a.count.requests.Inc("GetAdditionalEvidence", result(err))
	if err != nil {
		return nil, rpc.Fail(ctx, codes.Internal, s.say.additional, err)
	}
	return &aa.GetEvidenceResponse{Evidence: []byte(out)}, nil
}

// GetToken returns a token of the wanted type, "kbs" or "coco_as".
func (s service) GetToken(ctx context.Context, req *aa.GetTokenRequest) (*aa.GetTokenResponse, error) {
	out, err := s.a.token(ctx, req.GetTokenType())
	s.a.count.requests.Inc("GetToken", result(err))
	if err != nil {
		return nil, rpc.Fail(ctx, codes.Internal, s.say.token, rpc.Because(err, kbs.Why(err)))
	}
	return &aa.GetTokenResponse{Token: out}, nil
}

// ExtendRuntimeMeasurement records an event. It answers NOT_ENABLED when the
// event log is off and NOT_SUPPORTED when the TEE cannot extend.
func (s service) ExtendRuntimeMeasurement(ctx context.Context, req *aa.ExtendRuntimeMeasurementRequest) (*aa.ExtendRuntimeMeasurementResponse, error) {
	answer, err := s.a.extend(ctx, req)
	s.a.count.requests.Inc("ExtendRuntimeMeasurement", result(err))
	if err != nil {
		return nil, rpc.Fail(ctx, codes.Internal, s.say.extend, err)
	}
	return &aa.ExtendRuntimeMeasurementResponse{Result: answer}, nil
}

// BindInitData exists in upstream's gRPC service only.
func (s service) BindInitData(ctx context.Context, req *aa.BindInitDataRequest) (*aa.BindInitDataResponse, error) {
	if s.say.bind == "" {
		return nil, status.Error(codes.NotFound, bindMissing)
	}
	if err := s.a.bindInitData(ctx, req.GetDigest()); err != nil {
		return nil, rpc.Fail(ctx, codes.Internal, s.say.bind, err)
	}
	return &aa.BindInitDataResponse{}, nil
}

// GetTeeType returns the wire name of the primary TEE.
func (s service) GetTeeType(context.Context, *aa.GetTeeTypeRequest) (*aa.GetTeeTypeResponse, error) {
	return &aa.GetTeeTypeResponse{Tee: s.a.tees.TEE()}, nil
}

// GetAdditionalTees returns the wire names of the devices.
func (s service) GetAdditionalTees(context.Context, *aa.GetAdditionalTeesRequest) (*aa.GetAdditionalTeesResponse, error) {
	return &aa.GetAdditionalTeesResponse{AdditionalTees: s.a.tees.DeviceTEEs()}, nil
}
