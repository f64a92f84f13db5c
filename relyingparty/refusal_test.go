package relyingparty

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"strings"
	"testing"

	"github.com/sealpod/sealpod/kbs"
	"github.com/sealpod/sealpod/kbs/admin"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/relyingparty/verifier"
)

// claimed is a verifier of TDX that takes every evidence for genuine: the claims
// are what the guest sends. A guest that sends a text gets that as the error.
type claimed struct{}

func (claimed) TEE() string { return "tdx" }

func (claimed) Verify(_ context.Context, raw json.RawMessage, _ verifier.Expected) ([]verifier.Claims, error) {
	var text string
	if json.Unmarshal(raw, &text) == nil {
		if text == "internal" {
			return nil, errors.New("asking https://pccs.owner.internal: connection refused")
		}
		return nil, fmt.Errorf("%w: %s", verifier.ErrEvidence, text)
	}
	var values map[string]any
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if err := d.Decode(&values); err != nil {
		return nil, fmt.Errorf("%w: %w", verifier.ErrEvidence, err)
	}
	return []verifier.Claims{{Class: verifier.CPU, Values: values}}, nil
}

// says is a guest with that evidence.
type says string

func (says) TEE() string { return "tdx" }

func (s says) Evidence(context.Context, []byte) (json.RawMessage, error) {
	return json.RawMessage(s), nil
}

func (says) AdditionalEvidence(context.Context, []byte) (string, error) { return "", nil }

const expectedTD = `{"quote":{"header":{"tee_type":"81000000","vendor_id":"939a7233f79c4ca9940a0db3957f0607"},
	"body":{"mr_td":"bb","rtmr_1":"11","rtmr_2":"22","xfam":"e7"}},"td_attributes":{"debug":false,"migratable":false},
	"tcb_status":"UpToDate","collateral_expiration_status":"0","report_data":"x","init_data":"y"}`

// goodTD are the reference values of that TD, as no other text has them.
var goodTD = map[string]any{
	"mr_td": []string{"bb", "secret-mr_td"}, "xfam": []string{"e7", "secret-xfam"},
	"rtmr_1": []string{"11", "secret-rtmr_1"}, "rtmr_2": []string{"22", "secret-rtmr_2"},
}

// refuse is the way of a guest to a resource that it is not to get; it returns
// what the guest is told, by the KBS and by our client.
func (p *party) refuse(ev kbs.Evidencer, path string) (detail, cause string) {
	p.t.Helper()
	c, err := kbs.NewClient(kbs.ClientConfig{URL: p.url})
	must(p.t, err)
	defer c.Close()
	tok, err := c.Attest(p.t.Context(), ev, nil, "")
	if err != nil {
		if !errors.Is(err, kbs.ErrUnauthorized) {
			p.t.Fatal(err)
		}
		return "", podvm.Cause(err)
	}
	a := p.do("GET", "/kbs/v0/resource/"+path, nil, withBearer(tok.JWT))
	if a.status != 401 || a.variant() != "PolicyDeny" {
		p.t.Fatal(a)
	}
	uri, err := kbs.ParseURI("kbs:///" + path)
	must(p.t, err)
	if _, err = c.Resource(p.t.Context(), tok, uri); !errors.Is(err, kbs.ErrDenied) {
		p.t.Fatal(err)
	}
	if !strings.Contains(podvm.Cause(err), kbs.Reasons(err)) || kbs.Reasons(err) == "" {
		p.t.Errorf("cause %q without the reasons %q", podvm.Cause(err), kbs.Reasons(err))
	}
	return a.detail(), podvm.Cause(err)
}

// id is the end of a text that says under which id the log has more.
var id = regexp.MustCompile(` \(KBS request ([A-Z2-7]{16})\)`)

// logged is the first line of the log with that text.
func (p *party) logged(text string) string {
	for line := range strings.Lines(p.log.String()) {
		if strings.Contains(line, text) {
			return line
		}
	}
	return ""
}

func newTDXParty(t *testing.T) (*party, *admin.Client) {
	t.Helper()
	p := newParty(t, func(c *Config) { c.Verifiers = []verifier.Verifier{claimed{}} })
	p.put("a/b/c", "the secret")
	client, err := admin.New(p.url, nil, p.s.AdminToken())
	must(t, err)
	t.Cleanup(client.Close)
	return p, client
}

func TestRefusalNamesTheClaimThatFailed(t *testing.T) {
	p, client := newTDXParty(t)
	without := func(name string) map[string]any { m := maps.Clone(goodTD); m[name] = nil; return m }
	for name, c := range map[string]struct {
		old, changed string
		values       map[string]any
		want         string
	}{
		"debug":              {`"debug":false`, `"debug":true`, goodTD, `cpu0 warning (configuration 36): tdx.td_attributes.debug is true`},
		"old TCB":            {`UpToDate`, `OutOfDate`, goodTD, `cpu0 contraindicated (hardware 97): tdx.tcb_status is "OutOfDate"`},
		"another kernel":     {`"rtmr_1":"11"`, `"rtmr_1":"12"`, goodTD, `cpu0 warning (executables 33): tdx.quote.body.rtmr_1 is not among the reference values "rtmr_1"`},
		"no reference value": {``, ``, without("mr_td"), `cpu0 contraindicated (hardware 97): reference value "mr_td" is not set`},
		"hostile text":       {`UpToDate`, `\u001b[31m\nUpToDate`, goodTD, `cpu0 contraindicated (hardware 97): tdx.tcb_status is "\u001b[31m\nUpToDate"`},
	} {
		must(t, client.SetReferenceValues(t.Context(), c.values))
		p.log.Reset()
		detail, cause := p.refuse(says(strings.Replace(expectedTD, c.old, c.changed, 1)), "a/b/c")
		m := id.FindStringSubmatch(detail)
		if m == nil || detail != "Access denied by policy: "+c.want+m[0] {
			t.Errorf("%s: %q, want %q", name, detail, c.want)
			continue
		}
		if !strings.Contains(cause, c.want) || strings.Contains(detail+cause, "secret") || strings.ContainsAny(detail+cause, "\n\x1b") {
			t.Errorf("%s: our client says %q", name, cause)
		}
		quoted := strings.Trim(fmt.Sprintf("%q", c.want), `"`)
		if line := p.logged(m[1]); !strings.Contains(line, "level=WARN") || !strings.Contains(line, quoted) {
			t.Errorf("%s: the log says %q of the refusal", name, line)
		}
		if line := p.logged("unmet="); !strings.Contains(line, "attest") || !strings.Contains(line, quoted) {
			t.Errorf("%s: the log says %q of the attestation", name, line)
		}
	}
}

func TestRefusalByAnotherRelyingPartyOnTheStore(t *testing.T) {
	p, _ := newTDXParty(t)
	other := newParty(t, func(c *Config) { c.Store, c.Verifiers = p.store, []verifier.Verifier{claimed{}} })
	c, err := kbs.NewClient(kbs.ClientConfig{URL: p.url})
	must(t, err)
	defer c.Close()
	tok, err := c.Attest(t.Context(), says(expectedTD), nil, "")
	must(t, err)
	a := other.do("GET", "/kbs/v0/resource/a/b/c", nil, withBearer(tok.JWT))
	if !strings.Contains(a.detail(), `reference value "mr_td" is not set`) {
		t.Error(a)
	}
}

func TestReasonsOfTheOwnersPolicies(t *testing.T) {
	p, client := newTDXParty(t)
	attests := func(text string) { t.Helper(); must(t, client.SetAttestationPolicy(t.Context(), "default_cpu", text)) }
	releases := func(text string) { t.Helper(); must(t, client.SetResourcePolicy(t.Context(), text)) }
	want := func(detail, want string) {
		t.Helper()
		if got := id.ReplaceAllString(detail, ""); got != "Access denied by policy: "+want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	attests("package policy\ntrust_claims := {\"hardware\": 97, \"configuration\": 2}")
	detail, _ := p.refuse(says(expectedTD), "a/b/c")
	want(detail, "cpu0 contraindicated (hardware 97)")

	attests("package policy\ntrust_claims := {\"hardware\": 2}")
	releases("package policy\nallow if data[\"resource-path\"][0] == \"x\"")
	detail, _ = p.refuse(says(expectedTD), "a/b/c")
	want(detail, "the guest is affirmed, but may not read this")

	releases(`package policy
allow if data["resource-path"][0] == "x"
reasons contains sprintf("repository %s is closed", [data["resource-path"][0]]) if not allow
reasons contains 7`)
	detail, _ = p.refuse(says(expectedTD), "a/b/c")
	want(detail, "repository a is closed")

	attests("package policy\ntrust_claims := {\"hardware\": 97}\nreasons := {\"too old\"}")
	detail, _ = p.refuse(says(expectedTD), "a/b/c")
	want(detail, "repository a is closed; cpu0 contraindicated (hardware 97): too old")

	// Reasons that break or do not end leave the refusal as it is.
	releases("package policy\nallow if input.missing\nreasons := data[\"resource-path\"][_]")
	detail, _ = p.refuse(says(expectedTD), "a/b/c")
	want(detail, "cpu0 contraindicated (hardware 97): too old")
	if !strings.Contains(p.log.String(), "The resource policy gives no reasons") {
		t.Error("the log does not say that the rule is broken")
	}

	// Hostile reasons, of both.
	const flood = "reasons contains sprintf(\"%d%d%d%d\\n\\u001b%s\", [a, b, c, d, x]) if { some a in n; some b in n; some c in n; some d in n }\n" +
		"n := {0, 1, 2, 3, 4, 5, 6, 7, 8, 9}\nx := concat(\"\", [\"xxxxxxxxxxxxxxxx\" | some _ in n; some _ in n])\n"
	attests("package policy\ntrust_claims := {\"hardware\": 97}\n" + flood)
	releases("package policy\nallow := false\n" + flood)
	detail, cause := p.refuse(says(expectedTD), "a/b/c")
	if len(detail) > 1024 || strings.ContainsAny(detail+cause, "\n\x1b") || id.FindString(cause) == "" {
		t.Errorf("%d bytes: %q\n%q", len(detail), detail, cause)
	}
	for line := range strings.Lines(p.log.String()) {
		if len(line) > 2*maxLogBytes {
			t.Errorf("a log line of %d bytes", len(line))
		}
	}
}

// TestRefusedEvidenceHasItsCause holds what the guest is told: which check its
// evidence does not pass, and of what is wrong at the owner only that it is.
func TestRefusedEvidenceHasItsCause(t *testing.T) {
	p, client := newTDXParty(t)
	for evidence, c := range map[string]struct{ guest, log string }{
		`"REPORTDATA is not that of this handshake"`: {
			"verifying tdx evidence: evidence not accepted: REPORTDATA is not that of this handshake", "REPORTDATA is not that",
		},
		`"a\n\u001b[31mb"`: {"evidence not accepted: a  [31mb", "evidence not accepted: a  [31mb"},
		`7`:                {"verifying tdx evidence: evidence not accepted: json: cannot unmarshal number", "cannot unmarshal"},
		`"internal"`:       {"Attest failed: the relying party cannot verify evidence at the moment", "https://pccs.owner.internal"},
		`{"` + strings.Repeat("x", 1<<20) + `":1}`: {"the evidence does not fit into a token", "token too large"},
	} {
		p.log.Reset()
		_, cause := p.refuse(says(evidence), "a/b/c")
		m := id.FindStringSubmatch(cause)
		if m == nil || !strings.Contains(cause, c.guest) || strings.Contains(cause, "internal") || strings.ContainsAny(cause, "\n\x1b") {
			t.Errorf("%.40s: the guest is told %q, want %q", evidence, cause, c.guest)
			continue
		}
		if line := p.logged(m[1]); !strings.Contains(line, c.log) {
			t.Errorf("%.40s: the log says %q, want %q", evidence, line, c.log)
		}
	}
	must(t, client.SetAttestationPolicy(t.Context(), "default_cpu", "package policy\ntrust_claims := {\"hardware\": 2} if input.owners_secret"))
	if _, cause := p.refuse(says(expectedTD), "a/b/c"); !strings.Contains(cause, "the attestation policy gives no result") || strings.Contains(cause, "trust_claims") {
		t.Errorf("policy without a result: %q", cause)
	}
}

func TestRefusedAttestationHasItsCause(t *testing.T) {
	p := newParty(t, nil)
	g := newGuest(p)
	g.auth()
	want := func(a answer, text string) {
		t.Helper()
		const head = "Attestation error: RCAR handshake Attest failed: "
		if a.status != 401 || !strings.HasPrefix(a.detail(), head+text) || id.FindString(a.detail()) == "" {
			t.Errorf("%q, want %q", a.detail(), text)
		}
	}
	want(p.do("POST", "/kbs/v0/attest", "{}"), "no such session")
	want(g.attest(g.attestation("QUFBQQ==")), "the nonce is not that of the session")
	want(g.attest("x"), "malformed attestation: ")
	want(g.attest(strings.Replace(g.attestation(g.nonce), `"svn":"1"`, `"svn":1`, 1)), "verifying sample evidence: evidence not accepted: ")
	g.key = newGuest(p).key
	body := g.attestation(g.nonce)
	g.key = newGuest(p).key
	k := g.key.Public()
	var a map[string]json.RawMessage
	must(t, json.Unmarshal([]byte(body), &a))
	a["runtime-data"] = fmt.Appendf(nil, `{"nonce":%q,"tee-pubkey":{"kty":%q,"crv":%q,"alg":%q,"x":%q,"y":%q}}`, g.nonce, k.KTY, k.CRV, k.ALG, k.X, k.Y)
	raw, err := json.Marshal(a)
	must(t, err)
	want(g.attest(string(raw)), "verifying sample evidence: evidence not accepted: report_data is not that of this handshake")
}
