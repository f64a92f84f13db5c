package attestation

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/sealpod/sealpod/kbs"
	"github.com/sealpod/sealpod/relyingparty/policy"
	"github.com/sealpod/sealpod/relyingparty/refvalue"
	"github.com/sealpod/sealpod/relyingparty/store"
	"github.com/sealpod/sealpod/relyingparty/token"
	"github.com/sealpod/sealpod/relyingparty/verifier"
	"github.com/sealpod/sealpod/relyingparty/verifier/sample"
)

const nonce = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="

// odd is a TEE of a class without a policy.
type odd struct{}

func (odd) TEE() string { return "hygondcu" }

func (odd) Verify(context.Context, json.RawMessage, verifier.Expected) ([]verifier.Claims, error) {
	return []verifier.Claims{{Class: "dcu", Values: map[string]any{"x": 1}}}, nil
}

func newService(t testing.TB) (*Service, *token.Issuer, *policy.Set) {
	t.Helper()
	s := store.NewMemory()
	key, err := token.LoadKey(context.Background(), s)
	must(t, err)
	issuer, err := token.NewIssuer(key, 5*time.Minute, nil)
	must(t, err)
	policies := policy.NewSet(policy.Engine{Reference: refvalue.New(s, nil).Query}, s)
	return New([]verifier.Verifier{sample.CPU{}, sample.Device{}, odd{}}, policies, issuer), issuer, policies
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// attest makes an honest attestation with those devices and init data.
func attest(t testing.TB, devices []string, init *kbs.InitData) kbs.Attestation {
	t.Helper()
	key, err := kbs.GenerateTEEKey("")
	must(t, err)
	a := kbs.Attestation{InitData: init, RuntimeData: kbs.RuntimeData{Nonce: nonce, TEEPubKey: key.Public()}}
	if len(devices) > 0 {
		digest, err := kbs.ReportData(crypto.SHA384, a.RuntimeData)
		must(t, err)
		m := map[string]json.RawMessage{}
		for _, d := range devices {
			m[d] = evidence(digest)
		}
		raw, err := json.Marshal(m)
		must(t, err)
		a.Evidence.Additional = string(raw)
	}
	digest, err := kbs.ReportDataWithDevices(crypto.SHA384, a.RuntimeData, a.Evidence.Additional)
	must(t, err)
	a.Evidence.Primary = evidence(digest)
	return a
}

func evidence(digest []byte) json.RawMessage {
	return fmt.Appendf(nil, `{"svn":"1","report_data":%q}`, base64.StdEncoding.EncodeToString(digest))
}

func TestTokenOfAGuestWithADeviceAndInitData(t *testing.T) {
	s, issuer, _ := newService(t)
	body := "version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n\"aa.toml\" = '''\nurl = \"http://kbs\"\n'''\n"
	a := attest(t, []string{"sampledevice"}, &kbs.InitData{Format: "toml", Body: body})
	r, err := s.Attest(t.Context(), "sample", nonce, a)
	must(t, err)
	if want := map[string]string{"cpu0": "contraindicated", "gpu0": "contraindicated"}; !maps.Equal(r.Status, want) {
		t.Errorf("status %v", r.Status)
	}
	claims, err := issuer.Verify(r.Token)
	must(t, err)
	if key, err := claims.TEEKey(); err != nil || key != a.RuntimeData.TEEPubKey {
		t.Errorf("TEE key %v, %v", key, err)
	}
	digest := sha256.Sum256([]byte(body))
	var ev struct {
		ReportData string `json:"report_data"`
	}
	must(t, json.Unmarshal(a.Evidence.Primary, &ev))
	pub, err := plain(map[string]any{"k": a.RuntimeData.TEEPubKey})
	must(t, err)
	submods := claims["submods"].(map[string]any)
	cpu := submods["cpu0"].(map[string]any)
	want := map[string]any{
		"sample": map[string]any{
			"svn": "1", "launch_digest": "abcde", "debug": false,
			"platform_version": map[string]any{"major": json.Number("1"), "minor": json.Number("4")},
		},
		"report_data":         ev.ReportData,
		"runtime_data_claims": map[string]any{"nonce": nonce, "tee-pubkey": pub["k"], "additional-evidence": a.Evidence.Additional},
		"init_data":           base64.StdEncoding.EncodeToString(digest[:]),
		"init_data_claims":    map[string]any{"aa.toml": map[string]any{"url": "http://kbs"}},
	}
	if got := cpu["ear.veraison.annotated-evidence"]; !reflect.DeepEqual(got, want) {
		t.Errorf("annotated evidence\n%v\nwant\n%v", got, want)
	}
	vector := map[string]any{}
	for name, n := range map[string]string{
		"executables": "33", "hardware": "97", "configuration": "2", "file-system": "0", "instance-identity": "0",
		"runtime-opaque": "0", "storage-opaque": "0", "sourced-data": "0",
	} {
		vector[name] = json.Number(n)
	}
	if !reflect.DeepEqual(cpu["ear.trustworthiness-vector"], vector) || cpu["ear.status"] != "contraindicated" ||
		cpu["ear.appraisal-policy-id"] != "default" || cpu["ear.trustee.identifiers"] == nil {
		t.Errorf("cpu0 %v", cpu)
	}
	gpu := submods["gpu0"].(map[string]any)["ear.veraison.annotated-evidence"].(map[string]any)
	if !reflect.DeepEqual(gpu["runtime_data_claims"], map[string]any{"nonce": nonce, "tee-pubkey": pub["k"]}) || gpu["init_data"] != nil {
		t.Errorf("gpu0 %v", gpu)
	}
}

func TestAttestationsThatAreRefused(t *testing.T) {
	s, _, policies := newService(t)
	change := func(f func(*kbs.Attestation)) kbs.Attestation {
		a := attest(t, nil, nil)
		f(&a)
		return a
	}
	other := attest(t, nil, nil)
	for name, test := range map[string]struct {
		tee  string
		a    kbs.Attestation
		want error
	}{
		"unknown TEE":                   {"tdx", attest(t, nil, nil), ErrTEE},
		"another nonce":                 {"sample", change(func(a *kbs.Attestation) { a.RuntimeData.Nonce = "AA==" }), ErrNonce},
		"nonce spelled in another way":  {"sample", change(func(a *kbs.Attestation) { a.RuntimeData.Nonce = strings.TrimSuffix(nonce, "=") }), ErrNonce},
		"key swapped after measuring":   {"sample", change(func(a *kbs.Attestation) { a.RuntimeData.TEEPubKey = other.RuntimeData.TEEPubKey }), verifier.ErrEvidence},
		"devices added after measuring": {"sample", change(func(a *kbs.Attestation) { a.Evidence.Additional = "{}" }), verifier.ErrEvidence},
		"key off the curve":             {"sample", change(func(a *kbs.Attestation) { a.RuntimeData.TEEPubKey.X = a.RuntimeData.TEEPubKey.Y }), ErrAttestation},
		"additional is no JSON":         {"sample", change(func(a *kbs.Attestation) { a.Evidence.Additional = "x" }), ErrAttestation},
		"additional has more data":      {"sample", change(func(a *kbs.Attestation) { a.Evidence.Additional = "{}{}" }), ErrAttestation},
		"additional of unknown kind":    {"sample", change(func(a *kbs.Attestation) { a.Evidence.Additional = `{"nvidia":{}}` }), ErrTEE},
		"device as the primary":         {"sampledevice", attest(t, nil, nil), verifier.ErrEvidence},
		"class without a policy":        {"sample", attest(t, []string{"hygondcu"}, nil), policy.ErrNone},
		"init data as JSON":             {"sample", attest(t, nil, &kbs.InitData{Format: "json", Body: "{}"}), ErrAttestation},
		"huge additional evidence":      {"sample", attestLarge(t), token.ErrTooLarge},
	} {
		if r, err := s.Attest(t.Context(), test.tee, nonce, test.a); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, %v", name, r.Status, err)
		}
	}
	many := map[string]int{}
	for i := range maxDevices + 1 {
		many[fmt.Sprint(i)] = i
	}
	raw, err := json.Marshal(many)
	must(t, err)
	if _, err := readDevices(string(raw)); !errors.Is(err, ErrAttestation) {
		t.Errorf("many devices: %v", err)
	}
	must(t, policies.SetAttestation(t.Context(), "default_cpu", "package policy\ntrust_claims := {\"hardware\": 2} if input.tdx"))
	if _, err := s.Attest(t.Context(), "sample", nonce, attest(t, nil, nil)); !errors.Is(err, policy.ErrEval) {
		t.Errorf("policy without a result: %v", err)
	}
	if _, err := s.Attest(t.Context(), "sample", nonce, attestLarge(t)); !errors.Is(err, token.ErrTooLarge) {
		t.Errorf("the policy was asked about claims no token has room for: %v", err)
	}
}

func attestLarge(t *testing.T) kbs.Attestation {
	a := attest(t, nil, nil)
	a.Evidence.Additional = "{" + strings.Repeat(" ", token.MaxBytes) + "}"
	digest, err := kbs.ReportDataWithDevices(crypto.SHA384, a.RuntimeData, a.Evidence.Additional)
	must(t, err)
	a.Evidence.Primary = evidence(digest)
	return a
}

func TestInitData(t *testing.T) {
	const head = "version = \"0.1.0\"\nalgorithm = \"%s\"\n[data]\n"
	rego := "package agent_policy\ndefault X := true\npolicy_data := {\"containers\": [1]}\n"
	body := fmt.Sprintf(head, "sha384") +
		"\"aa.toml\" = 'a = 1'\n\"cdh.toml\" = 'not [ toml'\nagent_policy_claims = 'forged'\nother = 'x'\n\"policy.rego\" = '''" + rego + "'''\n"
	digest, claims, err := readInitData(kbs.InitData{Format: "toml", Body: body})
	must(t, err)
	if want := sha512.Sum384([]byte(body)); string(digest) != string(want[:]) {
		t.Error("the digest is not that of the text")
	}
	raw, err := json.Marshal(claims)
	must(t, err)
	if want := `{"aa.toml":{"a":1},"agent_policy_claims":{"containers":[1]},"cdh.toml":"not [ toml","other":"x"}`; string(raw) != want {
		t.Errorf("claims %s", raw)
	}
	for name, data := range map[string]string{
		"policy without data": `"policy.rego" = 'package agent_policy'`, "policy with more after its data": `"policy.rego" = 'policy_data := {} x'`,
		"infinity in a file": `"aa.toml" = 'a = inf'`, "long file": `"aa.toml" = 'a = "` + strings.Repeat("x", maxConfigBytes) + `"'`,
	} {
		if _, claims, err := readInitData(kbs.InitData{Format: "toml", Body: fmt.Sprintf(head, "sha256") + data}); err != nil || len(claims) != 1 {
			t.Errorf("%s: %v, %v", name, claims, err)
		} else if _, ok := claims["agent_policy_claims"]; ok {
			t.Errorf("%s: claims %v", name, claims)
		}
	}
	// A decoder whose time grows with the square of the keys is not given many,
	// wherever they stand.
	var lines, members strings.Builder
	for i := range maxKeys + 1 {
		fmt.Fprintf(&lines, "k%d = ''\n", i)
		fmt.Fprintf(&members, "k%d = '', ", i)
	}
	for name, data := range map[string]string{
		"many keys":           lines.String(),
		"many in a table":     "x = [{" + members.String() + "z = ''}]",
		"many parts of a key": strings.Repeat("a.", maxKeys) + "a = ''",
		"many tables":         "[t." + strings.Repeat("a.", maxKeys) + "a]",
	} {
		in := kbs.InitData{Format: "toml", Body: fmt.Sprintf(head, "sha256") + data}
		if _, _, err := readInitData(in); !errors.Is(err, ErrAttestation) || !strings.Contains(err.Error(), "more than") {
			t.Errorf("%s: %v", name, err)
		}
		if parseConfig(data) != nil {
			t.Errorf("%s in a file: parsed", name)
		}
	}
	for name, in := range map[string]kbs.InitData{
		"format":       {Format: "json", Body: "{}"},
		"no TOML":      {Format: "toml", Body: "]["},
		"empty":        {Format: "toml"},
		"no version":   {Format: "toml", Body: "algorithm = \"sha256\"\n[data]\n"},
		"no data":      {Format: "toml", Body: "version = \"0.1.0\"\nalgorithm = \"sha256\"\n"},
		"no algorithm": {Format: "toml", Body: "version = \"0.1.0\"\n[data]\n"},
		"sm3":          {Format: "toml", Body: fmt.Sprintf(head, "sm3")},
		"hyphen":       {Format: "toml", Body: fmt.Sprintf(head, "sha-256")},
		"number":       {Format: "toml", Body: fmt.Sprintf(head, "sha256") + "x = 1"},
	} {
		if _, _, err := readInitData(in); !errors.Is(err, ErrAttestation) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzInitData(f *testing.F) {
	f.Add("version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n\"aa.toml\" = 'a = 1'\n\"policy.rego\" = 'policy_data := {}'\n")
	f.Fuzz(func(t *testing.T, body string) {
		digest, claims, err := readInitData(kbs.InitData{Format: "toml", Body: body})
		if err != nil {
			if !errors.Is(err, ErrAttestation) {
				t.Error(err)
			}
			return
		}
		if _, err := plain(claims); err != nil || len(digest) < 32 {
			t.Errorf("claims %v: %v", claims, err)
		}
	})
}
