package policy

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"strconv"
)

// Appraisal is what an attestation policy says about one piece of evidence.
type Appraisal struct {
	// Status is the worst tier of the vector: none, affirming, warning or
	// contraindicated.
	Status string
	// Vector has the trust claims the policy set, -128 to 127 each.
	Vector map[string]int
	// Extensions are further members of the appraisal, by name.
	Extensions map[string]any
	// Reasons say for people what is not affirmed and why: the strings of
	// data.policy.reasons, printable, at most 16 of at most 256 bytes. The guest
	// gets to read them.
	Reasons []string
}

// The tiers of AR4SI (draft-ietf-rats-ar4si), from none to worst.
const (
	None            = "none"
	Affirming       = "affirming"
	Warning         = "warning"
	Contraindicated = "contraindicated"
)

// rank orders the tiers.
func rank(status string) int {
	switch status {
	case Affirming:
		return 1
	case Warning:
		return 2
	case Contraindicated:
		return 3
	}
	return 0
}

// tier is the tier of one trust claim.
func tier(claim int) string {
	switch {
	case -1 <= claim && claim <= 1:
		return None
	case -32 <= claim && claim <= 31:
		return Affirming
	case -96 <= claim && claim <= 95:
		return Warning
	}
	return Contraindicated
}

// isClaim tells whether name is a member of an AR4SI trustworthiness vector.
func isClaim(name string) bool {
	switch name {
	case "instance-identity", "configuration", "executables", "file-system", "hardware",
		"runtime-opaque", "storage-opaque", "sourced-data":
		return true
	}
	return false
}

// Appraise evaluates data.policy.trust_claims, data.policy.extensions and
// data.policy.reasons for the input. A rule trust_claims that is undefined, empty, or has an unknown
// name or a value outside -128..127 is ErrEval, as is an evaluation that
// breaks. A policy without that rule sets no claims.
func (p *Policy) Appraise(ctx context.Context, input any) (Appraisal, error) {
	rs, err := p.eval(ctx, p.appraise, input)
	if err != nil {
		return Appraisal{}, err
	}
	if len(rs) != 1 {
		return Appraisal{}, fmt.Errorf("%w %s: no result", ErrEval, p.id)
	}
	result, _ := rs[0].Bindings["x"].(map[string]any)
	a := Appraisal{Status: None, Vector: map[string]int{}, Extensions: map[string]any{}}
	if p.hasClaims {
		if err := a.setVector(first(result["claims"])); err != nil {
			return Appraisal{}, fmt.Errorf("%w %s: %w", ErrEval, p.id, err)
		}
	}
	if err := a.setExtensions(first(result["extensions"])); err != nil {
		return Appraisal{}, fmt.Errorf("%w %s: %w", ErrEval, p.id, err)
	}
	a.Reasons = ReadReasons(first(rs[0].Bindings["y"]))
	return a, nil
}

// first is the only element of a list, nil when it is empty.
func first(list any) any {
	if l, ok := list.([]any); ok && len(l) == 1 {
		return l[0]
	}
	return nil
}

func (a *Appraisal) setVector(claims any) error {
	object, ok := claims.(map[string]any)
	if !ok || len(object) == 0 {
		return fmt.Errorf("rule %s is undefined, empty or no object", claimsRule)
	}
	for name, value := range object {
		n, err := integer(value, math.MinInt8, math.MaxInt8)
		if err != nil || !isClaim(name) {
			return fmt.Errorf("trust claim %q = %v: want a claim of AR4SI and an integer from -128 to 127", name, value)
		}
		a.Vector[name] = n
		if t := tier(n); rank(t) > rank(a.Status) {
			a.Status = t
		}
	}
	return nil
}

func (a *Appraisal) setExtensions(extensions any) error {
	list, ok := extensions.([]any)
	if extensions != nil && !ok {
		return fmt.Errorf("rule extensions is no array")
	}
	for _, e := range list {
		object, _ := e.(map[string]any)
		name, _ := object["name"].(string)
		value, hasValue := object["value"]
		_, err := integer(object["key"], math.MinInt32, math.MaxInt32)
		if err != nil || name == "" || !hasValue || reserved(name) {
			return fmt.Errorf("extension %v: want name, key (a 32-bit integer) and value", e)
		}
		a.Extensions[name] = value
	}
	return nil
}

// reserved are the members of an appraisal that no extension may replace.
func reserved(name string) bool {
	switch name {
	case "ear.status", "ear.trustworthiness-vector", "ear.appraisal-policy-id", "ear.veraison.annotated-evidence", ReasonsExtension:
		return true
	}
	return false
}

func integer(value any, low, high int64) (int, error) {
	number, ok := value.(json.Number)
	if !ok {
		return 0, fmt.Errorf("%v is no number", value)
	}
	n, err := strconv.ParseInt(number.String(), 10, 64)
	if err != nil || n < low || n > high {
		return 0, fmt.Errorf("%v is no integer from %d to %d", value, low, high)
	}
	return int(n), nil
}
