package server

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	aa "github.com/sealpod/sealpod/api/attestationagent"
	"github.com/sealpod/sealpod/attester"
	"github.com/sealpod/sealpod/attester/initdata"
	"github.com/sealpod/sealpod/attester/sample"
	"github.com/sealpod/sealpod/attester/snp"
	"github.com/sealpod/sealpod/attester/tdx"
	"github.com/sealpod/sealpod/kbs"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/rpc"
)

// fakeKBS issues a token to everybody and counts; it also answers as an
// attestation service. Package kbs tests what is in the requests.
type fakeKBS struct {
	*httptest.Server
	mu       sync.Mutex
	attested int
	refuse   bool
	initData string
}

func newFakeKBS(t testing.TB) *fakeKBS {
	k := &fakeKBS{}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /kbs/v0/auth", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"nonce":"bm9uY2U=","extra-params":""}`)
	})
	mux.HandleFunc("POST /kbs/v0/attest", func(w http.ResponseWriter, r *http.Request) {
		k.mu.Lock()
		defer k.mu.Unlock()
		k.attested++
		var in kbs.Attestation
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
			t.Error(err)
		}
		if in.InitData != nil {
			k.initData = in.InitData.Format + ":" + in.InitData.Body
		}
		if k.refuse {
			w.WriteHeader(http.StatusUnauthorized)
			_ = json.NewEncoder(w).Encode(kbs.ErrorInfo{Type: kbs.ErrorTypePrefix + "AttestationError", Detail: "no\nthanks"})
			return
		}
		_ = json.NewEncoder(w).Encode(kbs.TokenResponse{Token: jwt(k.attested, time.Now(), time.Now().Add(5*time.Minute))})
	})
	mux.HandleFunc("POST /attestation", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, jwt(0, time.Unix(1, 0), time.Unix(2, 0)))
	})
	k.Server = httptest.NewServer(mux)
	t.Cleanup(k.Close)
	return k
}

// start serves an agent on a socket and returns a client of it.
func start(t testing.TB, d Deps) aa.AttestationAgentServiceService {
	t.Helper()
	d.Log = slog.New(slog.DiscardHandler)
	if d.TEEs == nil {
		d.TEEs = &attester.Set{Primary: sample.New()}
	}
	agent := New(d)
	path := filepath.Join(t.TempDir(), "aa.sock")
	ctx, stop := context.WithCancel(context.Background())
	l, err := rpc.Listen(ctx, path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- rpc.Serve(ctx, l, d.Log, agent.Register) }()
	client := rpc.NewClient(path, time.Second)
	var out aa.AttestationAgentServiceService
	if err := client.Do(ctx, func(c *ttrpc.Client) error {
		out = aa.NewAttestationAgentServiceClient(c)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		err := client.Close()
		stop()
		agent.Close()
		if err = errors.Join(err, <-done); err != nil {
			t.Error(err)
		}
	})
	return out
}

func withKBS(url string) Config {
	return defaults(func(c *Config) { c.Tokens.KBS = &KBSConfig{URL: url} })
}

// broken is an attester that fails with words not meant for callers.
type broken struct{}

func (broken) TEE() string { return "broken" }
func (broken) Evidence(context.Context, []byte) (json.RawMessage, error) {
	return nil, errors.New("ioctl 0xdead failed")
}

func TestEvidenceAndTypes(t *testing.T) {
	c := start(t, Deps{TEEs: &attester.Set{Primary: sample.New(), Devices: []attester.Attester{sample.NewDevice()}}})
	ev, err := c.GetEvidence(t.Context(), &aa.GetEvidenceRequest{RuntimeData: []byte("nonce")})
	if err != nil || string(ev.GetEvidence()) != `{"svn":"1","report_data":"bm9uY2U="}` {
		t.Errorf("evidence %s, %v", ev.GetEvidence(), err)
	}
	ev, err = c.GetAdditionalEvidence(t.Context(), &aa.GetAdditionalEvidenceRequest{RuntimeData: []byte("nonce")})
	if err != nil || string(ev.GetEvidence()) != `{"sampledevice":{"svn":"2","report_data":"bm9uY2U="}}` {
		t.Errorf("device evidence %s, %v", ev.GetEvidence(), err)
	}
	tee, err := c.GetTeeType(t.Context(), &aa.GetTeeTypeRequest{})
	if err != nil || tee.GetTee() != "sample" {
		t.Errorf("type %q, %v", tee.GetTee(), err)
	}
	more, err := c.GetAdditionalTees(t.Context(), &aa.GetAdditionalTeesRequest{})
	if err != nil || !slices.Equal(more.GetAdditionalTees(), []string{"sampledevice"}) {
		t.Errorf("devices %v, %v", more.GetAdditionalTees(), err)
	}
}

func TestNoDevicesIsEmptyEvidence(t *testing.T) {
	c := start(t, Deps{})
	ev, err := c.GetAdditionalEvidence(t.Context(), &aa.GetAdditionalEvidenceRequest{RuntimeData: []byte("nonce")})
	if err != nil || len(ev.GetEvidence()) != 0 {
		t.Errorf("%q, %v", ev.GetEvidence(), err)
	}
	tees, err := c.GetAdditionalTees(t.Context(), &aa.GetAdditionalTeesRequest{})
	if err != nil || len(tees.GetAdditionalTees()) != 0 {
		t.Errorf("%v, %v", tees.GetAdditionalTees(), err)
	}
}

// Codes and prefixes are upstream's; the cause after them is ours and holds
// nothing of the inner error.
func TestErrors(t *testing.T) {
	k := newFakeKBS(t)
	k.refuse = true
	fail := &attester.Set{Primary: broken{}, Devices: []attester.Attester{broken{}}}
	token := func(kind string) func(context.Context, aa.AttestationAgentServiceService) error {
		return func(ctx context.Context, c aa.AttestationAgentServiceService) error {
			_, err := c.GetToken(ctx, &aa.GetTokenRequest{TokenType: kind})
			return err
		}
	}
	evidence := func(size int) func(context.Context, aa.AttestationAgentServiceService) error {
		return func(ctx context.Context, c aa.AttestationAgentServiceService) error {
			_, err := c.GetEvidence(ctx, &aa.GetEvidenceRequest{RuntimeData: make([]byte, size)})
			return err
		}
	}
	additional := func(size int) func(context.Context, aa.AttestationAgentServiceService) error {
		return func(ctx context.Context, c aa.AttestationAgentServiceService) error {
			_, err := c.GetAdditionalEvidence(ctx, &aa.GetAdditionalEvidenceRequest{RuntimeData: make([]byte, size)})
			return err
		}
	}
	const tokenPrefix = "[ERROR:attestation-agent] AA-KBC get token failed"
	const evidencePrefix = "[ERROR:attestation-agent] AA-KBC get evidence failed"
	tests := map[string]struct {
		deps   Deps
		call   func(context.Context, aa.AttestationAgentServiceService) error
		code   codes.Code
		prefix string
		cause  string
	}{
		"evidence fails":          {Deps{TEEs: fail}, evidence(1), codes.Internal, evidencePrefix, ""},
		"device evidence fails":   {Deps{TEEs: fail}, additional(1), codes.Internal, evidencePrefix, ""},
		"runtime data too long":   {Deps{}, evidence(maxRuntimeData + 1), codes.Internal, evidencePrefix, "runtime data of more than 65536 bytes"},
		"device data too long":    {Deps{}, additional(maxRuntimeData + 1), codes.Internal, evidencePrefix, "runtime data of more than 65536 bytes"},
		"token type unknown":      {Deps{}, token("jwt\n"), codes.Internal, tokenPrefix, "the token type must be kbs or coco_as"},
		"no KBS configured":       {Deps{}, token("kbs"), codes.Internal, tokenPrefix, "no [token_configs.kbs]"},
		"no AS configured":        {Deps{}, token("coco_as"), codes.Internal, tokenPrefix, "no [token_configs.coco_as]"},
		"KBS URL no good":         {Deps{Config: withKBS("kbs.example")}, token("kbs"), codes.Internal, tokenPrefix, "address or certificate in [token_configs.kbs] is not usable"},
		"KBS refuses":             {Deps{Config: withKBS(k.URL)}, token("kbs"), codes.Internal, tokenPrefix, "the KBS refused the evidence (no thanks)"},
		"attester fails in token": {Deps{Config: withKBS(k.URL), TEEs: fail}, token("kbs"), codes.Internal, tokenPrefix, ""},
		"BindInitData": {Deps{}, func(ctx context.Context, c aa.AttestationAgentServiceService) error {
			_, err := c.BindInitData(ctx, &aa.BindInitDataRequest{Digest: []byte("x")})
			return err
		}, codes.NotFound, "/attestation_agent.AttestationAgentService/BindInitData is not supported", ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			err := tt.call(t.Context(), start(t, tt.deps))
			s := status.Convert(err)
			if s.Code() != tt.code || !strings.HasPrefix(s.Message(), tt.prefix) || !strings.Contains(s.Message(), tt.cause) {
				t.Fatalf("got %v", err)
			}
			if tt.code == codes.Internal && !strings.Contains(s.Message(), "(request ") {
				t.Errorf("no request id: %v", err)
			}
			if strings.Contains(s.Message(), "0xdead") || strings.Contains(s.Message(), "\n") {
				t.Errorf("says too much: %v", err)
			}
		})
	}
}

func TestLargestRuntimeDataFitsAFrame(t *testing.T) {
	ev, err := start(t, Deps{}).GetEvidence(t.Context(), &aa.GetEvidenceRequest{RuntimeData: make([]byte, maxRuntimeData)})
	if err != nil || len(ev.GetEvidence()) < maxRuntimeData {
		t.Errorf("%d bytes, %v", len(ev.GetEvidence()), err)
	}
}

// What a TEE cannot sign is refused with the reason, not cut; what it can sign
// gets as far as the device, which is not there.
func TestReportDataThatIsTooLong(t *testing.T) {
	host := podvm.Host{Root: t.TempDir()}
	for name, tt := range map[string]struct {
		tee  attester.Attester
		says string
	}{
		"tdx": {tdx.New(host), "TDX report data must not be longer than 64 bytes"},
		"snp": {snp.New(host), "SNP report data must not be longer than 64 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			c := start(t, Deps{TEEs: &attester.Set{Primary: tt.tee}})
			for size, refused := range map[int]bool{64: false, 65: true, maxRuntimeData: true} {
				_, err := c.GetEvidence(t.Context(), &aa.GetEvidenceRequest{RuntimeData: make([]byte, size)})
				s := status.Convert(err)
				if s.Code() != codes.Internal || strings.HasPrefix(s.Message(), ttrpcTexts.evidence+": "+tt.says+" (request ") != refused {
					t.Errorf("%d bytes: %v", size, err)
				}
			}
		})
	}
}

func TestTokenOverTheSocket(t *testing.T) {
	k := newFakeKBS(t)
	doc, err := initdata.Parse([]byte("algorithm = \"sha256\"\n# exact\n"))
	if err != nil {
		t.Fatal(err)
	}
	c := start(t, Deps{Config: withKBS(k.URL), InitData: InitData{Document: doc}})
	get := func(ctx context.Context) *kbs.Token {
		t.Helper()
		out, err := c.GetToken(ctx, &aa.GetTokenRequest{TokenType: "kbs"})
		if err != nil {
			t.Fatal(err)
		}
		tok, err := kbs.ParseToken(out.GetToken())
		if err != nil {
			t.Fatal(err)
		}
		return tok
	}
	first := get(t.Context())
	for range 99 {
		if again := get(t.Context()); again.JWT != first.JWT || again.Key.Public() != first.Key.Public() {
			t.Fatal("another token")
		}
	}
	if k.attested != 1 || k.initData != "toml:algorithm = \"sha256\"\n# exact\n" {
		t.Errorf("%d attestations, init data %q", k.attested, k.initData)
	}
	sum := sha256.Sum256([]byte(first.JWT))
	refused := ttrpc.WithMetadata(t.Context(), ttrpc.MD{rpc.RefusedToken: {hex.EncodeToString(sum[:])}})
	if second := get(refused); second.JWT == first.JWT || second.Key.Public() == first.Key.Public() {
		t.Error("the refused token again, or its key")
	}
	if k.attested != 2 {
		t.Errorf("%d attestations", k.attested)
	}
}

func TestASTokenOverTheSocket(t *testing.T) {
	k := newFakeKBS(t)
	c := start(t, Deps{Config: defaults(func(c *Config) { c.Tokens.CoCoAS = &CoCoASConfig{URL: k.URL + "/"} })})
	out, err := c.GetToken(t.Context(), &aa.GetTokenRequest{TokenType: "coco_as"})
	if err != nil || string(out.GetToken()) != jwt(0, time.Unix(1, 0), time.Unix(2, 0)) {
		t.Errorf("%s, %v", out.GetToken(), err)
	}
}

// events is an event log that answers err and records the last event.
type events struct {
	err  error
	last string
}

func (e *events) Extend(_ context.Context, domain, operation, content string, register *uint64) error {
	reg := "default"
	if register != nil {
		reg = fmt.Sprint(*register)
	}
	e.last = strings.Join([]string{domain, operation, content, reg}, " ")
	return e.err
}

func TestExtendRuntimeMeasurement(t *testing.T) {
	on := defaults(func(c *Config) { c.EventLog.Enable = true })
	seven := uint64(7)
	for name, tt := range map[string]struct {
		config   Config
		events   *events
		register *uint64
		want     aa.RuntimeMeasurementResult
		fails    string
		last     string
	}{
		"disabled":               {config: defaults(nil), events: &events{}, want: aa.RuntimeMeasurementResult_NOT_ENABLED},
		"enabled on sample":      {config: on, want: aa.RuntimeMeasurementResult_NOT_SUPPORTED},
		"enabled, TEE says no":   {config: on, events: &events{err: attester.ErrUnsupported}, want: aa.RuntimeMeasurementResult_NOT_SUPPORTED, last: "d o c default"},
		"extended":               {config: on, events: &events{}, want: aa.RuntimeMeasurementResult_OK, last: "d o c default"},
		"extended in a register": {config: on, events: &events{}, register: &seven, want: aa.RuntimeMeasurementResult_OK, last: "d o c 7"},
		"extending fails":        {config: on, events: &events{err: errors.New("rtmr on fire")}, fails: "[ERROR:attestation-agent] AA extend runtime measurement failed (request ", last: "d o c default"},
	} {
		t.Run(name, func(t *testing.T) {
			d := Deps{Config: tt.config}
			if tt.events != nil {
				d.EventLog = tt.events
			}
			out, err := start(t, d).ExtendRuntimeMeasurement(t.Context(), &aa.ExtendRuntimeMeasurementRequest{
				Domain: "d", Operation: "o", Content: "c", RegisterIndex: tt.register})
			if tt.fails != "" {
				if s := status.Convert(err); s.Code() != codes.Internal || !strings.HasPrefix(s.Message(), tt.fails) {
					t.Errorf("got %v", err)
				}
			} else if err != nil || out.GetResult() != tt.want {
				t.Errorf("%v, %v", out.GetResult(), err)
			}
			if tt.events != nil && tt.events.last != tt.last {
				t.Errorf("event %q", tt.events.last)
			}
		})
	}
}

func TestExtendingDropsTheToken(t *testing.T) {
	k := newFakeKBS(t)
	config := withKBS(k.URL)
	config.EventLog.Enable = true
	c := start(t, Deps{Config: config, EventLog: &events{}})
	for range 2 {
		if _, err := c.GetToken(t.Context(), &aa.GetTokenRequest{TokenType: "kbs"}); err != nil {
			t.Fatal(err)
		}
		if _, err := c.ExtendRuntimeMeasurement(t.Context(), &aa.ExtendRuntimeMeasurementRequest{}); err != nil {
			t.Fatal(err)
		}
	}
	if k.attested != 2 {
		t.Errorf("%d attestations", k.attested)
	}
}

func BenchmarkGetTokenCached(b *testing.B) {
	k := newFakeKBS(b)
	c := start(b, Deps{Config: withKBS(k.URL)})
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.GetToken(b.Context(), &aa.GetTokenRequest{TokenType: "kbs"}); err != nil {
			b.Fatal(err)
		}
	}
	if k.attested != 1 {
		b.Errorf("%d attestations", k.attested)
	}
}
