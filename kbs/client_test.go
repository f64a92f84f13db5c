package kbs

import (
	"context"
	"errors"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sealpod/sealpod/podvm"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestAttestAndFetch(t *testing.T) {
	tests := map[string]struct {
		alg  KeyAlgorithm
		hash string
		tee  fakeTEE
		init *InitData
	}{
		"defaults":           {},
		"P-521":              {alg: ECDHP521},
		"RSA":                {alg: RSAOAEP},
		"SHA-256 selected":   {hash: `"SHA256"`},
		"SHA-512 selected":   {hash: `"sha512"`},
		"with devices":       {tee: fakeTEE{devices: true}},
		"with init data":     {init: &InitData{Format: "toml", Body: "version = \"0.1.0\"\n# <&>\n"}},
		"devices and SHA512": {tee: fakeTEE{devices: true}, hash: `"sha512"`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			k := newFakeKBS(t)
			k.hash, k.initData = tt.hash, tt.init
			c := k.client(t, nil)
			tok, err := c.Attest(t.Context(), &tt.tee, tt.init, tt.alg)
			if err != nil {
				t.Fatal(err)
			}
			if left := time.Until(tok.Expires()); left < 4*time.Minute || left > 5*time.Minute {
				t.Errorf("expires in %v", left)
			}
			u, err := ParseURI("kbs:///default/key/1")
			if err != nil {
				t.Fatal(err)
			}
			got, err := c.Resource(t.Context(), tok, u)
			if err != nil || string([]byte(got)) != "content of /kbs/v0/resource/default/key/1" {
				t.Errorf("got %q, %v", []byte(got), err)
			}
			if tt.tee.calls != 1 || k.auths != 1 {
				t.Errorf("%d evidences, %d handshakes", tt.tee.calls, k.auths)
			}
		})
	}
}

func TestResourcePathReachesTheKBSUnchanged(t *testing.T) {
	k := newFakeKBS(t)
	k.onGet = refuser(404, "PluginNotFound", "x")
	c := k.client(t, nil)
	tok := mustToken(t)
	for uri, want := range map[string]string{
		"kbs:///a/b/c":                      "/kbs/v0/resource/a/b/c",
		"kbs://other.host:1/a/b":            "/kbs/v0/resource/a/b",
		"kbs+nebula-ca:///cred?n=a%20b&x=1": "/kbs/v0/nebula-ca/cred?n=a%20b&x=1",
		"kbs:///a%2Fb/ü":                    "/kbs/v0/resource/a%2Fb/%C3%BC",
		"kbs:///100%/a\\b|c":                "/kbs/v0/resource/100%25/a%5Cb%7Cc",
		"kbs:///a%2fb|":                     "/kbs/v0/resource/a%2fb%7C",
		"kbs:///..%2f..%2fadmin":            "/kbs/v0/resource/..%2f..%2fadmin",
	} {
		u, err := ParseURI(uri)
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.Resource(t.Context(), tok, u)
		if !errors.Is(err, ErrNotFound) {
			t.Fatalf("%s: %v", uri, err)
		}
		r := k.gets[len(k.gets)-1]
		if r.RequestURI != want || r.Header.Get("Authorization") != "Bearer "+tok.JWT || len(r.Cookies()) != 0 {
			t.Errorf("%s: requested %s with %v", uri, r.RequestURI, r.Header)
		}
	}
}

func mustToken(t testing.TB) *Token {
	t.Helper()
	tok, err := NewToken(testJWT(time.Unix(1000, 0), time.Unix(2000, 0), "x"), newKey(t, ECDHP256))
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

// Every answer of a KBS, or of something that is none, has its sentinel and a
// cause that says what to look at.
func TestResourceErrors(t *testing.T) {
	all := []error{ErrUnauthorized, ErrDenied, ErrNotFound, ErrUnreachable, ErrProtocol, ErrDecrypt}
	tests := map[string]struct {
		answer http.HandlerFunc
		want   []error
		cause  string
	}{
		"token refused": {refuser(401, "TokenVerifierError", "Token Verifier error"), []error{ErrUnauthorized}, "did not accept the attestation token"},
		"token missing": {refuser(401, "TokenNotFound", "Attestation Token not found"), []error{ErrUnauthorized}, "Attestation Token not found"},
		"policy denies": {refuser(401, "PolicyDeny", "Access denied by policy"), []error{ErrUnauthorized, ErrDenied}, "denied by the resource policy"},
		"policy denies for a reason": {refuser(401, "PolicyDeny", "Access denied by policy: cpu0 warning (hardware 97): tdx.tcb_status is \"OutOfDate\" (KBS request ABC)"),
			[]error{ErrUnauthorized, ErrDenied}, `(Access denied by policy: cpu0 warning (hardware 97): tdx.tcb_status is "OutOfDate" (KBS request ABC))`},
		"policy denies with 403": {refuser(403, "PolicyDeny", "Access denied by policy"), []error{ErrDenied}, "denied by the resource policy"},
		"missing, as 401":        {refuser(401, "PluginInternalError", "Plugin internal error"), []error{ErrNotFound}, "probably does not exist"},
		"no such plugin":         {refuser(404, "PluginNotFound", "x"), []error{ErrNotFound}, "no such resource plugin at the KBS: resource"},
		"bad path":               {refuser(404, "InvalidRequestPath", "bad"), []error{ErrNotFound}, "the KBS has no kbs:///a/b/c (bad)"},
		"another variant":        {refuser(401, "JweError", "boom"), []error{ErrUnauthorized}, "boom"},
		"error without JSON":     {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(401) }, []error{ErrUnauthorized}, "HTTP status 401 without an explanation"},
		"not a KBS at all":       {http.NotFound, []error{ErrProtocol}, "does not answer like a KBS"},
		"overloaded proxy":       {refuser(503, "", ""), []error{ErrUnreachable}, "HTTP status 503"},
		"too many requests":      {refuser(429, "", ""), []error{ErrUnreachable}, "HTTP status 429"},
		"other status":           {refuser(413, "X", "payload"), []error{ErrProtocol}, "413: payload"},
		"redirect is not followed": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://127.0.0.1:1/stolen", http.StatusTemporaryRedirect)
		}, []error{ErrProtocol}, "redirects elsewhere"},
		"oversized body": {func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write(make([]byte, 3000))
		}, []error{ErrProtocol}, "sent more than 2000 bytes"},
		"oversized headers": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X", strings.Repeat("x", maxHeaders))
		}, []error{ErrUnreachable}, "KBS not reachable"},
		"oversized error body": {func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(401)
			_, _ = w.Write(append([]byte(`{"type":"`), make([]byte, 2*maxErrorBody)...))
		}, []error{ErrUnauthorized}, "without an explanation"},
		"connection cut": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			_, _ = w.Write([]byte("{"))
		}, []error{ErrUnreachable}, "the connection broke"},
		"plain text instead of JWE": {func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte("secret"))
		}, []error{ErrDecrypt}, "not encrypted to the key of this guest"},
		"control characters in the detail": {refuser(401, "X", "a\x1b[31m\nb"+strings.Repeat("c", 5000)), []error{ErrUnauthorized}, "a [31m bccc"},
	}
	u, err := ParseURI("kbs:///a/b/c")
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			k := newFakeKBS(t)
			k.onGet = tt.answer
			c := k.client(t, func(cfg *ClientConfig) { cfg.MaxResource = 2000 })
			got, err := c.Resource(t.Context(), mustToken(t), u)
			if got != nil {
				t.Errorf("bytes beside the error")
			}
			for _, s := range all {
				want := slices.Contains(tt.want, s)
				if errors.Is(err, s) != want {
					t.Errorf("errors.Is(%v) = %v; %v", s, !want, err)
				}
			}
			if !strings.Contains(podvm.Cause(err), tt.cause) {
				t.Errorf("cause %q lacks %q", podvm.Cause(err), tt.cause)
			}
			if strings.ContainsAny(err.Error(), "\x1b\n") || len(err.Error()) > 3000 {
				t.Errorf("text %q", err)
			}
		})
	}
}

func TestAttestErrors(t *testing.T) {
	text := func(s string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(s)) }
	}
	tests := map[string]struct {
		auth, attest http.HandlerFunc
		hash         string
		tee          fakeTEE
		want         error
		cause        string
		tries        int
	}{
		"version refused":          {auth: refuser(401, "AttestationError", "expect =0.4.0"), want: ErrUnauthorized, cause: "refused to start a handshake (expect =0.4.0)", tries: 1},
		"evidence refused":         {attest: refuser(401, "AttestationError", "RCAR handshake Attest failed"), want: ErrUnauthorized, cause: "the KBS refused the evidence", tries: 2},
		"not a KBS":                {auth: http.NotFound, want: ErrProtocol, cause: "check the URL", tries: 1},
		"page instead of JSON":     {auth: text("<html>"), want: ErrProtocol, cause: "check the URL", tries: 1},
		"challenge without nonce":  {auth: text(`{"extra-params":""}`), want: ErrProtocol, cause: "check the URL", tries: 1},
		"oversized challenge":      {auth: text(strings.Repeat(" ", maxChallenge+1)), want: ErrProtocol, cause: "sent more than", tries: 1},
		"oversized token":          {attest: text(strings.Repeat(" ", maxToken+1)), want: ErrProtocol, cause: "sent more than", tries: 1},
		"token is no JWT":          {attest: text(`{"token":"a b"}`), want: ErrProtocol, cause: "no JWT", tries: 1},
		"token without expiry":     {attest: text(`{"token":"e30.e30.e30"}`), want: ErrProtocol, cause: "no JWT", tries: 1},
		"hash not a string":        {hash: `7`, want: ErrProtocol, cause: "hash", tries: 1},
		"hash not known":           {hash: `"sm3"`, want: ErrProtocol, cause: "hash", tries: 1},
		"redirect":                 {auth: func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/x", http.StatusFound) }, want: ErrProtocol, cause: "redirects", tries: 1},
		"overload is tried again":  {auth: refuser(503, "", ""), want: ErrUnreachable, cause: "503", tries: defaultAttempts},
		"broken device":            {tee: fakeTEE{err: errTEE}, want: errTEE, cause: "", tries: 1},
		"attest gone, tried again": {attest: refuser(502, "", ""), want: ErrUnreachable, cause: "502", tries: defaultAttempts},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			k := newFakeKBS(t)
			k.onAuth, k.onAttest, k.hash = tt.auth, tt.attest, tt.hash
			tok, err := k.client(t, nil).Attest(t.Context(), &tt.tee, nil, "")
			if !errors.Is(err, tt.want) || tok != nil {
				t.Fatalf("got %v, %v", tok, err)
			}
			if !strings.Contains(podvm.Cause(err), tt.cause) {
				t.Errorf("cause %q lacks %q", podvm.Cause(err), tt.cause)
			}
			if k.auths != tt.tries {
				t.Errorf("%d handshakes, want %d", k.auths, tt.tries)
			}
		})
	}
}

func TestAttestRecoversFromAnOutage(t *testing.T) {
	k := newFakeKBS(t)
	k.onAuth = func(w http.ResponseWriter, _ *http.Request) {
		if k.auths == 2 {
			k.onAuth = nil
		}
		w.WriteHeader(502)
	}
	if _, err := k.client(t, nil).Attest(t.Context(), &fakeTEE{}, nil, ""); err != nil {
		t.Fatal(err)
	}
	if k.auths != 3 {
		t.Errorf("%d handshakes", k.auths)
	}
}

func TestAttestStopsWhenTheDeadlineLeavesNoTime(t *testing.T) {
	k := newFakeKBS(t)
	k.onAuth = refuser(503, "", "")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, err := k.client(t, func(c *ClientConfig) { c.RetryPause = time.Hour }).Attest(ctx, &fakeTEE{}, nil, "")
	if !errors.Is(err, ErrUnreachable) || k.auths != 1 || ctx.Err() != nil {
		t.Errorf("%d handshakes, %v", k.auths, err)
	}
}

func TestSlowKBSEndsWithTheCaller(t *testing.T) {
	entered := make(chan struct{})
	release := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(200)
		w.(http.Flusher).Flush() // headers come, the body never does
		close(entered)
		<-release
	}))
	defer srv.Close()
	defer close(release)
	c, err := NewClient(ClientConfig{URL: srv.URL})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-entered; cancel() }()
	_, err = c.Attest(ctx, &fakeTEE{}, nil, "")
	if !errors.Is(err, ErrUnreachable) || !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestSlowKBSEndsWithTheRequestTimeout(t *testing.T) {
	release := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	defer srv.Close()
	defer close(release)
	c, err := NewClient(ClientConfig{URL: srv.URL, Log: slog.New(slog.DiscardHandler), RequestTimeout: 10 * time.Millisecond, RetryPause: time.Millisecond, Attempts: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, err = c.Attest(t.Context(), &fakeTEE{}, nil, "")
	if !errors.Is(err, ErrUnreachable) || !strings.Contains(podvm.Cause(err), "no answer in time") {
		t.Errorf("got %v", err)
	}
}

func TestUnreachable(t *testing.T) {
	tlsKBS := httptest.NewUnstartedServer(http.NotFoundHandler())
	tlsKBS.Config.ErrorLog = log.New(io.Discard, "", 0)
	tlsKBS.StartTLS()
	defer tlsKBS.Close()
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone := "http://" + closed.Addr().String()
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct{ url, cause string }{
		"nobody listens":  {gone, "KBS not reachable at " + gone + ": connection refused"},
		"unknown CA":      {tlsKBS.URL, "TLS certificate is not trusted"},
		"TLS to non-TLS":  {strings.Replace(plain.URL, "http:", "https:", 1), "does not speak TLS"},
		"no such address": {"http://host.invalid:1", "KBS not reachable at http://host.invalid:1"},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := NewClient(ClientConfig{URL: tt.url, Attempts: 1})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_, err = c.Attest(t.Context(), &fakeTEE{}, nil, "")
			if !errors.Is(err, ErrUnreachable) || !strings.Contains(podvm.Cause(err), tt.cause) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestNewClientRefuses(t *testing.T) {
	for name, cfg := range map[string]ClientConfig{
		"no URL":             {},
		"no scheme":          {URL: "kbs.example:8080"},
		"other scheme":       {URL: "ftp://kbs.example"},
		"no host":            {URL: "http:///x"},
		"password in URL":    {URL: "http://user:hunter2@kbs.example"},
		"query in URL":       {URL: "http://kbs.example?x"},
		"certificate broken": {URL: "https://kbs.example", CertPEM: []byte("-----BEGIN CERTIFICATE-----")},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := NewClient(cfg); err == nil || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestReasonsOfADenial(t *testing.T) {
	u, err := ParseURI("kbs:///a/b/c")
	if err != nil {
		t.Fatal(err)
	}
	for detail, want := range map[string]string{
		"Access denied by policy":               "",
		"Access denied by policy: cpu0 warning": "cpu0 warning",
		"Access denied by policy: a\x1b\nb":     "a  b",
		"something else":                        "",
		"":                                      "",
	} {
		k := newFakeKBS(t)
		k.onGet = refuser(401, "PolicyDeny", detail)
		_, err := k.client(t, nil).Resource(t.Context(), mustToken(t), u)
		if got := Reasons(err); !errors.Is(err, ErrDenied) || got != want {
			t.Errorf("%q: %q of %v, want %q", detail, got, err, want)
		}
		k.onGet = refuser(401, "TokenVerifierError", detail)
		if _, err := k.client(t, nil).Resource(t.Context(), mustToken(t), u); Reasons(err) != "" {
			t.Errorf("%q: reasons of a refused token: %q", detail, Reasons(err))
		}
	}
}

func TestResourceRecoversFromAnOutage(t *testing.T) {
	k := newFakeKBS(t)
	c := k.client(t, nil)
	tok, err := c.Attest(t.Context(), &fakeTEE{}, nil, "")
	if err != nil {
		t.Fatal(err)
	}
	uri, err := ParseURI("kbs:///a/b/c")
	if err != nil {
		t.Fatal(err)
	}
	tries := 0
	k.onGet = func(w http.ResponseWriter, _ *http.Request) {
		if tries++; tries == 3 {
			k.onGet = nil
		}
		panic(http.ErrAbortHandler)
	}
	if _, err := c.Resource(t.Context(), tok, uri); err != nil {
		t.Fatal(err)
	}
	if tries != 3 {
		t.Errorf("%d requests failed", tries)
	}
}

// A KBS restarted between challenge and evidence knows nothing of the session.
func TestAttestSurvivesALostSession(t *testing.T) {
	k := newFakeKBS(t)
	k.onAttest = func(w http.ResponseWriter, _ *http.Request) {
		k.onAttest = nil
		refuse(w, 401, "AttestationError", "no such session")
	}
	if _, err := k.client(t, nil).Attest(t.Context(), &fakeTEE{}, nil, ""); err != nil {
		t.Fatal(err)
	}
}

func TestAttestTakesTheSecondRefusalAsFinal(t *testing.T) {
	k := newFakeKBS(t)
	k.onAttest = refuser(401, "AttestationError", "bad evidence")
	if _, err := k.client(t, nil).Attest(t.Context(), &fakeTEE{}, nil, ""); !errors.Is(err, ErrUnauthorized) {
		t.Fatal(err)
	}
	if k.auths != 2 {
		t.Errorf("%d handshakes", k.auths)
	}
}
