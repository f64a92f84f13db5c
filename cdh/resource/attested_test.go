package resource

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sealpod/sealpod/cdh/internal/cdhtest"
	"github.com/sealpod/sealpod/kbs"
	"github.com/sealpod/sealpod/podvm"
)

const uri = "kbs:///default/key/1"

// world is a provider between an agent and a KBS, with a clock of its own.
type world struct {
	kbs *cdhtest.KBS
	aa  *cdhtest.AA
	Source
	skew atomic.Int64 // nanoseconds the provider's clock is ahead
}

func newWorld(t testing.TB) *world {
	w := &world{kbs: cdhtest.NewKBS(t)}
	w.kbs.Set("default/key/1", []byte("secret one"))
	w.aa = cdhtest.NewAA(t, w.kbs).Start(t)
	w.Source = open(t, Config{KBC: CC, URL: w.kbs.URL, AASocket: w.aa.Path, Log: cdhtest.Quiet,
		now: func() time.Time { return time.Now().Add(time.Duration(w.skew.Load())) }})
	return w
}

func open(t testing.TB, cfg Config) Source {
	t.Helper()
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// want fails the test unless the resource is there with this content.
func (w *world) want(t testing.TB, uri, content string) {
	t.Helper()
	got, err := w.Resource(context.Background(), uri)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != content {
		t.Fatalf("got %q, want %q", []byte(got), content)
	}
}

func (w *world) wantTokens(t testing.TB, n int64) {
	t.Helper()
	if got := w.aa.Tokens.Load(); got != n {
		t.Fatalf("%d GetToken calls, want %d", got, n)
	}
}

func TestHundredResourcesCostOneTokenAndOneConnection(t *testing.T) {
	w := newWorld(t)
	for range 100 {
		w.want(t, uri, "secret one")
	}
	w.wantTokens(t, 1)
	if n := w.kbs.Requests.Load(); n != 100 {
		t.Errorf("%d requests at the KBS, want 100: resources are never kept", n)
	}
	if n := w.kbs.Conns.Load(); n != 1 {
		t.Errorf("%d connections to the KBS, want 1", n)
	}
}

func TestResourceIsFetchedAnewEachTime(t *testing.T) {
	w := newWorld(t)
	w.want(t, uri, "secret one")
	w.kbs.Set("default/key/1", []byte("rotated"))
	w.want(t, uri, "rotated")
	w.kbs.Set("default/key/1", nil)
	if _, err := w.Resource(t.Context(), uri); !errors.Is(err, ErrNotFound) {
		t.Fatalf("withdrawn resource: %v", err)
	}
	w.wantTokens(t, 1)
}

func TestRefusals(t *testing.T) {
	const hostile = "\x1b[31mhostile"
	tests := map[string]struct {
		uri    string
		answer func(w http.ResponseWriter, key *kbs.TEEKey)
		is     error
		cause  string
		tokens int64
	}{
		"not a URI": {uri: "http://x/y", is: kbs.ErrURI, cause: "not a resource URI", tokens: 0},
		"missing":   {uri: "kbs:///default/key/9", is: ErrNotFound, cause: "no such resource: default/key/9", tokens: 1},
		"denied with a new token is final": {
			uri: "kbs:///denied/key/1", is: kbs.ErrDenied, tokens: 1,
			cause: "access denied by the resource policy at the KBS",
		},
		"denied by a newer KBS": {
			uri: uri, is: kbs.ErrDenied, cause: "access denied by the resource policy at the KBS", tokens: 1,
			answer: func(w http.ResponseWriter, _ *kbs.TEEKey) { cdhtest.Fail(w, 403, "PolicyDeny", hostile) },
		},
		"denied for a reason": {
			uri: uri, is: kbs.ErrDenied, tokens: 1,
			cause: "access denied by the resource policy at the KBS: cpu0 warning (configuration 36): tdx.td_attributes.debug is true, and much more" + strings.Repeat(" x", 400),
			answer: func(w http.ResponseWriter, _ *kbs.TEEKey) {
				cdhtest.Fail(w, 401, "PolicyDeny", "Access denied by policy: cpu0 warning (configuration 36): tdx.td_attributes.debug is true,\x1band much more"+strings.Repeat(" x", 1000))
			},
		},
		"every token refused": {
			uri: uri, is: errUnauthorized, cause: "request unauthorized: the KBS refused the token", tokens: 2,
			answer: func(w http.ResponseWriter, _ *kbs.TEEKey) { cdhtest.Fail(w, 401, "TokenVerifierError", hostile) },
		},
		"401 without a body": {
			uri: uri, is: errUnauthorized, cause: "request unauthorized", tokens: 2,
			answer: func(w http.ResponseWriter, _ *kbs.TEEKey) { w.WriteHeader(401) },
		},
		"plugin not there": {
			uri: "kbs+nope:///a/b/c", is: ErrNotFound, cause: "no such resource: a/b/c", tokens: 1,
			answer: func(w http.ResponseWriter, _ *kbs.TEEKey) { cdhtest.Fail(w, 404, "PluginNotFound", "") },
		},
		"server fault": {
			uri: uri, is: kbs.ErrUnreachable, cause: "HTTP status 503", tokens: 1,
			answer: func(w http.ResponseWriter, _ *kbs.TEEKey) { w.WriteHeader(503) },
		},
		"a redirect": {
			uri: uri, is: kbs.ErrProtocol, cause: "redirects", tokens: 1,
			answer: func(w http.ResponseWriter, _ *kbs.TEEKey) { w.Header().Set("Location", "/x"); w.WriteHeader(302) },
		},
		"not JSON": {
			uri: uri, is: kbs.ErrDecrypt, cause: "not encrypted to the key of this guest", tokens: 1,
			answer: func(w http.ResponseWriter, _ *kbs.TEEKey) { _, _ = w.Write([]byte("<html>")) },
		},
		"plaintext JSON": {
			uri: uri, is: kbs.ErrDecrypt, cause: "not encrypted", tokens: 1,
			answer: func(w http.ResponseWriter, _ *kbs.TEEKey) { _, _ = w.Write([]byte(`{"resource":"c2VjcmV0"}`)) },
		},
		"encrypted to another key": {
			uri: uri, is: kbs.ErrDecrypt, cause: "not encrypted", tokens: 1,
			answer: func(w http.ResponseWriter, _ *kbs.TEEKey) {
				other, _ := kbs.GenerateTEEKey(kbs.ECDHP256)
				jwe, _ := kbs.Encrypt(other.Public(), []byte("x"))
				_, _ = w.Write(jwe)
			},
		},
		"algorithm none": {
			uri: uri, is: kbs.ErrDecrypt, cause: "not encrypted", tokens: 1,
			answer: func(w http.ResponseWriter, _ *kbs.TEEKey) {
				_, _ = w.Write([]byte(`{"protected":"eyJhbGciOiJub25lIiwiZW5jIjoiQTI1NkdDTSJ9","encrypted_key":"","iv":"","ciphertext":"c2VjcmV0","tag":""}`))
			},
		},
		"algorithm RSA1_5": {
			uri: uri, is: kbs.ErrDecrypt, cause: "not encrypted", tokens: 1,
			answer: func(w http.ResponseWriter, _ *kbs.TEEKey) {
				_, _ = w.Write([]byte(`{"protected":"eyJhbGciOiJSU0ExXzUiLCJlbmMiOiJBMjU2R0NNIn0","encrypted_key":"AAAA","iv":"AAAAAAAAAAAAAAAA","ciphertext":"AAAA","tag":"AAAAAAAAAAAAAAAAAAAAAA"}`))
			},
		},
		"larger than any resource": {
			uri: uri, is: kbs.ErrProtocol, cause: "sent more than", tokens: 1,
			answer: func(w http.ResponseWriter, _ *kbs.TEEKey) {
				_, _ = w.Write([]byte(strings.Repeat("x", 9<<20)))
			},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			if tt.answer != nil {
				w.kbs.Override = func(rw http.ResponseWriter, _ *http.Request, key *kbs.TEEKey) bool {
					tt.answer(rw, key)
					return true
				}
			}
			got, err := w.Resource(t.Context(), tt.uri)
			if !errors.Is(err, tt.is) || got != nil {
				t.Fatalf("got %v, error %v, want %v", got, err, tt.is)
			}
			cause := podvm.Cause(err)
			if !strings.Contains(cause, tt.cause) || strings.Contains(cause, "\x1b") {
				t.Errorf("cause %q, want %q", cause, tt.cause)
			}
			w.wantTokens(t, tt.tokens)
		})
	}
}

func TestKBSRestartCostsOneNewToken(t *testing.T) {
	w := newWorld(t)
	w.want(t, uri, "secret one")
	w.kbs.Forget()
	w.kbs.CloseClientConnections()
	w.want(t, uri, "secret one")
	w.want(t, uri, "secret one")
	w.wantTokens(t, 2)
	if n := w.aa.Refused.Load(); n != 1 {
		t.Errorf("the agent was told of %d refused tokens, want 1", n)
	}
}

func TestTokenIsRenewedAtFourFifthsOfItsLife(t *testing.T) {
	w := newWorld(t)
	w.kbs.Life = 100 * time.Second
	w.want(t, uri, "secret one")
	w.skew.Store(int64(75 * time.Second))
	w.want(t, uri, "secret one")
	w.wantTokens(t, 1)
	w.skew.Store(int64(81 * time.Second))
	w.want(t, uri, "secret one")
	w.wantTokens(t, 2)
}

func TestClockAheadOfTheIssuerDoesNotAttestPerCall(t *testing.T) {
	w := newWorld(t)
	w.skew.Store(int64(24 * time.Hour))
	for range 5 {
		w.want(t, uri, "secret one")
	}
	w.wantTokens(t, 1)
}

func TestDeniedWithAnOldTokenTriesOneNewTokenAndNoMoreForAWhile(t *testing.T) {
	w := newWorld(t)
	w.want(t, uri, "secret one")
	w.skew.Store(int64(time.Minute))
	for range 20 { // a container that keeps asking
		if _, err := w.Resource(t.Context(), "kbs:///denied/key/1"); !errors.Is(err, kbs.ErrDenied) {
			t.Fatal(err)
		}
	}
	w.wantTokens(t, 2)
}

func TestConcurrentCallersShareOneTokenAndFailAlone(t *testing.T) {
	w := newWorld(t)
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			if i == 17 {
				if _, err := w.Resource(t.Context(), "kbs:///denied/key/1"); !errors.Is(err, kbs.ErrDenied) {
					t.Errorf("caller %d: %v", i, err)
				}
				return
			}
			got, err := w.Resource(t.Context(), uri)
			if err != nil || string(got) != "secret one" {
				t.Errorf("caller %d: %q, %v", i, []byte(got), err)
			}
		})
	}
	wg.Wait()
	w.wantTokens(t, 1)
}

func TestConcurrentCallersShareOneNewTokenAfterARefusal(t *testing.T) {
	w := newWorld(t)
	w.want(t, uri, "secret one")
	w.kbs.Forget()
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			if _, err := w.Resource(t.Context(), uri); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	w.wantTokens(t, 2)
}

func TestOneCallerGivingUpDoesNotCancelTheTokenForOthers(t *testing.T) {
	w := newWorld(t)
	asked, release := make(chan struct{}), make(chan struct{})
	w.aa.Lock(func() {
		w.aa.GetTokenFunc = func(context.Context) ([]byte, error) {
			close(asked)
			<-release
			return w.kbs.Mint()
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	first, second := make(chan error, 1), make(chan error, 1)
	go func() { _, err := w.Resource(ctx, uri); first <- err }()
	<-asked
	go func() { _, err := w.Resource(t.Context(), uri); second <- err }()
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) || podvm.Cause(err) == "" {
		t.Errorf("the caller who gave up: %v", err)
	}
	close(release)
	if err := <-second; err != nil {
		t.Errorf("the caller who stayed: %v", err)
	}
	w.wantTokens(t, 1)
}

func TestSlowResourceDoesNotHoldUpOthers(t *testing.T) {
	w := newWorld(t)
	w.kbs.Set("slow/key/1", []byte("slow"))
	entered, release := make(chan struct{}), make(chan struct{})
	w.kbs.Override = func(_ http.ResponseWriter, r *http.Request, _ *kbs.TEEKey) bool {
		if strings.Contains(r.URL.Path, "slow") {
			close(entered)
			<-release
		}
		return false
	}
	slow := make(chan error, 1)
	go func() { _, err := w.Resource(t.Context(), "kbs:///slow/key/1"); slow <- err }()
	<-entered
	w.want(t, uri, "secret one")
	close(release)
	if err := <-slow; err != nil {
		t.Error(err)
	}
}

func TestAgentRestart(t *testing.T) {
	w := newWorld(t)
	w.want(t, uri, "secret one")
	w.aa.Stop()
	w.want(t, uri, "secret one") // the token still serves
	w.aa.Start(t)
	w.kbs.Forget()
	w.want(t, uri, "secret one")
	w.wantTokens(t, 2)
}

func TestAgentThatComesUpLateIsWaitedFor(t *testing.T) {
	k := cdhtest.NewKBS(t)
	k.Set("default/key/1", []byte("x"))
	a := cdhtest.NewAA(t, k)
	s := open(t, Config{KBC: CC, URL: k.URL, AASocket: a.Path, Log: cdhtest.Quiet})
	done := make(chan error, 1)
	go func() { _, err := s.Resource(t.Context(), uri); done <- err }()
	a.Start(t)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestAgentFailures(t *testing.T) {
	tests := map[string]struct {
		token func(context.Context) ([]byte, error)
		cause string
	}{
		"evidence refused": {
			func(context.Context) ([]byte, error) {
				return nil, status.Error(codes.Internal, "[ERROR:attestation-agent] AA-KBC get token failed: the KBS refused the evidence (request 0a1b2c3d)")
			},
			"no attestation token: [ERROR:attestation-agent] AA-KBC get token failed: the KBS refused the evidence (request 0a1b2c3d)",
		},
		"evidence refused for a long reason": {
			func(context.Context) ([]byte, error) {
				return nil, status.Error(codes.Internal, strings.Repeat("x", 1200)+" the end")
			},
			strings.Repeat("x", 1200) + " the end",
		},
		"no token in the answer": {func(context.Context) ([]byte, error) { return []byte(`{}`), nil }, "not a token"},
		"an empty answer":        {func(context.Context) ([]byte, error) { return nil, nil }, "not a token"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.aa.Lock(func() { w.aa.GetTokenFunc = tt.token })
			_, err := w.Resource(t.Context(), uri)
			if err == nil || !strings.Contains(podvm.Cause(err), tt.cause) {
				t.Fatalf("cause %q of %v, want %q", podvm.Cause(err), err, tt.cause)
			}
			// It is not held against the next call.
			w.aa.Lock(func() { w.aa.GetTokenFunc = nil })
			w.want(t, uri, "secret one")
		})
	}
}

func TestAbsentAgentIsNamed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "none.sock")
	s := open(t, Config{KBC: CC, URL: "http://127.0.0.1:1", AASocket: path, Log: cdhtest.Quiet})
	at := s.(*attested)
	// As after the wait: the dial ends with the context it is given.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := at.tokens.fetch(ctx, nil)
	if !errors.Is(err, ErrInit) || podvm.Cause(err) != "attestation agent not reachable at "+path {
		t.Fatalf("cause %q of %v", podvm.Cause(err), err)
	}
}

func TestUnusableKBSIsAnErrorPerCall(t *testing.T) {
	for name, cfg := range map[string]Config{
		"no URL":          {},
		"another scheme":  {URL: "ftp://kbs"},
		"bad certificate": {URL: "https://kbs", CertPEM: []byte("x")},
	} {
		t.Run(name, func(t *testing.T) {
			cfg.KBC, cfg.Log = CC, cdhtest.Quiet
			_, err := open(t, cfg).Resource(t.Context(), uri)
			if !errors.Is(err, ErrInit) || podvm.Cause(err) == "" {
				t.Fatal(err)
			}
		})
	}
}

func TestUnknownProviderIsNamed(t *testing.T) {
	_, err := New(Config{KBC: "online_sev_kbc"})
	if !errors.Is(err, ErrUnknown) || !strings.Contains(podvm.Cause(err), `"online_sev_kbc"`) {
		t.Fatal(err)
	}
}

func TestUnreachableKBS(t *testing.T) {
	w := newWorld(t)
	w.want(t, uri, "secret one")
	w.kbs.Close()
	_, err := w.Resource(t.Context(), uri)
	if !errors.Is(err, kbs.ErrUnreachable) || !strings.Contains(podvm.Cause(err), "KBS not reachable at "+w.kbs.URL) {
		t.Fatalf("cause %q of %v", podvm.Cause(err), err)
	}
	w.wantTokens(t, 1)
}

func TestClosedProviderFailsAtOnce(t *testing.T) {
	w := newWorld(t)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Resource(t.Context(), uri); err == nil {
		t.Fatal("a closed provider answered")
	}
}

func BenchmarkWarmResource(b *testing.B) {
	w := newWorld(b)
	w.kbs.Set("default/key/1", []byte(fmt.Sprintf("%032d", 1)))
	b.ReportAllocs()
	for b.Loop() {
		s, err := w.Resource(context.Background(), uri)
		if err != nil {
			b.Fatal(err)
		}
		s.Wipe()
	}
}
