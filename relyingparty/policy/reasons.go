package policy

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/sealpod/sealpod/podvm"
)

// ReasonsExtension is the member of an appraisal in a token that holds its
// reasons. Trustee has none such; it is there only when there are reasons.
const ReasonsExtension = "ear.sealpod.unmet"

const (
	// maxReasons is how many reasons are kept.
	maxReasons = 16
	// maxReasonBytes cuts each of them.
	maxReasonBytes = 256
)

// ReadReasons returns the reasons in a JSON value that is a list of strings, in
// its order. They are for people, so it is never an error: what is no string
// is left out, and of too many the rest is only counted.
func ReadReasons(value any) []string {
	list, _ := value.([]any)
	var reasons []string
	for i, v := range list {
		if len(reasons) == maxReasons-1 && len(list)-i > 1 {
			return append(reasons, fmt.Sprintf("and %d more", len(list)-i))
		}
		text, _ := v.(string)
		if text = strings.TrimSpace(podvm.Printable(text, maxReasonBytes-len("…"))); text != "" {
			reasons = append(reasons, text)
		}
	}
	return reasons
}

// String says in words what is not affirmed and why, as in
// `warning (configuration 36): tdx.td_attributes.debug is true`.
func (a Appraisal) String() string {
	var claims []string
	for _, name := range slices.Sorted(maps.Keys(a.Vector)) {
		if n := a.Vector[name]; rank(tier(n)) > rank(Affirming) {
			claims = append(claims, fmt.Sprintf("%s %d", name, n))
		}
	}
	text := a.Status
	if len(claims) > 0 {
		text += " (" + strings.Join(claims, ", ") + ")"
	}
	if len(a.Reasons) > 0 {
		text += ": " + strings.Join(a.Reasons, ", ")
	}
	return text
}
