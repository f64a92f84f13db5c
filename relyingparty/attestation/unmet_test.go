package attestation

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/sealpod/sealpod/relyingparty/policy"
	"github.com/sealpod/sealpod/relyingparty/token"
)

// claimsOf attests as a guest with a device and returns what the token says.
func claimsOf(t *testing.T, s *Service, issuer *token.Issuer) (Result, token.Claims) {
	t.Helper()
	r, err := s.Attest(t.Context(), "sample", nonce, attest(t, []string{"sampledevice"}, nil))
	must(t, err)
	claims, err := issuer.Verify(r.Token)
	must(t, err)
	return r, claims
}

func TestTokenSaysWhatIsNotAffirmed(t *testing.T) {
	s, issuer, policies := newService(t)
	r, claims := claimsOf(t, s, issuer)
	want := `cpu0 contraindicated (executables 33, hardware 97): reference value "launch_digest" is not set, ` +
		`reference value "major_version" is not set, reference value "minimum_minor_version" is not set, reference value "svn" is not set; ` +
		`gpu0 contraindicated (configuration 36, executables 33, hardware 97): reference value "device_svn" is not set, ` +
		`the policy has no rules for executables and configuration of a device`
	if got := Unmet(claims); got != want || r.Unmet != want {
		t.Errorf("%s\n%s\nwant\n%s", got, r.Unmet, want)
	}
	cpu := claims["submods"].(map[string]any)["cpu0"].(map[string]any)
	if got := cpu[policy.ReasonsExtension]; !reflect.DeepEqual(got, []any{
		`reference value "launch_digest" is not set`, `reference value "major_version" is not set`,
		`reference value "minimum_minor_version" is not set`, `reference value "svn" is not set`,
	}) {
		t.Errorf("%v", got)
	}

	// A policy of the owner's own, which gives no reasons, for one of the two.
	must(t, policies.SetAttestation(t.Context(), "default_gpu", "package policy\ntrust_claims := {\"hardware\": 2}"))
	must(t, policies.SetAttestation(t.Context(), "default_cpu", "package policy\ntrust_claims := {\"hardware\": 97, \"file-system\": 40, \"configuration\": 2}"))
	r, claims = claimsOf(t, s, issuer)
	if want := "cpu0 contraindicated (file-system 40, hardware 97)"; Unmet(claims) != want || r.Unmet != want {
		t.Errorf("%s\n%s\nwant\n%s", Unmet(claims), r.Unmet, want)
	}
	cpu = claims["submods"].(map[string]any)["cpu0"].(map[string]any)
	var members []string
	for name := range cpu {
		members = append(members, name)
	}
	slices.Sort(members)
	if want := "ear.appraisal-policy-id ear.status ear.trustworthiness-vector ear.veraison.annotated-evidence"; strings.Join(members, " ") != want {
		t.Errorf("without reasons there is more than Trustee has: %v", members)
	}

	must(t, policies.SetAttestation(t.Context(), "default_cpu", "package policy\ntrust_claims := {\"hardware\": 2}"))
	if r, claims = claimsOf(t, s, issuer); Unmet(claims) != "" || r.Unmet != "" {
		t.Errorf("of a guest that is affirmed: %q, %q", Unmet(claims), r.Unmet)
	}
}

func TestTokensOfOddForm(t *testing.T) {
	for want, claims := range map[string]token.Claims{
		"no appraisal": {},
		"cpu0 of no status; gpu0 of no status": {"submods": map[string]any{"cpu0": 1, "gpu0": map[string]any{
			"ear.status": 1, "ear.trustworthiness-vector": []any{}, policy.ReasonsExtension: map[string]any{},
		}}},
		"cpu0 none: a": {"submods": map[string]any{"cpu0": map[string]any{
			"ear.status": "none", "ear.trustworthiness-vector": map[string]any{"hardware": "97"}, policy.ReasonsExtension: []any{1, "a"},
		}}},
	} {
		if got := Unmet(claims); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
