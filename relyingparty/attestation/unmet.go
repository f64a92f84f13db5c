package attestation

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"

	"github.com/sealpod/sealpod/relyingparty/policy"
	"github.com/sealpod/sealpod/relyingparty/token"
)

// Unmet says in words which appraisals of a verified token are not affirming,
// which of their trust claims, and why as far as the attestation policy gave
// reasons: the relying party that issued it may have been another. It is empty
// when all are affirming.
func Unmet(claims token.Claims) string {
	submods, _ := claims["submods"].(map[string]any)
	if len(submods) == 0 {
		return "no appraisal"
	}
	appraisals := map[string]policy.Appraisal{}
	for name, v := range submods {
		submod, _ := v.(map[string]any)
		a := policy.Appraisal{Vector: map[string]int{}, Reasons: policy.ReadReasons(submod[policy.ReasonsExtension])}
		if a.Status, _ = submod["ear.status"].(string); a.Status == "" {
			a.Status = "of no status"
		}
		vector, _ := submod["ear.trustworthiness-vector"].(map[string]any)
		for claim, value := range vector {
			if number, ok := value.(json.Number); ok {
				if n, err := number.Int64(); err == nil {
					a.Vector[claim] = int(n)
				}
			}
		}
		appraisals[name] = a
	}
	return inWords(appraisals)
}

// inWords is, for each appraisal that is not affirming, its name and what it
// says of itself.
func inWords(appraisals map[string]policy.Appraisal) string {
	var words []string
	for _, name := range slices.Sorted(maps.Keys(appraisals)) {
		if a := appraisals[name]; a.Status != policy.Affirming {
			words = append(words, name+" "+a.String())
		}
	}
	return strings.Join(words, "; ")
}
