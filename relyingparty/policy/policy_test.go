package policy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/sealpod/sealpod/relyingparty/store"
)

// values is a Reference over a map.
func values(m map[string]any) Reference {
	return func(_ context.Context, name string) (any, error) { return m[name], nil }
}

func compile(t testing.TB, e Engine, text string) *Policy {
	t.Helper()
	p, err := e.Compile(context.Background(), "test", text)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func decode(t testing.TB, text string) map[string]any {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	var v map[string]any
	if err := d.Decode(&v); err != nil {
		t.Fatal(err)
	}
	return v
}

const sampleInput = `{"sample":{"svn":"1","launch_digest":"abcde","debug":false,"platform_version":{"major":1,"minor":4}},"report_data":"x"}`

func TestDefaultCPUPolicyOnSample(t *testing.T) {
	good := map[string]any{
		"launch_digest": []any{"other", "abcde"}, "svn": []any{"1"},
		"major_version": json.Number("1"), "minimum_minor_version": json.Number("4"),
	}
	with := func(name string, v any) map[string]any {
		m := maps.Clone(good)
		m[name] = v
		return m
	}
	for name, test := range map[string]struct {
		ref                   map[string]any
		executables, hardware int
		status                string
	}{
		"no reference values":     {nil, 33, 97, Contraindicated},
		"all match":               {good, 3, 2, Affirming},
		"other launch digest":     {with("launch_digest", []any{"zzz"}), 33, 2, Warning},
		"other svn":               {with("svn", []any{"2"}), 3, 97, Contraindicated},
		"svn of another type":     {with("svn", []any{json.Number("1")}), 3, 97, Contraindicated},
		"other major version":     {with("major_version", json.Number("2")), 3, 97, Contraindicated},
		"minor version too low":   {with("minimum_minor_version", json.Number("5")), 3, 97, Contraindicated},
		"minor version above":     {with("minimum_minor_version", json.Number("3")), 3, 2, Affirming},
		"minimum is missing":      {with("minimum_minor_version", nil), 3, 97, Contraindicated},
		"list instead of a value": {with("minimum_minor_version", []any{json.Number("1")}), 3, 97, Contraindicated},
	} {
		a, err := compile(t, Engine{Reference: values(test.ref)}, defaultCPU).Appraise(t.Context(), decode(t, sampleInput))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if a.Vector["executables"] != test.executables || a.Vector["hardware"] != test.hardware || a.Vector["configuration"] != 2 ||
			a.Status != test.status || len(a.Vector) != 8 {
			t.Errorf("%s: %+v", name, a)
		}
	}
	debug := decode(t, strings.Replace(sampleInput, `"debug":false`, `"debug":true`, 1))
	if a, err := compile(t, Engine{Reference: values(good)}, defaultCPU).Appraise(t.Context(), debug); err != nil || a.Vector["configuration"] != 36 {
		t.Errorf("debug: %+v, %v", a, err)
	}
}

func TestDefaultCPUPolicyNamesTheWorkload(t *testing.T) {
	input := decode(t, `{"init_data_claims":{"agent_policy_claims":{"containers":[
		{"OCI":{"Annotations":{"io.kubernetes.cri.image-name":"img"},"Process":{"User":{"UID":65535}}}}]}}}`)
	p := compile(t, Engine{}, defaultCPU)
	for name, test := range map[string]struct {
		in   any
		want any
	}{
		"with claims":    {input, map[string]any{"validated": map[string]any{"container_images": []any{"img"}, "container_uids": []any{json.Number("65535")}}}},
		"without claims": {map[string]any{}, map[string]any{"validated": map[string]any{}}},
	} {
		a, err := p.Appraise(t.Context(), test.in)
		if err != nil || !reflect.DeepEqual(a.Extensions["ear.trustee.identifiers"], test.want) {
			t.Errorf("%s: %v, %v", name, a.Extensions, err)
		}
	}
}

func TestDefaultGPUPolicy(t *testing.T) {
	in := decode(t, `{"sampledevice":{"svn":"1"}}`)
	for want, ref := range map[int]map[string]any{97: nil, 2: {"device_svn": []any{"1"}}} {
		a, err := compile(t, Engine{Reference: values(ref)}, defaultGPU).Appraise(t.Context(), in)
		if err != nil || a.Vector["hardware"] != want || a.Vector["executables"] != 33 {
			t.Errorf("hardware %d: %+v, %v", want, a, err)
		}
	}
}

func TestResourcePolicies(t *testing.T) {
	const head = "package policy\n"
	token := `{"submods":{"cpu0":{"ear.status":"affirming","ear.veraison.annotated-evidence":{"%s":{"svn":"1"}}}}}`
	what := map[string]any{"plugin": "resource", "resource-path": []any{"a", "b", "c"}, "query": map[string]any{}}
	other := map[string]any{"plugin": "pkcs11", "resource-path": []any{}, "query": map[string]any{}}
	for name, test := range map[string]struct {
		policy, token string
		data          map[string]any
		want          bool
	}{
		"default refuses sample":       {defaultResource, fmt.Sprintf(token, "sample"), what, false},
		"default allows affirmed tdx":  {defaultResource, fmt.Sprintf(token, "tdx"), what, true},
		"default refuses unaffirmed":   {defaultResource, strings.Replace(fmt.Sprintf(token, "tdx"), "affirming", "contraindicated", 1), what, false},
		"default refuses one of two":   {defaultResource, `{"submods":{"cpu0":{"ear.status":"affirming"},"gpu0":{"ear.status":"warning"}}}`, what, false},
		"default refuses no status":    {defaultResource, `{"submods":{"cpu0":{}}}`, what, false},
		"default without evidence":     {defaultResource, `{}`, what, false},
		"default for another plugin":   {defaultResource, fmt.Sprintf(token, "tdx"), other, false},
		"by path":                      {head + `allow if data["resource-path"][0] == "a"`, `{}`, what, true},
		"by another path":              {head + `allow if data["resource-path"][0] == "b"`, `{}`, what, false},
		"by status":                    {head + `allow if input.submods.cpu0["ear.status"] == "affirming"`, fmt.Sprintf(token, "x"), what, true},
		"undefined":                    {head + `allow if input.missing`, `{}`, what, false},
		"no rule":                      {head + `deny := true`, `{}`, what, false},
		"text true":                    {head + `allow := "true"`, `{}`, what, false},
		"number one":                   {head + `allow := 1`, `{}`, what, false},
		"older syntax with the import": {head + "import rego.v1\nallow if { true }", `{}`, what, true},
	} {
		got, err := compile(t, Engine{}, test.policy).Allow(t.Context(), decode(t, test.token), test.data)
		if err != nil || got != test.want {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	clash := compile(t, Engine{}, head+"allow := input.a\nallow := input.b")
	if got, err := clash.Allow(t.Context(), decode(t, `{"a":true,"b":false}`), what); got || !errors.Is(err, ErrEval) {
		t.Errorf("two values: %v, %v", got, err)
	}
}

func TestTextsThatAreNoPolicy(t *testing.T) {
	const head = "package policy\n"
	for name, text := range map[string]string{
		"empty": "", "no Rego": "}{", "comment only": "# nothing", "another package": "package other\nallow := true",
		"sub-package": "package policy.sub\nallow := true", "unsafe variable": head + "allow if x == y",
		"recursion":        head + "allow if allow",
		"mutual recursion": head + "allow if a\na if b\nb if a",
		"network":          head + `allow if http.send({"method":"GET","url":"http://127.0.0.1"}).status_code == 200`,
		"name lookup":      head + `allow if net.lookup_ip_addr("example.org")`,
		"environment":      head + `allow if opa.runtime().env.HOME`,
		"randomness":       head + `allow if rand.intn("x", 2) == 1`,
		"JWT signing":      head + `x := io.jwt.encode_sign({}, {}, {})`,
		"schema fetch":     head + `allow if json.match_schema({}, {})[0]`,
		"range":            head + `allow if count(numbers.range(1, 1000000000)) > 1`,
		"unknown builtin":  head + `allow if no_such(1)`,
		"remote import":    head + "import data.other\nallow if other.x(1)",
		"old syntax":       head + `allow { true }`,
		"oversized":        head + "#" + strings.Repeat("x", MaxTextBytes),
		"deep":             head + "x := " + strings.Repeat("[", 100000) + strings.Repeat("]", 100000),
	} {
		if _, err := (Engine{}).Compile(t.Context(), "test", text); !errors.Is(err, ErrPolicy) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// endless takes 10^12 steps; the engine has no other way to loop.
const endless = `package policy
d := [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
trust_claims := {"hardware": 2} if slow
allow if slow
slow if { some a in d; some b in d; some c in d; some e in d; some f in d; some g in d
	some h in d; some i in d; some j in d; some k in d; some l in d; some m in d
	a + b + c + e + f + g + h + i + j + k + l + m == 1000 }`

func TestEndlessPolicyRunsIntoTheTimeLimit(t *testing.T) {
	p := compile(t, Engine{Timeout: 20 * time.Millisecond}, endless)
	if _, err := p.Appraise(t.Context(), map[string]any{}); !errors.Is(err, ErrSlow) || !errors.Is(err, ErrEval) {
		t.Errorf("appraising: %v", err)
	}
	if ok, err := p.Allow(t.Context(), nil, nil); ok || !errors.Is(err, ErrSlow) {
		t.Errorf("allowing: %v, %v", ok, err)
	}
	if err := p.Try(t.Context()); !errors.Is(err, ErrPolicy) || !errors.Is(err, ErrSlow) {
		t.Errorf("upload: %v", err)
	}
}

func TestVectorsThatAreNoVector(t *testing.T) {
	for name, rule := range map[string]string{
		"undefined": `trust_claims := {"hardware": 2} if input.missing`, "empty": `trust_claims := {}`,
		"text": `trust_claims := "x"`, "unknown name": `trust_claims := {"software": 2}`,
		"too high": `trust_claims := {"hardware": 128}`, "too low": `trust_claims := {"hardware": -129}`,
		"fraction": `trust_claims := {"hardware": 2.5}`, "text value": `trust_claims := {"hardware": "2"}`,
		"extension without key":         "extensions := [{\"name\": \"x\", \"value\": 1}]",
		"extension without value":       "extensions := [{\"name\": \"x\", \"key\": 1}]",
		"extension with a wide key":     "extensions := [{\"name\": \"x\", \"key\": 2147483648, \"value\": 1}]",
		"extension replaces the status": "extensions := [{\"name\": \"ear.status\", \"key\": 1, \"value\": \"affirming\"}]",
		"extensions is an object":       "extensions := {}",
		"extension is text":             `extensions := ["x"]`,
	} {
		if a, err := compile(t, Engine{}, "package policy\n"+rule).Appraise(t.Context(), map[string]any{}); !errors.Is(err, ErrEval) {
			t.Errorf("%s: %+v, %v", name, a, err)
		}
	}
	if a, err := compile(t, Engine{}, "package policy\nx := 1").Appraise(t.Context(), map[string]any{}); err != nil || a.Status != None || len(a.Vector) != 0 {
		t.Errorf("no rule: %+v, %v", a, err)
	}
}

func TestTiers(t *testing.T) {
	for claim, want := range map[int]string{
		-1: None, 0: None, 1: None, 2: Affirming, 31: Affirming, -2: Affirming, -32: Affirming,
		32: Warning, 95: Warning, -33: Warning, -96: Warning, 96: Contraindicated, 127: Contraindicated, -97: Contraindicated, -128: Contraindicated,
	} {
		if got := tier(claim); got != want {
			t.Errorf("%d: %s", claim, got)
		}
	}
}

func TestBrokenReferenceStoreBreaksTheAppraisal(t *testing.T) {
	broken := errors.New("disk gone")
	e := Engine{Reference: func(context.Context, string) (any, error) { return nil, broken }}
	if _, err := compile(t, e, defaultCPU).Appraise(t.Context(), decode(t, sampleInput)); !errors.Is(err, ErrEval) || !strings.Contains(err.Error(), "disk gone") {
		t.Error(err)
	}
}

func TestSetPrefersTheStoreAndSeesOtherWriters(t *testing.T) {
	s := store.NewMemory()
	set, other := NewSet(Engine{}, s), NewSet(Engine{}, s)
	ctx := t.Context()
	allowed := func() bool {
		p, err := set.Resource(ctx)
		if err != nil {
			t.Fatal(err)
		}
		ok, err := p.Allow(ctx, decode(t, `{"submods":{"cpu0":{"ear.veraison.annotated-evidence":{"sample":{}}}}}`), map[string]any{"plugin": "resource"})
		if err != nil {
			t.Fatal(err)
		}
		return ok
	}
	if allowed() {
		t.Error("the default allows sample")
	}
	if err := other.SetResource(ctx, "package policy\nallow := true"); err != nil {
		t.Fatal(err)
	}
	if !allowed() {
		t.Error("the other writer's policy is not in effect")
	}
	if err := set.SetResource(ctx, "package policy\nallow if http.send({})"); !errors.Is(err, ErrPolicy) || !allowed() {
		t.Errorf("a refused upload changed something: %v", err)
	}
	if _, err := set.Attestation(ctx, "default_dcu"); !errors.Is(err, ErrNone) {
		t.Errorf("policy for a class without one: %v", err)
	}
	for _, id := range []string{"", "a/b", "../x", "x y"} {
		if err := set.SetAttestation(ctx, id, "package policy"); !errors.Is(err, store.ErrKey) {
			t.Errorf("id %q: %v", id, err)
		}
	}
}

func BenchmarkAppraise(b *testing.B) {
	for name, c := range map[string]struct{ input, values string }{
		"sample": {sampleInput, `{}`}, "snp": {snpInput, snpValues}, "tdx": {tdxInput, tdxValues}, "tdx refused": {tdxInput, `{}`},
	} {
		b.Run(name, func(b *testing.B) {
			p := compile(b, Engine{Reference: values(decode(b, c.values))}, defaultCPU)
			in := decode(b, c.input)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := p.Appraise(b.Context(), in); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkAllow(b *testing.B) {
	p := compile(b, Engine{}, defaultResource)
	in := decode(b, `{"submods":{"cpu0":{"ear.status":"affirming","ear.veraison.annotated-evidence":{"tdx":{}}}}}`)
	data := map[string]any{"plugin": "resource", "resource-path": []any{"a", "b", "c"}, "query": map[string]any{}}
	b.ReportAllocs()
	for b.Loop() {
		if ok, err := p.Allow(b.Context(), in, data); !ok || err != nil {
			b.Fatal(ok, err)
		}
	}
}
