// Package cdhtest has the two neighbours of the data hub for its tests, with
// real wires: an attestation agent behind a ttrpc socket and a Key Broker
// Service behind HTTP. They check who asks as the real ones do, count, and can
// be told to misbehave, stop and come back.
//
// It is for tests only and is linked into no program.
package cdhtest

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	aa "github.com/sealpod/sealpod/api/attestationagent"
	"github.com/sealpod/sealpod/kbs"
	"github.com/sealpod/sealpod/podvm/rpc"
)

// Quiet is a log nobody reads.
var Quiet = slog.New(slog.DiscardHandler)

// KBS is a Key Broker Service that takes the tokens it minted.
type KBS struct {
	*httptest.Server
	Requests atomic.Int64
	Conns    atomic.Int64 // TCP connections accepted

	mu        sync.Mutex
	minted    map[string]*kbs.TEEKey
	serial    int
	Resources map[string][]byte // "default/key/1" -> content
	Life      time.Duration     // of tokens
	// Override answers in place of the KBS when it returns true.
	Override func(w http.ResponseWriter, r *http.Request, key *kbs.TEEKey) bool
}

// NewKBS starts a KBS that the test's end stops.
func NewKBS(t testing.TB) *KBS {
	k := &KBS{minted: map[string]*kbs.TEEKey{}, Resources: map[string][]byte{}, Life: 5 * time.Minute}
	k.Server = httptest.NewUnstartedServer(k)
	k.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			k.Conns.Add(1)
		}
	}
	k.Start()
	t.Cleanup(k.Close)
	return k
}

// Mint returns a new token, in the form the attestation agent gives it out.
func (k *KBS) Mint() ([]byte, error) {
	key, err := kbs.GenerateTEEKey(kbs.ECDHP256)
	if err != nil {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.serial++
	enc := base64.RawURLEncoding.EncodeToString
	now := time.Now()
	jwt := enc([]byte(`{"alg":"ES256"}`)) + "." +
		enc(fmt.Appendf(nil, `{"iat":%d,"exp":%d,"jti":"%d"}`, now.Unix(), now.Add(k.Life).Unix(), k.serial)) + "." + enc([]byte("signature"))
	k.minted[jwt] = key
	tok, err := kbs.NewToken(jwt, key)
	if err != nil {
		return nil, err
	}
	return tok.Marshal()
}

// Forget makes every token so far invalid, as a restarted KBS does.
func (k *KBS) Forget() {
	k.mu.Lock()
	defer k.mu.Unlock()
	clear(k.minted)
}

// Set changes a resource; nil deletes it.
func (k *KBS) Set(path string, content []byte) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if content == nil {
		delete(k.Resources, path)
		return
	}
	k.Resources[path] = content
}

// Fail writes an error as a KBS does.
func Fail(w http.ResponseWriter, code int, variant, detail string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(kbs.ErrorInfo{Type: kbs.ErrorTypePrefix + variant, Detail: detail})
}

func (k *KBS) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	k.Requests.Add(1)
	jwt, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	k.mu.Lock()
	key := k.minted[jwt]
	path := strings.TrimPrefix(r.URL.Path, "/kbs/v0/resource/")
	content, found := k.Resources[path]
	override := k.Override
	k.mu.Unlock()
	if override != nil && override(w, r, key) {
		return
	}
	switch {
	case key == nil:
		Fail(w, http.StatusUnauthorized, "TokenVerifierError", "Attestation Token verify failed")
	case strings.HasPrefix(path, "denied/"):
		Fail(w, http.StatusUnauthorized, "PolicyDeny", "Access denied by policy")
	case !found:
		Fail(w, http.StatusUnauthorized, "PluginInternalError", "Plugin Internal Error")
	default:
		jwe, err := kbs.Encrypt(key.Public(), content)
		if err != nil {
			Fail(w, http.StatusUnauthorized, "JweError", err.Error())
			return
		}
		_, _ = w.Write(jwe)
	}
}

// AA is an attestation agent whose tokens come from a KBS.
type AA struct {
	Path    string // of the socket
	Tokens  atomic.Int64
	Refused atomic.Int64 // GetToken calls that named a refused token

	mu     sync.Mutex
	Events []*aa.ExtendRuntimeMeasurementRequest
	// GetTokenFunc and ExtendFunc replace the answers; nil: a token of the
	// KBS, OK.
	GetTokenFunc func(ctx context.Context) ([]byte, error)
	ExtendFunc   func() (aa.RuntimeMeasurementResult, error)
	kbs          *KBS
	stop         func()
}

// NewAA returns an agent that listens after Start.
func NewAA(t testing.TB, k *KBS) *AA {
	return &AA{Path: filepath.Join(t.TempDir(), "aa.sock"), kbs: k}
}

// Start listens until the test or Stop ends it.
func (a *AA) Start(t testing.TB) *AA {
	t.Helper()
	a.stop = Serve(t, a.Path, func(s *ttrpc.Server) { aa.RegisterAttestationAgentServiceService(s, a) })
	return a
}

// Stop stops listening and waits.
func (a *AA) Stop() { a.stop() }

// Serve serves ttrpc services at path and returns what stops them.
func Serve(t testing.TB, path string, register func(*ttrpc.Server)) (stop func()) {
	t.Helper()
	l, err := rpc.Listen(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := rpc.Serve(ctx, l, Quiet, register); err != nil {
			t.Error(err)
		}
	}()
	var once sync.Once
	stop = func() { once.Do(func() { cancel(); <-done }) }
	t.Cleanup(stop)
	return stop
}

// Lock runs f while no call looks at the fields of a.
func (a *AA) Lock(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f()
}

// GetToken implements the service.
func (a *AA) GetToken(ctx context.Context, req *aa.GetTokenRequest) (*aa.GetTokenResponse, error) {
	a.Tokens.Add(1)
	if _, ok := ttrpc.GetMetadataValue(ctx, rpc.RefusedToken); ok {
		a.Refused.Add(1)
	}
	a.mu.Lock()
	f := a.GetTokenFunc
	a.mu.Unlock()
	if f == nil {
		f = func(context.Context) ([]byte, error) { return a.kbs.Mint() }
	}
	if req.TokenType != "kbs" {
		return nil, status.Error(codes.Internal, "[ERROR:attestation-agent] AA-KBC get token failed")
	}
	tok, err := f(ctx)
	return &aa.GetTokenResponse{Token: tok}, err
}

// ExtendRuntimeMeasurement implements the service.
func (a *AA) ExtendRuntimeMeasurement(_ context.Context, req *aa.ExtendRuntimeMeasurementRequest) (*aa.ExtendRuntimeMeasurementResponse, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.Events = append(a.Events, req)
	if a.ExtendFunc == nil {
		return &aa.ExtendRuntimeMeasurementResponse{}, nil
	}
	res, err := a.ExtendFunc()
	return &aa.ExtendRuntimeMeasurementResponse{Result: res}, err
}

// GetEvidence implements the service: the evidence quotes the runtime data.
func (a *AA) GetEvidence(_ context.Context, req *aa.GetEvidenceRequest) (*aa.GetEvidenceResponse, error) {
	if string(req.RuntimeData) == "fail" {
		return nil, status.Error(codes.Internal, "[ERROR:attestation-agent] AA-KBC get evidence failed")
	}
	b, err := json.Marshal(map[string][]byte{"quote": req.RuntimeData})
	return &aa.GetEvidenceResponse{Evidence: b}, err
}

// GetAdditionalEvidence implements the service: there is no device.
func (a *AA) GetAdditionalEvidence(context.Context, *aa.GetAdditionalEvidenceRequest) (*aa.GetEvidenceResponse, error) {
	return &aa.GetEvidenceResponse{}, nil
}

// BindInitData implements the service.
func (a *AA) BindInitData(context.Context, *aa.BindInitDataRequest) (*aa.BindInitDataResponse, error) {
	return nil, errors.ErrUnsupported
}

// GetTeeType implements the service.
func (a *AA) GetTeeType(context.Context, *aa.GetTeeTypeRequest) (*aa.GetTeeTypeResponse, error) {
	return &aa.GetTeeTypeResponse{Tee: "sample"}, nil
}

// GetAdditionalTees implements the service.
func (a *AA) GetAdditionalTees(context.Context, *aa.GetAdditionalTeesRequest) (*aa.GetAdditionalTeesResponse, error) {
	return &aa.GetAdditionalTeesResponse{AdditionalTees: []string{"sampledevice"}}, nil
}
