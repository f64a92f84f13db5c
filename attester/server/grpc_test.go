package server

import (
	"bytes"
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	aa "github.com/sealpod/sealpod/api/attestationagent"
	"github.com/sealpod/sealpod/attester"
	"github.com/sealpod/sealpod/attester/sample"
	"github.com/sealpod/sealpod/kbs"
	"github.com/sealpod/sealpod/podvm/rpc"
)

// startGRPC serves an agent on a port and returns a client of it.
func startGRPC(t *testing.T, d Deps) *grpc.ClientConn {
	t.Helper()
	d.Log = quiet
	if d.TEEs == nil {
		d.TEEs = &attester.Set{Primary: sample.New()}
	}
	agent := New(d)
	ctx, stop := context.WithCancel(context.Background())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- rpc.ServeGRPC(ctx, l, d.Log, rpc.AgentLimits, agent.RegisterGRPC) }()
	conn, err := grpc.NewClient("passthrough:"+l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		err := conn.Close()
		stop()
		agent.Close()
		if err = errors.Join(err, <-done); err != nil {
			t.Error(err)
		}
	})
	return conn
}

// ask calls a method by its name on the wire.
func ask[Out any, P interface {
	*Out
	proto.Message
}](t *testing.T, conn *grpc.ClientConn, method string, in proto.Message) (P, error) {
	t.Helper()
	out := P(new(Out))
	err := conn.Invoke(t.Context(), "/attestation_agent.AttestationAgentService/"+method, in, out)
	return out, err
}

func TestGRPCAnswers(t *testing.T) {
	k := newFakeKBS(t)
	conn := startGRPC(t, Deps{Config: withKBS(k.URL), TEEs: &attester.Set{Primary: sample.New(), Devices: []attester.Attester{sample.NewDevice()}}})
	ev, err := ask[aa.GetEvidenceResponse](t, conn, "GetEvidence", &aa.GetEvidenceRequest{RuntimeData: []byte("nonce")})
	if err != nil || string(ev.GetEvidence()) != `{"svn":"1","report_data":"bm9uY2U="}` {
		t.Errorf("evidence %s, %v", ev.GetEvidence(), err)
	}
	ev, err = ask[aa.GetEvidenceResponse](t, conn, "GetAdditionalEvidence", &aa.GetAdditionalEvidenceRequest{RuntimeData: []byte("nonce")})
	if err != nil || string(ev.GetEvidence()) != `{"sampledevice":{"svn":"2","report_data":"bm9uY2U="}}` {
		t.Errorf("device evidence %s, %v", ev.GetEvidence(), err)
	}
	tok, err := ask[aa.GetTokenResponse](t, conn, "GetToken", &aa.GetTokenRequest{TokenType: "kbs"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kbs.ParseToken(tok.GetToken()); err != nil {
		t.Error(err)
	}
	result, err := ask[aa.ExtendRuntimeMeasurementResponse](t, conn, "ExtendRuntimeMeasurement", &aa.ExtendRuntimeMeasurementRequest{Domain: "d", Operation: "o"})
	if err != nil || result.GetResult() != aa.RuntimeMeasurementResult_NOT_ENABLED {
		t.Errorf("%v, %v", result.GetResult(), err)
	}
	tee, err := ask[aa.GetTeeTypeResponse](t, conn, "GetTeeType", &aa.GetTeeTypeRequest{})
	if err != nil || tee.GetTee() != "sample" {
		t.Errorf("type %q, %v", tee.GetTee(), err)
	}
	tees, err := ask[aa.GetAdditionalTeesResponse](t, conn, "GetAdditionalTees", &aa.GetAdditionalTeesRequest{})
	if err != nil || !slices.Equal(tees.GetAdditionalTees(), []string{"sampledevice"}) {
		t.Errorf("devices %v, %v", tees.GetAdditionalTees(), err)
	}
}

// Upstream's gRPC server has words of its own for failures.
func TestGRPCErrors(t *testing.T) {
	on := defaults(func(c *Config) { c.EventLog.Enable = true })
	fail := Deps{Config: on, TEEs: &attester.Set{Primary: broken{}, Devices: []attester.Attester{broken{}}}, EventLog: &events{err: errors.New("on fire")}}
	long := make([]byte, maxRuntimeData+1)
	for name, tt := range map[string]struct {
		deps   Deps
		method string
		in     proto.Message
		says   string
	}{
		"evidence":            {fail, "GetEvidence", &aa.GetEvidenceRequest{}, "AA get evidence failed (request "},
		"additional evidence": {fail, "GetAdditionalEvidence", &aa.GetAdditionalEvidenceRequest{}, "AA get additional evidence failed (request "},
		"token":               {fail, "GetToken", &aa.GetTokenRequest{TokenType: "kbs"}, "AA get token failed: the attestation agent's configuration has no [token_configs.kbs]"},
		"event":               {fail, "ExtendRuntimeMeasurement", &aa.ExtendRuntimeMeasurementRequest{}, "AA extend runtime measurement failed (request "},
		"long runtime data":   {Deps{}, "GetEvidence", &aa.GetEvidenceRequest{RuntimeData: long}, "AA get evidence failed: runtime data of more than 65536 bytes"},
		"init data": {Deps{TEEs: &attester.Set{Primary: measured{"x"}}}, "BindInitData", &aa.BindInitDataRequest{Digest: []byte("y")},
			"AA binding init data failed (request "},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ask[aa.GetEvidenceResponse](t, startGRPC(t, tt.deps), tt.method, tt.in)
			if s := status.Convert(err); s.Code() != codes.Internal || !strings.HasPrefix(s.Message(), "[ERROR:attestation-agent] "+tt.says) || strings.Contains(s.Message(), "fire") {
				t.Errorf("got %v", err)
			}
		})
	}
}

// BindInitData binds once more, and where nothing can be bound it says nothing,
// as upstream's. On TDX it never extends RTMR3: that is for the start alone.
func TestGRPCBindInitData(t *testing.T) {
	digest := bytes.Repeat([]byte{0xAB}, 48)
	bare, launched := newTDXGuest(t, nil, true), newTDXGuest(t, digest, true)
	for name, tt := range map[string]struct {
		deps Deps
		says string
	}{
		"sample":                        {Deps{}, ""},
		"as launched":                   {Deps{TEEs: launched.set()}, ""},
		"not as launched":               {Deps{TEEs: newTDXGuest(t, digest[:32], true).set()}, "not the one this guest was launched with"},
		"launched without":              {Deps{TEEs: bare.set()}, "MRCONFIGID is zero"},
		"launched without, RTMR3 on":    {Deps{TEEs: bare.set(), Config: withRTMR3(true)}, "MRCONFIGID is zero"},
		"bound to RTMR3 at start":       {Deps{TEEs: bare.set(), InitData: InitData{Recorded: digest}}, ""},
		"other bound to RTMR3 at start": {Deps{TEEs: bare.set(), InitData: InitData{Recorded: digest[:32]}}, "MRCONFIGID is zero"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ask[aa.BindInitDataResponse](t, startGRPC(t, tt.deps), "BindInitData", &aa.BindInitDataRequest{Digest: digest})
			if tt.says == "" && err != nil || tt.says != "" && (status.Code(err) != codes.Internal || !strings.Contains(err.Error(), tt.says)) {
				t.Errorf("got %v", err)
			}
			if !bytes.Equal(bare.rtmr3(t), make([]byte, 48)) {
				t.Error("RTMR3 is extended")
			}
		})
	}
}

// A token from before something was bound says nothing of it.
func TestBindingDropsTheToken(t *testing.T) {
	k := newFakeKBS(t)
	conn := startGRPC(t, Deps{Config: withKBS(k.URL), TEEs: &attester.Set{Primary: measured{"x"}}})
	for range 2 {
		if _, err := ask[aa.GetTokenResponse](t, conn, "GetToken", &aa.GetTokenRequest{TokenType: "kbs"}); err != nil {
			t.Fatal(err)
		}
		if _, err := ask[aa.BindInitDataResponse](t, conn, "BindInitData", &aa.BindInitDataRequest{Digest: []byte("x")}); err != nil {
			t.Fatal(err)
		}
	}
	if k.attested != 2 {
		t.Errorf("%d attestations", k.attested)
	}
}

// Nothing changes when init data is bound again, so callers cannot make others
// attest for nothing by it.
func TestBindingAgainKeepsTheToken(t *testing.T) {
	k := newFakeKBS(t)
	conn := startGRPC(t, Deps{Config: withKBS(k.URL), TEEs: &attester.Set{Primary: measured{"x"}}})
	for range 4 {
		if _, err := ask[aa.BindInitDataResponse](t, conn, "BindInitData", &aa.BindInitDataRequest{Digest: []byte("x")}); err != nil {
			t.Fatal(err)
		}
		if _, err := ask[aa.GetTokenResponse](t, conn, "GetToken", &aa.GetTokenRequest{TokenType: "kbs"}); err != nil {
			t.Fatal(err)
		}
	}
	if k.attested != 1 {
		t.Errorf("%d attestations", k.attested)
	}
}

// Both servers offer what the .proto has, and nothing else.
func TestGRPCHasEveryMethod(t *testing.T) {
	conn := startGRPC(t, Deps{})
	for _, other := range []string{
		"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
		"/grpc.health.v1.Health/Check", "/grpc.channelz.v1.Channelz/GetServers", "/attestation_agent.AttestationAgentService/Other",
	} {
		if err := conn.Invoke(t.Context(), other, &aa.GetTeeTypeRequest{}, &aa.GetTeeTypeResponse{}); status.Code(err) != codes.Unimplemented {
			t.Errorf("%s: %v", other, err)
		}
	}
	want := aa.File_attestationagent_attestation_agent_proto.Services().ByName("AttestationAgentService")
	if string(want.FullName()) != grpcServiceName || want.Methods().Len() != len(grpcService.Methods) {
		t.Errorf("%s has %d methods", want.FullName(), want.Methods().Len())
	}
	for _, m := range grpcService.Methods {
		if want.Methods().ByName(protoreflect.Name(m.MethodName)) == nil {
			t.Errorf("no method %s", m.MethodName)
		}
	}
}
