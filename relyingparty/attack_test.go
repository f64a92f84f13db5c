package relyingparty

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/sealpod/sealpod/kbs"
	"github.com/sealpod/sealpod/relyingparty/session"
	"github.com/sealpod/sealpod/relyingparty/store"
	"github.com/sealpod/sealpod/relyingparty/verifier"
	"github.com/sealpod/sealpod/relyingparty/verifier/sample"
)

// TestErrors has one case for each row of the protocol's error table, and for
// each endpoint what it does with nonsense.
func TestErrors(t *testing.T) {
	p := newParty(t, nil)
	p.put("a/b/c", "the secret")
	p.allowAll()
	g := newGuest(p)
	g.handshake()
	fresh := newGuest(p)
	fresh.auth()
	b64 := base64.RawURLEncoding.EncodeToString
	big := strings.Repeat("x", DefaultMaxBodyBytes+1)
	for _, test := range []struct {
		name, method, path string
		body               any
		opt                func(*http.Request)
		status             int
		variant, detail    string
	}{
		{"auth: old version", "POST", "auth", `{"version":"0.1.0","tee":"sample","extra-params":""}`, nil, 401, "AttestationError",
			"Attestation error: RCAR handshake Auth failed: KBS Client Protocol Version Mismatch: expect =0.4.0 while the request is 0.1.0"},
		{"auth: pre-release", "POST", "auth", `{"version":"0.4.0-rc1","tee":"sample","extra-params":""}`, nil, 401, "AttestationError", "Version Mismatch"},
		{"auth: no version", "POST", "auth", `{"version":"","tee":"sample","extra-params":""}`, nil, 401, "AttestationError", "Version Mismatch"},
		{"auth: unknown TEE", "POST", "auth", `{"version":"0.4.0","tee":"tdx","extra-params":""}`, nil, 401, "AttestationError", "no verifier"},
		{"auth: no extra-params", "POST", "auth", `{"version":"0.4.0","tee":"sample"}`, nil, 401, "AttestationError", "extra-params"},
		{"auth: no JSON", "POST", "auth", "x", nil, 401, "AttestationError", "Auth failed"},
		{"auth: empty", "POST", "auth", nil, nil, 401, "AttestationError", "Auth failed"},
		{"auth: trailing data", "POST", "auth", authBody + "{}", nil, 401, "AttestationError", "Auth failed"},
		{"auth: oversized", "POST", "auth", big, nil, 413, "PayloadTooLarge", ""},
		{"auth: more than it takes", "POST", "auth", strings.Repeat(" ", maxAuthBytes) + authBody, nil, 413, "PayloadTooLarge", ""},
		{"auth: another method", "GET", "auth", nil, nil, 404, "PluginNotFound", "auth"},
		{"auth: more path", "POST", "auth/x", authBody, nil, 404, "PluginNotFound", ""},
		{"attest: no cookie", "POST", "attest", fresh.attestation(fresh.nonce), nil, 401, "AttestationError", "Attestation error: RCAR handshake Attest failed"},
		{"attest: unknown cookie", "POST", "attest", "{}", withCookie(&http.Cookie{Name: cookieName, Value: strings.Repeat("0", 32)}), 401, "AttestationError", "Attest failed"},
		{"attest: no JSON", "POST", "attest", "x", withCookie(fresh.cookie), 401, "AttestationError", "Attest failed"},
		{"attest: empty object", "POST", "attest", "{}", withCookie(fresh.cookie), 401, "AttestationError", "Attest failed"},
		{"attest: oversized", "POST", "attest", big, withCookie(fresh.cookie), 413, "PayloadTooLarge", ""},
		{"resource: no token", "GET", "resource/a/b/c", nil, nil, 401, "TokenNotFound", "Attestation Token not found"},
		{"resource: session without token", "GET", "resource/a/b/c", nil, withCookie(fresh.cookie), 401, "TokenNotFound", ""},
		{"resource: basic auth", "GET", "resource/a/b/c", nil, func(r *http.Request) { r.SetBasicAuth("a", "b") }, 401, "TokenNotFound", ""},
		{"resource: bad token", "GET", "resource/a/b/c", nil, withBearer("x"), 401, "TokenVerifierError", "Token Verifier error"},
		{"resource: admin token", "GET", "resource/a/b/c", nil, p.asAdmin(), 401, "TokenVerifierError", ""},
		{"resource: missing", "GET", "resource/a/b/none", nil, withBearer(g.token), 401, "PluginInternalError", "Plugin internal error"},
		{"resource: two segments", "GET", "resource/a/b", nil, withBearer(g.token), 401, "PluginInternalError", ""},
		{"resource: four segments", "GET", "resource/a/b/c/d", nil, withBearer(g.token), 401, "PluginInternalError", ""},
		{"resource: trailing slash", "GET", "resource/a/b/c/", nil, withBearer(g.token), 401, "PluginInternalError", ""},
		{"resource: hidden", "GET", "resource/a/b/.c", nil, withBearer(g.token), 401, "PluginInternalError", ""},
		{"resource: long query", "GET", "resource/a/b/c?x=" + strings.Repeat("x", maxPathBytes), nil, withBearer(g.token), 404, "InvalidRequestPath", ""},
		{"resource: parameter twice", "GET", "resource/a/b/c?x=1&x=2", nil, withBearer(g.token), 404, "InvalidRequestPath", ""},
		{"resource: malformed query", "GET", "resource/a/b/c?x=%zz", nil, withBearer(g.token), 404, "InvalidRequestPath", ""},
		{"resource: write without token", "POST", "resource/a/b/c", "x", nil, 401, "AdminAuthInitialization", "failed to initialize [admin] configuration: no bearer token"},
		{"resource: write as guest", "POST", "resource/a/b/c", "x", withBearer(g.token), 401, "AdminAuthInitialization", ""},
		{"resource: delete as guest", "DELETE", "resource/a/b/c", nil, withBearer(g.token), 401, "AdminAuthInitialization", ""},
		{"resource: list as guest", "GET", "resource", nil, withBearer(g.token), 401, "AdminAuthInitialization", ""},
		{"resource: bad path", "POST", "resource/a/b", "x", p.asAdmin(), 401, "PluginInternalError", ""},
		{"resource: put", "PUT", "resource/a/b/c", "x", p.asAdmin(), 401, "PluginInternalError", ""},
		{"resource: delete missing", "DELETE", "resource/a/b/none", nil, p.asAdmin(), 401, "PluginInternalError", ""},
		{"resource: oversized", "POST", "resource/a/b/c", big, p.asAdmin(), 413, "PayloadTooLarge", ""},
		{"attestation-policy: no admin", "POST", "attestation-policy", "{}", nil, 401, "AdminAuthAccess", "admin access denied for endpoint attestation-policy"},
		{"attestation-policy: no JSON", "POST", "attestation-policy", "x", p.asAdmin(), 401, "AttestationError", "Attestation error: Set Attestation Policy failed"},
		{"attestation-policy: no id", "POST", "attestation-policy", policyBody(allowAll), p.asAdmin(), 401, "AttestationError", "Set Attestation Policy failed"},
		{"attestation-policy: no Rego", "POST", "attestation-policy", map[string]string{"policy_id": "default_cpu", "policy": b64([]byte("x"))}, p.asAdmin(), 401, "AttestationError", ""},
		{"attestation-policy: id with a path", "POST", "attestation-policy", map[string]string{"policy_id": "../x", "policy": b64([]byte(allowAll))}, p.asAdmin(), 401, "AttestationError", ""},
		{"attestation-policy: oversized", "POST", "attestation-policy", big, p.asAdmin(), 413, "PayloadTooLarge", ""},
		{"resource-policy: no admin", "POST", "resource-policy", "{}", nil, 401, "AdminAuthAccess", "no bearer token"},
		{"resource-policy: wrong admin", "POST", "resource-policy", "{}", withBearer("x"), 401, "AdminAuthAccess", "not the admin token"},
		{"resource-policy: list without admin", "GET", "resource-policy", nil, nil, 401, "AdminAuthAccess", ""},
		{"resource-policy: no JSON", "POST", "resource-policy", "x", p.asAdmin(), 401, "ParsePolicyError", ""},
		{"resource-policy: no policy", "POST", "resource-policy", "{}", p.asAdmin(), 401, "ParsePolicyError", "missing"},
		{"resource-policy: padded base64", "POST", "resource-policy", `{"policy":"YQ=="}`, p.asAdmin(), 401, "ParsePolicyError", "base64url"},
		{"resource-policy: no UTF-8", "POST", "resource-policy", map[string]string{"policy": b64([]byte{0xff})}, p.asAdmin(), 401, "ParsePolicyError", "UTF-8"},
		{"resource-policy: no Rego", "POST", "resource-policy", policyBody("}{"), p.asAdmin(), 401, "PolicyEngineError", ""},
		{"resource-policy: network", "POST", "resource-policy", policyBody("package policy\nallow if http.send({}).x"), p.asAdmin(), 401, "PolicyEngineError", "http.send"},
		{"resource-policy: recursion", "POST", "resource-policy", policyBody("package policy\nallow if allow"), p.asAdmin(), 401, "PolicyEngineError", "recursive"},
		{"resource-policy: oversized", "POST", "resource-policy", big, p.asAdmin(), 413, "PayloadTooLarge", ""},
		{"reference-value: no admin", "POST", "reference-value", "{}", nil, 401, "AdminAuthAccess", "reference-value"},
		{"reference-value: no JSON", "POST", "reference-value", "x", p.asAdmin(), 401, "RvpsError", ""},
		{"reference-value: oversized", "POST", "reference-value", big, p.asAdmin(), 413, "PayloadTooLarge", ""},
		{"reference-value: unknown", "GET", "reference-value/x", nil, p.asAdmin(), 401, "RvpsError", ""},
		{"reference-value: traversal", "GET", "reference-value/../kbs/x", nil, p.asAdmin(), 401, "RvpsError", ""},
		{"reference-value: read without admin", "GET", "reference-value/x", nil, nil, 401, "AdminAuthAccess", ""},
		{"unknown plugin", "GET", "pkcs11/a", nil, nil, 404, "PluginNotFound", "pkcs11"},
		{"no endpoint", "GET", "", nil, nil, 404, "InvalidRequestPath", ""},
		{"long path", "GET", "resource/" + strings.Repeat("a", maxPathBytes), nil, withBearer(g.token), 404, "InvalidRequestPath", ""},
		{"odd method", "PATCH", "auth", nil, nil, 405, "MethodNotAllowed", ""},
		{"options", "OPTIONS", "resource/a/b/c", nil, nil, 405, "MethodNotAllowed", ""},
	} {
		var opts []func(*http.Request)
		if test.opt != nil {
			opts = append(opts, test.opt)
		}
		a := p.do(test.method, "/kbs/v0/"+test.path, test.body, opts...)
		if a.status != test.status || a.variant() != test.variant || !strings.Contains(string(a.body), test.detail) {
			t.Errorf("%s: %v", test.name, a)
		}
		if ct := a.header.Get("Content-Type"); ct != "application/json" {
			t.Errorf("%s: content type %q", test.name, ct)
		}
	}
	if got := g.open(p.do("GET", "/kbs/v0/resource/a/b/c", nil, withBearer(g.token))); got != "the secret" {
		t.Errorf("after all that the resource is %q", got)
	}
	for _, path := range []string{"/", "/kbs", "/kbs/v1/auth", "//kbs/v0/auth", "/kbs/v0/../v0/auth"} {
		if a := p.do("POST", path, authBody); a.status != 404 {
			t.Errorf("%s: %v", path, a)
		}
	}
}

func TestPlainEndpoints(t *testing.T) {
	p := newParty(t, nil)
	if a := p.do("GET", "/healthz", nil); a.status != 200 || len(a.body) != 0 {
		t.Error(a)
	}
	if a := p.do("GET", "/kbs/v0/resource", nil, p.asAdmin()); string(a.body) != "[]" {
		t.Error(a)
	}
	if a := p.do("GET", "/kbs/v0/resource-policy", nil, p.asAdmin()); string(a.body) != `["resource-policy"]` {
		t.Error(a)
	}
	for _, path := range []string{"/healthz", "/metrics"} {
		if a := p.do("POST", path, nil); a.status != 405 || a.header.Get("Allow") != "GET" {
			t.Errorf("%s: %v", path, a)
		}
	}
	if a := p.do("POST", "/kbs/v0/auth", `{"version":"0.4.0+build","tee":"sample","extra-params":null}`); a.status != 200 {
		t.Errorf("build metadata: %v", a)
	}
}

func TestNonceAttacks(t *testing.T) {
	p := newParty(t, nil)
	honest := newGuest(p)
	honest.handshake()
	recorded := honest.attestation(honest.nonce)
	thief := newGuest(p)
	thief.auth()
	if a := thief.attest(recorded); a.status != 401 || a.variant() != "AttestationError" {
		t.Errorf("a recorded attestation in a new session: %v", a)
	}
	if a := thief.attest(thief.attestation("QUFBQQ==")); a.status != 401 {
		t.Errorf("a nonce of the guest's own: %v", a)
	}
	// The right nonce around evidence for the old one.
	if a := thief.attest(strings.Replace(recorded, honest.nonce, thief.nonce, 1)); a.status != 401 {
		t.Errorf("a recorded report under the new nonce: %v", a)
	}
	if log := p.log.String(); !strings.Contains(log, "nonce is not that of the session") || !strings.Contains(log, "report_data is not that of this handshake") {
		t.Errorf("the log does not name the reasons:\n%s", log)
	}
	if thief.token != "" || p.s.Attestations() != 1 {
		t.Error("a token was issued")
	}
	if a := thief.attest(thief.attestation(thief.nonce)); a.status != 200 {
		t.Errorf("an honest attempt after refused ones: %v", a)
	}
}

func TestStolenCookieAndTokenOpenNothing(t *testing.T) {
	p := newParty(t, nil)
	p.put("a/b/c", "the secret")
	p.allowAll()
	honest := newGuest(p)
	honest.handshake()
	thief := newGuest(p)
	for name, opt := range map[string]func(*http.Request){"cookie": withCookie(honest.cookie), "token": withBearer(honest.token)} {
		a := p.do("GET", "/kbs/v0/resource/a/b/c", nil, opt)
		if _, err := thief.key.Decrypt(a.body); err == nil {
			t.Errorf("%s: opened with another key", name)
		}
		if strings.Contains(string(a.body), "the secret") {
			t.Errorf("%s: %v", name, a)
		}
	}
	// Attesting in the stolen session does not rebind it to the thief's key.
	thief.cookie = honest.cookie
	if a := thief.attest(thief.attestation(honest.nonce)); a.status != 200 || thief.token != honest.token {
		t.Errorf("attesting in a settled session: %v", a)
	}
	key, err := p.verified(thief.token)
	must(t, err)
	if key != honest.key.Public() {
		t.Error("the session was bound to another key")
	}
}

// verified is the TEE key in a token of this relying party.
func (p *party) verified(text string) (kbs.PublicKey, error) {
	claims, err := p.s.issuer.Verify(text)
	if err != nil {
		return kbs.PublicKey{}, err
	}
	return claims.TEEKey()
}

func TestTokenOfAStrangerIsRefused(t *testing.T) {
	p, stranger := newParty(t, nil), newParty(t, nil)
	p.put("a/b/c", "the secret")
	p.allowAll()
	g := newGuest(stranger)
	g.handshake()
	if a := p.do("GET", "/kbs/v0/resource/a/b/c", nil, withBearer(g.token)); a.variant() != "TokenVerifierError" {
		t.Error(a)
	}
	if !strings.Contains(p.log.String(), "another issuer") {
		t.Error("the log does not say why")
	}
}

func TestPathsStayInTheirNamespace(t *testing.T) {
	p := newParty(t, func(c *Config) { c.Store, c.StoreDir = nil, t.TempDir()+"/rp" })
	p.allowAll()
	g := newGuest(p)
	g.handshake()
	for _, path := range []string{
		"../relying_party/token-signing-key.pem", "..%2F..%2Frelying_party", "a/b/..", "a/../b", "%2e%2e/b/c", "a/b/c%00",
		`a\x2Fb\x2Fc`, "a%5Cb/c/d", "a/b/c%0A", "a/b/%C3%BC", "a/b/" + strings.Repeat("c", 250), ".tmp-x/b/c", "a/b/c%2Fd",
	} {
		if a := p.do("POST", "/kbs/v0/resource/"+path, "x", p.asAdmin()); a.status == 200 {
			t.Errorf("%s: written", path)
		}
		if a := p.do("GET", "/kbs/v0/resource/"+path, nil, withBearer(g.token)); a.status == 200 {
			t.Errorf("%s: read", path)
		}
	}
}

func TestFaultsOfTheStoreAreNotShown(t *testing.T) {
	p := newParty(t, nil)
	p.put("a/b/c", "the secret")
	p.allowAll()
	g := newGuest(p)
	g.handshake()
	must(t, p.store.Put(t.Context(), store.KBS, "resource-policy.rego", []byte("package policy\nallow if no_such(input)")))
	a := p.do("GET", "/kbs/v0/resource/a/b/c", nil, withBearer(g.token))
	if a.variant() != "PolicyEngineError" || strings.Contains(string(a.body), "no_such") {
		t.Errorf("broken policy: %v", a)
	}
	must(t, p.store.Delete(t.Context(), store.RelyingParty, adminDigest))
	if a := p.do("GET", "/kbs/v0/resource", nil, p.asAdmin()); a.status != 401 {
		t.Errorf("without a stored digest: %v", a)
	}
	for _, path := range []string{"resource", "resource-policy"} {
		if a := p.do("GET", "/kbs/v0/"+path, nil, p.asAdmin()); a.status != 401 || strings.Contains(string(a.body), adminDigest) {
			t.Errorf("without a stored digest a stranger is told: %v", a)
		}
	}
}

// fullSessions is a session store that cannot take one more.
type fullSessions struct{ session.Store }

func (fullSessions) Put(context.Context, session.Session) error {
	return errors.New("dialling sessions.internal:6379")
}

func TestFaultsOfTheSessionsAreNotShown(t *testing.T) {
	p := newParty(t, func(c *Config) { c.Sessions = fullSessions{session.NewMemory(nil, 0, 0)} })
	if a := p.do("POST", "/kbs/v0/auth", authBody); a.variant() != "AttestationError" || strings.Contains(string(a.body), "internal:") {
		t.Errorf("auth: %v", a)
	}
}

func TestNothingSecretIsLogged(t *testing.T) {
	p := newParty(t, nil)
	p.put("a/b/c", "the secret")
	p.allowAll()
	g := newGuest(p)
	g.handshake()
	g.open(p.do("GET", "/kbs/v0/resource/a/b/c", nil, withBearer(g.token)))
	p.do("GET", "/kbs/v0/resource/a/b/none", nil, withBearer(g.token))
	p.do("GET", "/kbs/v0/resource", nil, withBearer(p.admin+"x"))
	for _, secret := range []string{"the secret", p.admin, g.token, g.cookie.Value} {
		if strings.Contains(p.log.String(), secret) {
			t.Errorf("%q is in the log", secret)
		}
	}
}

func FuzzRequests(f *testing.F) {
	p := newParty(f, nil)
	p.put("a/b/c", "the secret")
	g := newGuest(p)
	g.auth()
	f.Add("auth", authBody)
	f.Add("attest", g.attestation(g.nonce))
	f.Add("resource-policy", `{"policy":"cGFja2FnZSBwb2xpY3k"}`)
	f.Add("reference-value", `{"type":"sample","payload":"e30="}`)
	f.Add("resource//a/b/c", "")
	f.Fuzz(func(t *testing.T, path, body string) {
		for _, method := range []string{http.MethodPost, http.MethodGet} {
			r := httptest.NewRequestWithContext(t.Context(), method, "http://rp/", strings.NewReader(body))
			r.URL.Path = "/kbs/v0/" + path
			r.AddCookie(g.cookie)
			w := httptest.NewRecorder()
			p.s.Handler().ServeHTTP(w, r)
			a := answer{status: w.Code, body: w.Body.Bytes()}
			if a.status != http.StatusOK && a.variant() == "" || strings.Contains(string(a.body), "the secret") {
				t.Errorf("%s %q: %v", method, path, a)
			}
			if strings.Contains(string(a.body), detailPlugin) && strings.Contains(p.log.String(), "panicked") {
				t.Fatalf("%s %q: a handler panicked", method, path)
			}
			p.log.Reset()
		}
	})
}

// TestWorkForStrangersIsBounded holds that an attestation, and a token anybody
// can get, wait for room before a verifier or a policy sees them.
func TestWorkForStrangersIsBounded(t *testing.T) {
	p := newParty(t, nil)
	p.put("a/b/c", "the secret")
	p.allowAll()
	g, attested := newGuest(p), newGuest(p)
	g.auth()
	attested.handshake()
	must(t, p.s.work.Acquire(t.Context(), maxWorkBytes))
	gone, cancel := context.WithCancel(t.Context())
	cancel() // so that waiting ends at once
	serve := func(method, path, body string, c *http.Cookie) (int, string) {
		r := httptest.NewRequestWithContext(gone, method, prefix+path, strings.NewReader(body))
		r.AddCookie(c)
		w := httptest.NewRecorder()
		p.s.Handler().ServeHTTP(w, r)
		return w.Code, w.Body.String()
	}
	if code, body := serve("POST", "attest", g.attestation(g.nonce), g.cookie); code != 401 || !strings.Contains(body, "AttestationError") {
		t.Errorf("attest without room: %d %s", code, body)
	}
	if code, body := serve("GET", "resource/a/b/c", "", attested.cookie); code != 401 || !strings.Contains(body, "PluginInternalError") {
		t.Errorf("resource without room: %d %s", code, body)
	}
	p.s.work.Release(maxWorkBytes)
	g.handshake()
	if got := g.open(p.do("GET", "/kbs/v0/resource/a/b/c", nil, withBearer(g.token))); got != "the secret" {
		t.Errorf("resource with room: %q", got)
	}
	if !p.s.work.TryAcquire(maxWorkBytes) {
		t.Error("room was not given back")
	}
}

// silent verifies samples, but for one that makes it ask somebody who does not
// answer.
type silent struct {
	sample.CPU
	asked chan<- struct{}
}

func (v silent) Verify(ctx context.Context, raw json.RawMessage, want verifier.Expected) ([]verifier.Claims, error) {
	if !strings.Contains(string(raw), "ask") {
		return v.CPU.Verify(ctx, raw, want)
	}
	verifier.Wait(ctx, func() {
		v.asked <- struct{}{}
		<-ctx.Done()
	})
	return nil, ctx.Err()
}

// TestSilentKeyServerKeepsOutNobodyElse: guests that fill all the room, and wait
// for an answer, do not hold up others.
func TestSilentKeyServerKeepsOutNobodyElse(t *testing.T) {
	asked := make(chan struct{})
	p := newParty(t, func(c *Config) { c.Verifiers = []verifier.Verifier{silent{asked: asked}} })
	ctx, hangUp := context.WithCancel(t.Context())
	var waiting sync.WaitGroup
	for range maxWorkBytes / DefaultMaxBodyBytes {
		g := newGuest(p)
		g.auth()
		body := g.attestationWith(g.nonce, func([]byte) string { return `{"ask":1}` })
		body += strings.Repeat(" ", DefaultMaxBodyBytes-len(body))
		waiting.Go(func() {
			r := httptest.NewRequestWithContext(ctx, "POST", prefix+"attest", strings.NewReader(body))
			r.AddCookie(g.cookie)
			w := httptest.NewRecorder()
			p.s.Handler().ServeHTTP(w, r)
			if w.Code != 401 {
				t.Errorf("%d %s", w.Code, w.Body)
			}
		})
		<-asked
	}
	newGuest(p).handshake()
	hangUp()
	waiting.Wait()
	if !p.s.work.TryAcquire(maxWorkBytes) {
		t.Error("room was not given back, or given back twice")
	}
}
