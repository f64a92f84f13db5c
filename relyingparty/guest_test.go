package relyingparty

import (
	"bytes"
	"context"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/sealpod/sealpod/kbs"
	"github.com/sealpod/sealpod/relyingparty/store"
)

const allowAll = "package policy\nallow := true"

// clock is a time that tests set.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time { c.mu.Lock(); defer c.mu.Unlock(); return c.t }

func (c *clock) add(d time.Duration) { c.mu.Lock(); defer c.mu.Unlock(); c.t = c.t.Add(d) }

// party is a relying party under test.
type party struct {
	t     testing.TB
	s     *Server
	url   string
	admin string
	clock *clock
	log   *bytes.Buffer // read it after the requests
	http  *http.Transport
	store store.Store
}

// syncWriter lets handlers log at the same time.
type syncWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (w *syncWriter) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.w.Write(b)
}

func newParty(t testing.TB, change func(*Config)) *party {
	t.Helper()
	p := &party{t: t, clock: &clock{t: time.Now()}, log: new(bytes.Buffer), store: store.NewMemory()}
	cfg := Config{Store: p.store, Now: p.clock.now, Log: slog.New(slog.NewTextHandler(&syncWriter{w: p.log}, nil))}
	if change != nil {
		change(&cfg)
	}
	var err error
	p.s, err = Open(cfg)
	must(t, err)
	p.admin = string(p.s.AdminToken())
	srv := httptest.NewServer(p.s.Handler())
	p.url = srv.URL
	p.http = &http.Transport{MaxIdleConnsPerHost: 64}
	t.Cleanup(func() {
		p.http.CloseIdleConnections()
		srv.Close()
		must(t, p.s.Close())
	})
	return p
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// answer is a response that was read.
type answer struct {
	status  int
	header  http.Header
	body    []byte
	cookies []*http.Cookie
}

// variant is the name of the error in the answer.
func (a answer) variant() string {
	var e kbs.ErrorInfo
	if json.Unmarshal(a.body, &e) != nil || len(e.Type) < len(kbs.ErrorTypePrefix) {
		return ""
	}
	return e.Type[len(kbs.ErrorTypePrefix):]
}

// detail is the explanation of the error in the answer.
func (a answer) detail() string {
	var e kbs.ErrorInfo
	_ = json.Unmarshal(a.body, &e)
	return e.Detail
}

func (a answer) String() string { return fmt.Sprintf("%d %s %.300s", a.status, a.variant(), a.body) }

// do sends one request; opts change it before it goes.
func (p *party) do(method, path string, body any, opts ...func(*http.Request)) answer {
	p.t.Helper()
	var raw []byte
	switch b := body.(type) {
	case nil:
	case []byte:
		raw = b
	case string:
		raw = []byte(b)
	default:
		var err error
		raw, err = json.Marshal(b)
		must(p.t, err)
	}
	req, err := http.NewRequestWithContext(context.Background(), method, p.url+path, bytes.NewReader(raw))
	must(p.t, err)
	for _, o := range opts {
		o(req)
	}
	resp, err := p.http.RoundTrip(req)
	must(p.t, err)
	defer resp.Body.Close() //nolint:errcheck // test
	got, err := io.ReadAll(resp.Body)
	must(p.t, err)
	return answer{resp.StatusCode, resp.Header, got, resp.Cookies()}
}

func withBearer(token string) func(*http.Request) {
	return func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+token) }
}

func withCookie(c *http.Cookie) func(*http.Request) {
	return func(r *http.Request) { r.AddCookie(c) }
}

func (p *party) asAdmin() func(*http.Request) { return withBearer(p.admin) }

// put places a resource.
func (p *party) put(path, value string) {
	p.t.Helper()
	if a := p.do("POST", "/kbs/v0/resource/"+path, value, p.asAdmin()); a.status != 200 {
		p.t.Fatal(a)
	}
}

func policyBody(text string) map[string]string {
	return map[string]string{"policy": base64.RawURLEncoding.EncodeToString([]byte(text))}
}

// allowAll opens every resource to every token.
func (p *party) allowAll() {
	p.t.Helper()
	if a := p.do("POST", "/kbs/v0/resource-policy", policyBody(allowAll), p.asAdmin()); a.status != 200 {
		p.t.Fatal(a)
	}
}

// guest is a client of the protocol written from its description: it shares
// with the server only the key type.
type guest struct {
	p      *party
	key    *kbs.TEEKey
	cookie *http.Cookie
	nonce  string
	token  string
}

func newGuest(p *party) *guest {
	p.t.Helper()
	key, err := kbs.GenerateTEEKey("")
	must(p.t, err)
	return &guest{p: p, key: key}
}

const authBody = `{"version":"0.4.0","tee":"sample","extra-params":{"supported-hash-algorithms":["sha384"]}}`

// auth gets a session and a nonce.
func (g *guest) auth() {
	g.p.t.Helper()
	a := g.p.do("POST", "/kbs/v0/auth", authBody)
	var c struct {
		Nonce       string  `json:"nonce"`
		ExtraParams *string `json:"extra-params"`
	}
	if err := json.Unmarshal(a.body, &c); err != nil || a.status != 200 || len(a.cookies) != 1 || len(c.Nonce) != 44 || c.ExtraParams == nil || *c.ExtraParams != "" {
		g.p.t.Fatalf("auth: %v, %v", a, err)
	}
	g.cookie, g.nonce = a.cookies[0], c.Nonce
}

// attestation is the body of POST attest for the nonce, with evidence of a
// sample.
func (g *guest) attestation(nonce string) string {
	return g.attestationWith(nonce, func(digest []byte) string {
		return fmt.Sprintf(`{"svn":"1","report_data":%q}`, base64.StdEncoding.EncodeToString(digest))
	})
}

// attestationWith is the body of POST attest for the nonce, with evidence over
// its digest.
func (g *guest) attestationWith(nonce string, evidence func(digest []byte) string) string {
	k := g.key.Public()
	canonical := fmt.Sprintf(`{"additional-evidence":"","nonce":%q,"tee-pubkey":{"alg":%q,"crv":%q,"kty":%q,"x":%q,"y":%q}}`,
		nonce, k.ALG, k.CRV, k.KTY, k.X, k.Y)
	digest := sha512.Sum384([]byte(canonical))
	return fmt.Sprintf(`{"init-data":null,"runtime-data":{"nonce":%q,"tee-pubkey":{"kty":%q,"crv":%q,"alg":%q,"x":%q,"y":%q}},
		"tee-evidence":{"primary_evidence":%s,"additional_evidence":""}}`,
		nonce, k.KTY, k.CRV, k.ALG, k.X, k.Y, evidence(digest[:]))
}

// attest sends an attestation in the session.
func (g *guest) attest(body string) answer {
	g.p.t.Helper()
	a := g.p.do("POST", "/kbs/v0/attest", body, withCookie(g.cookie))
	if a.status == 200 {
		var r struct {
			Token string `json:"token"`
		}
		must(g.p.t, json.Unmarshal(a.body, &r))
		g.token = r.Token
	}
	return a
}

// handshake attests honestly.
func (g *guest) handshake() {
	g.p.t.Helper()
	g.auth()
	if a := g.attest(g.attestation(g.nonce)); a.status != 200 || g.token == "" {
		g.p.t.Fatal(a)
	}
}

// open decrypts a resource.
func (g *guest) open(a answer) string {
	g.p.t.Helper()
	if a.status != 200 || a.header.Get("Content-Type") != "application/json" {
		g.p.t.Fatal(a)
	}
	secret, err := g.key.Decrypt(a.body)
	must(g.p.t, err)
	return string(secret)
}
