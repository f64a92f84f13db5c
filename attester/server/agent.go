package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	aa "github.com/sealpod/sealpod/api/attestationagent"
	"github.com/sealpod/sealpod/attester"
	"github.com/sealpod/sealpod/attester/initdata"
	"github.com/sealpod/sealpod/kbs"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/rpc"
)

// maxRuntimeData caps what a caller may have put into evidence, in bytes: the
// evidence has to fit into a ttrpc frame of 4 MiB.
const maxRuntimeData = 1 << 20

// Texts that callers match on.
// Source: guest-components attestation-agent/src/bin/ttrpc_dep/server.rs at 8246e5e0.
const (
	tokenFailed    = "[ERROR:attestation-agent] AA-KBC get token failed"
	evidenceFailed = "[ERROR:attestation-agent] AA-KBC get evidence failed"
	extendFailed   = "[ERROR:attestation-agent] AA extend runtime measurement failed"
	bindMissing    = "/attestation_agent.AttestationAgentService/BindInitData is not supported"
)

// EventLog records a runtime event and extends a measurement register with it.
type EventLog interface {
	// Extend records the event in register, or in the configured one when
	// register is nil. Errors: attester.ErrUnsupported when the TEE has no
	// registers to extend.
	Extend(ctx context.Context, domain, operation, content string, register *uint64) error
}

// Deps is what an Agent is made of.
type Deps struct {
	Config Config // valid, see LoadConfig
	TEEs   *attester.Set
	// EventLog is nil when the TEE cannot extend measurements.
	EventLog EventLog
	// InitData goes to the KBS with every attestation; nil if there is none.
	InitData *initdata.Document
	Log      *slog.Logger // nil means slog.Default()
}

// Agent implements AttestationAgentService. It is safe for concurrent use.
type Agent struct {
	tees     *attester.Set
	events   EventLog
	eventsOn bool
	tokens   *tokens       // nil without a usable KBS
	kbs      *kbs.Client   // nil without a usable KBS
	as       *kbs.ASClient // nil without a usable attestation service
	unusable map[string]error
}

// New returns an agent that serves at once; nothing is connected yet. A KBS or
// attestation service whose address or certificate is no good does not keep
// the agent from starting, since a pod may never ask for a token: it is logged,
// and GetToken says so. Close the agent when done.
func New(d Deps) *Agent {
	if d.Log == nil {
		d.Log = slog.Default()
	}
	a := &Agent{tees: d.TEEs, events: d.EventLog, eventsOn: d.Config.EventLog.Enable, unusable: map[string]error{}}
	if a.eventsOn && a.events == nil {
		d.Log.Warn("The event log is enabled but this TEE cannot extend measurements", "tee", d.TEEs.TEE())
	}
	if c := d.Config.Tokens.CoCoAS; c != nil {
		a.as, a.unusable["coco_as"] = c.client()
	}
	if c := d.Config.Tokens.KBS; c != nil {
		if a.kbs, a.unusable["kbs"] = c.client(d.Log); a.kbs != nil {
			var init *kbs.InitData
			if d.InitData != nil {
				init = &kbs.InitData{Format: "toml", Body: d.InitData.Text}
			}
			a.tokens = newTokens(func(ctx context.Context) (*kbs.Token, error) {
				return a.kbs.Attest(ctx, d.TEEs, init, c.TEEKeyAlgorithm)
			}, c.cache(), d.Log)
		}
	}
	for kind, err := range a.unusable {
		if err != nil {
			d.Log.Warn("No token of this type can be had", "type", kind, "err", err)
		}
	}
	return a
}

// Close ends what is running and closes connections.
func (a *Agent) Close() {
	if a.tokens != nil {
		a.tokens.close()
		a.kbs.Close()
	}
	if a.as != nil {
		a.as.Close()
	}
}

// Register adds the service to srv.
func (a *Agent) Register(srv *ttrpc.Server) { aa.RegisterAttestationAgentServiceService(srv, a) }

// GetEvidence returns the primary TEE's evidence over the runtime data, which
// goes to the TEE unhashed.
func (a *Agent) GetEvidence(ctx context.Context, req *aa.GetEvidenceRequest) (*aa.GetEvidenceResponse, error) {
	if err := checkRuntimeData(req.GetRuntimeData()); err != nil {
		return nil, rpc.Fail(ctx, codes.Internal, evidenceFailed, err)
	}
	out, err := a.tees.Evidence(ctx, req.GetRuntimeData())
	if err != nil {
		return nil, rpc.Fail(ctx, codes.Internal, evidenceFailed, err)
	}
	return &aa.GetEvidenceResponse{Evidence: out}, nil
}

// GetAdditionalEvidence returns the evidence of all devices, nothing without
// devices.
func (a *Agent) GetAdditionalEvidence(ctx context.Context, req *aa.GetAdditionalEvidenceRequest) (*aa.GetEvidenceResponse, error) {
	if err := checkRuntimeData(req.GetRuntimeData()); err != nil {
		return nil, rpc.Fail(ctx, codes.Internal, evidenceFailed, err)
	}
	out, err := a.tees.AdditionalEvidence(ctx, req.GetRuntimeData())
	if err != nil {
		return nil, rpc.Fail(ctx, codes.Internal, evidenceFailed, err)
	}
	return &aa.GetEvidenceResponse{Evidence: []byte(out)}, nil
}

func checkRuntimeData(b []byte) error {
	if len(b) <= maxRuntimeData {
		return nil
	}
	return podvm.Explain(fmt.Errorf("%w: runtime data of %d bytes", podvm.ErrTooLarge, len(b)),
		fmt.Sprintf("runtime data of more than %d bytes", maxRuntimeData))
}

// GetToken returns a token: type "kbs" as JSON with its TEE key, from the cache
// while that is allowed (see tokens), type "coco_as" as a bare JWT.
func (a *Agent) GetToken(ctx context.Context, req *aa.GetTokenRequest) (*aa.GetTokenResponse, error) {
	out, err := a.token(ctx, req.GetTokenType())
	if err != nil {
		return nil, rpc.Fail(ctx, codes.Internal, tokenFailed, err)
	}
	return &aa.GetTokenResponse{Token: out}, nil
}

// errToken says that no token of the wanted type can be had.
var errToken = errors.New("no such token")

func (a *Agent) token(ctx context.Context, kind string) ([]byte, error) {
	switch {
	case kind == "kbs" && a.tokens != nil:
		refused, _ := ttrpc.GetMetadataValue(ctx, rpc.RefusedToken)
		tok, err := a.tokens.get(ctx, refused)
		if err != nil {
			return nil, err
		}
		return tok.Marshal()
	case kind == "coco_as" && a.as != nil:
		return a.as.Token(ctx, a.tees)
	case a.unusable[kind] != nil:
		return nil, podvm.Explain(a.unusable[kind], fmt.Sprintf("the address or certificate in [token_configs.%s] is not usable", kind))
	case kind == "kbs" || kind == "coco_as":
		return nil, podvm.Explain(fmt.Errorf("%w: %s", errToken, kind),
			fmt.Sprintf("the attestation agent's configuration has no [token_configs.%s]", kind))
	}
	return nil, podvm.Explain(fmt.Errorf("%w: type %q", errToken, podvm.Printable(kind, 64)),
		"the token type must be kbs or coco_as")
}

// ExtendRuntimeMeasurement records an event. It answers NOT_ENABLED when the
// event log is off and NOT_SUPPORTED when the TEE cannot extend. A token from
// before the event is not given out after it.
func (a *Agent) ExtendRuntimeMeasurement(ctx context.Context, req *aa.ExtendRuntimeMeasurementRequest) (*aa.ExtendRuntimeMeasurementResponse, error) {
	result := aa.RuntimeMeasurementResult_OK
	if !a.eventsOn {
		result = aa.RuntimeMeasurementResult_NOT_ENABLED
		return &aa.ExtendRuntimeMeasurementResponse{Result: result}, nil
	}
	err := attester.ErrUnsupported
	if a.events != nil {
		err = a.events.Extend(ctx, req.GetDomain(), req.GetOperation(), req.GetContent(), req.RegisterIndex)
	}
	switch {
	case errors.Is(err, attester.ErrUnsupported):
		result = aa.RuntimeMeasurementResult_NOT_SUPPORTED
	case err != nil:
		return nil, rpc.Fail(ctx, codes.Internal, extendFailed, err)
	case a.tokens != nil:
		a.tokens.drop()
	}
	return &aa.ExtendRuntimeMeasurementResponse{Result: result}, nil
}

// BindInitData exists in upstream's gRPC service only.
func (a *Agent) BindInitData(context.Context, *aa.BindInitDataRequest) (*aa.BindInitDataResponse, error) {
	return nil, status.Error(codes.NotFound, bindMissing)
}

// GetTeeType returns the wire name of the primary TEE.
func (a *Agent) GetTeeType(context.Context, *aa.GetTeeTypeRequest) (*aa.GetTeeTypeResponse, error) {
	return &aa.GetTeeTypeResponse{Tee: a.tees.TEE()}, nil
}

// GetAdditionalTees returns the wire names of the devices.
func (a *Agent) GetAdditionalTees(context.Context, *aa.GetAdditionalTeesRequest) (*aa.GetAdditionalTeesResponse, error) {
	return &aa.GetAdditionalTeesResponse{AdditionalTees: a.tees.DeviceTEEs()}, nil
}
