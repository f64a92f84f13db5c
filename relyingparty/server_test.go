package relyingparty

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"go.uber.org/goleak"

	"github.com/sealpod/sealpod/kbs"
	"github.com/sealpod/sealpod/kbs/admin"
	"github.com/sealpod/sealpod/relyingparty/token"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestHandshakeAndResource(t *testing.T) {
	p := newParty(t, nil)
	p.put("default/key/1", "the secret")
	p.allowAll()
	g := newGuest(p)
	g.auth()
	if !regexp.MustCompile(`^kbs-session-id=[0-9a-f]{32}; Expires=[^;]+$`).MatchString(g.cookie.Raw) {
		t.Errorf("cookie %q", g.cookie.Raw)
	}
	a := g.attest(g.attestation(g.nonce))
	if a.status != 200 || a.header.Get("Content-Type") != "application/json" || len(a.cookies) != 1 || a.cookies[0].Value != g.cookie.Value {
		t.Fatalf("attest: %v, cookies %v", a, a.cookies)
	}
	first := g.token
	// By cookie, by token, and with the double slash some clients send.
	for _, a := range []answer{
		p.do("GET", "/kbs/v0/resource/default/key/1", nil, withCookie(g.cookie)),
		p.do("GET", "/kbs/v0/resource/default/key/1", nil, withBearer(g.token)),
		p.do("GET", "/kbs/v0/resource//default/key/1", nil, withBearer(g.token)),
		p.do("GET", "/kbs/v0/resource/default%2Fkey%2F1", nil, withBearer(g.token)),
	} {
		if got := g.open(a); got != "the secret" {
			t.Errorf("resource %q", got)
		}
	}
	if a := g.attest("not even JSON"); a.status != 200 || g.token != first {
		t.Errorf("attesting again: %v", a)
	}
	if n := p.s.Attestations(); n != 1 {
		t.Errorf("%d attestations", n)
	}
	text := string(p.do("GET", "/metrics", nil).body)
	for _, line := range []string{
		"kbs_attestation_requests_total 2", `kbs_attestation_successes_total{tee_type="sample"} 1`,
		`kbs_resource_reads_total{resource_path="default/key/1"} 4`, "kbs_policy_approvals_total 4", "kbs_policy_violations_total 0",
	} {
		if !strings.Contains(text, line+"\n") {
			t.Errorf("metrics without %q:\n%s", line, text)
		}
	}
}

func TestResourceIsReadableByAnotherJWELibrary(t *testing.T) {
	p := newParty(t, nil)
	p.put("a/b/c", "the secret")
	p.allowAll()
	g := newGuest(p)
	g.handshake()
	a := p.do("GET", "/kbs/v0/resource/a/b/c", nil, withBearer(g.token))
	text, err := g.key.MarshalPEM()
	must(t, err)
	block, _ := pem.Decode(text)
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	must(t, err)
	jwe, err := jose.ParseEncryptedJSON(string(a.body), []jose.KeyAlgorithm{jose.ECDH_ES_A256KW}, []jose.ContentEncryption{jose.A256GCM})
	must(t, err)
	if got, err := jwe.Decrypt(key); err != nil || string(got) != "the secret" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestDefaultInstallOpensNothingToSample(t *testing.T) {
	p := newParty(t, nil)
	p.put("a/b/c", "the secret")
	g := newGuest(p)
	g.handshake()
	a := p.do("GET", "/kbs/v0/resource/a/b/c", nil, withBearer(g.token))
	if a.status != 401 || a.variant() != "PolicyDeny" || !strings.Contains(a.detail(), "Access denied by policy: the evidence is only a sample; cpu0 contraindicated (executables 33, hardware 97): ") {
		t.Error(a)
	}
	if log := p.log.String(); !strings.Contains(log, "resource-policy does not allow a/b/c") || !strings.Contains(log, "cpu0 contraindicated") {
		t.Errorf("the log does not explain the refusal:\n%s", log)
	}
}

func TestReferenceValuesAndPoliciesDecide(t *testing.T) {
	p := newParty(t, nil)
	p.put("a/b/c", "one")
	p.put("x/y/z", "two")
	client, err := admin.New(p.url, nil, p.s.AdminToken())
	must(t, err)
	defer client.Close()
	must(t, client.SetResourcePolicy(t.Context(), `package policy
allow if { data["resource-path"][0] == "a"; every s in input.submods { s["ear.status"] == "affirming" } }`))
	read := func(path string) answer {
		g := newGuest(p)
		g.handshake()
		return p.do("GET", "/kbs/v0/resource/"+path, nil, withBearer(g.token))
	}
	if a := read("a/b/c"); a.variant() != "PolicyDeny" {
		t.Errorf("without reference values: %v", a)
	}
	must(t, client.SetReferenceValues(t.Context(), map[string]any{
		"svn": []string{"1"}, "launch_digest": []string{"abcde"}, "major_version": 1, "minimum_minor_version": 4,
	}))
	if a := read("a/b/c"); a.status != 200 {
		t.Errorf("with reference values: %v", a)
	}
	if a := read("x/y/z"); a.variant() != "PolicyDeny" {
		t.Errorf("another path: %v", a)
	}
	must(t, client.SetAttestationPolicy(t.Context(), "default_cpu", "package policy\ntrust_claims := {\"hardware\": 97}"))
	if a := read("a/b/c"); a.variant() != "PolicyDeny" {
		t.Errorf("with a stricter attestation policy: %v", a)
	}
	if list, err := client.ListResources(t.Context()); err != nil || fmt.Sprint(list) != "[a/b/c x/y/z]" {
		t.Errorf("list %v, %v", list, err)
	}
	must(t, client.DeleteResource(t.Context(), "x/y/z"))
	if a := p.do("GET", "/kbs/v0/reference-value/svn", nil, p.asAdmin()); a.status != 200 || string(a.body) != `["1"]` {
		t.Errorf("reference value: %v", a)
	}
}

// clientEvidence is the sample attester as kbs.Client wants it.
type clientEvidence struct{}

func (clientEvidence) TEE() string { return "sample" }

func (clientEvidence) Evidence(_ context.Context, digest []byte) (json.RawMessage, error) {
	return fmt.Appendf(nil, `{"svn":"1","report_data":%q}`, base64.StdEncoding.EncodeToString(digest)), nil
}

func (e clientEvidence) AdditionalEvidence(ctx context.Context, digest []byte) (string, error) {
	device, err := e.Evidence(ctx, digest)
	return `{"sampledevice":` + string(device) + `}`, err
}

func TestOurClient(t *testing.T) {
	p := newParty(t, nil)
	p.put("a/b/c", "the secret")
	p.allowAll()
	for _, alg := range []kbs.KeyAlgorithm{"", kbs.ECDHP521, kbs.RSAOAEP} {
		c, err := kbs.NewClient(kbs.ClientConfig{URL: p.url})
		must(t, err)
		tok, err := c.Attest(t.Context(), clientEvidence{}, nil, alg)
		must(t, err)
		uri, err := kbs.ParseURI("kbs:///a/b/c")
		must(t, err)
		if got, err := c.Resource(t.Context(), tok, uri); err != nil || string(got) != "the secret" {
			t.Errorf("%s: %q, %v", alg, []byte(got), err)
		}
		c.Close()
	}
}

func TestParallelHandshakes(t *testing.T) {
	p := newParty(t, nil)
	p.put("a/b/c", "the secret")
	p.allowAll()
	var wg sync.WaitGroup
	for range 64 {
		g := newGuest(p)
		wg.Go(func() {
			// t.Fatal may not be called here, so the steps report by themselves.
			a := p.do("POST", "/kbs/v0/auth", authBody)
			var c kbs.Challenge
			if err := json.Unmarshal(a.body, &c); err != nil || len(a.cookies) != 1 {
				t.Errorf("auth: %v, %v", a, err)
				return
			}
			a = p.do("POST", "/kbs/v0/attest", g.attestation(c.Nonce), withCookie(a.cookies[0]))
			var r kbs.TokenResponse
			if err := json.Unmarshal(a.body, &r); err != nil {
				t.Errorf("attest: %v, %v", a, err)
				return
			}
			a = p.do("GET", "/kbs/v0/resource/a/b/c", nil, withBearer(r.Token))
			if secret, err := g.key.Decrypt(a.body); err != nil || string(secret) != "the secret" {
				t.Errorf("resource: %v, %v", a, err)
			}
		})
	}
	wg.Wait()
	if n := p.s.Attestations(); n != 64 {
		t.Errorf("%d attestations", n)
	}
}

func TestRestartKeepsResourcesKeyAndAdminToken(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "rp")
	onDisk := func(c *Config) { c.Store, c.StoreDir = nil, dir }
	first := newParty(t, onDisk)
	first.put("a/b/c", "the secret")
	first.allowAll()
	g := newGuest(first)
	g.handshake()
	second := newParty(t, onDisk)
	if second.admin != "" {
		t.Error("a second start shows an admin token")
	}
	if got := g.open(second.do("GET", "/kbs/v0/resource/a/b/c", nil, withBearer(g.token))); got != "the secret" {
		t.Errorf("resource %q", got)
	}
	if a := second.do("GET", "/kbs/v0/resource/a/b/c", nil, withCookie(g.cookie)); a.variant() != "TokenNotFound" {
		t.Errorf("sessions are in memory, yet: %v", a)
	}
	if a := second.do("GET", "/kbs/v0/resource", nil, withBearer(first.admin)); a.status != 200 {
		t.Errorf("the old admin token: %v", a)
	}
	third := newParty(t, func(c *Config) { onDisk(c); c.NewAdminToken = true })
	if a := third.do("GET", "/kbs/v0/resource", nil, withBearer(first.admin)); a.variant() != "AdminAuthInitialization" {
		t.Errorf("the replaced admin token: %v", a)
	}
	if a := second.do("GET", "/kbs/v0/resource", nil, withBearer(third.admin)); a.status != 200 {
		t.Errorf("the new admin token at a second relying party on the store: %v", a)
	}
}

func TestOpenRefusesADamagedStore(t *testing.T) {
	if _, err := Open(Config{}); err == nil {
		t.Error("opened without a store")
	}
	p := newParty(t, nil)
	must(t, p.store.Put(t.Context(), "kbs", "resource-policy.rego", []byte("not Rego")))
	if _, err := Open(Config{Store: p.store}); err == nil || !strings.Contains(err.Error(), "resource-policy") {
		t.Errorf("broken policy: %v", err)
	}
	if _, err := Open(Config{Store: p.store, NewAdminToken: true}); err == nil {
		t.Error("broken policy: opened for a new admin token")
	}
	if a := p.do("GET", "/kbs/v0/resource", nil, p.asAdmin()); a.status != 200 {
		t.Errorf("a start that failed has replaced the admin token: %v", a)
	}
}

func TestExpiry(t *testing.T) {
	p := newParty(t, nil)
	p.put("a/b/c", "the secret")
	p.allowAll()
	g := newGuest(p)
	g.auth()
	p.clock.add(5 * time.Minute)
	if a := g.attest(g.attestation(g.nonce)); a.status != 401 || a.variant() != "AttestationError" {
		t.Errorf("expired session: %v", a)
	}
	g.handshake()
	p.clock.add(5*time.Minute + token.Leeway + 2*time.Second)
	if a := p.do("GET", "/kbs/v0/resource/a/b/c", nil, withBearer(g.token)); a.variant() != "TokenVerifierError" {
		t.Errorf("expired token: %v", a)
	}
	if a := p.do("GET", "/kbs/v0/resource/a/b/c", nil, withCookie(g.cookie)); a.variant() != "TokenNotFound" {
		t.Errorf("expired session with a token: %v", a)
	}
}

// BenchmarkHandshake is auth and attest over loopback HTTP, in parallel.
func BenchmarkHandshake(b *testing.B) {
	p := newParty(b, nil)
	p.allowAll()
	handshakes(b, p, authBody, newGuest(p).attestation)
}

// handshakes measures complete handshakes in parallel; attest makes the body of
// POST attest for a nonce.
func handshakes(b *testing.B, p *party, auth string, attest func(nonce string) string) {
	b.Helper()
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			a := p.do("POST", "/kbs/v0/auth", auth)
			var c kbs.Challenge
			if err := json.Unmarshal(a.body, &c); err != nil {
				b.Error(err)
				return
			}
			if a = p.do("POST", "/kbs/v0/attest", attest(c.Nonce), withCookie(a.cookies[0])); a.status != http.StatusOK {
				b.Error(a)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "handshakes/s")
}

// BenchmarkResource is GET of a 32-byte key with a token.
func BenchmarkResource(b *testing.B) {
	p := newParty(b, nil)
	p.put("a/b/c", strings.Repeat("k", 32))
	p.allowAll()
	g := newGuest(p)
	g.handshake()
	b.ReportAllocs()
	for b.Loop() {
		if a := p.do("GET", "/kbs/v0/resource/a/b/c", nil, withBearer(g.token)); a.status != http.StatusOK {
			b.Fatal(a)
		}
	}
}
