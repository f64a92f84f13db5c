package policy

import (
	"fmt"
	"strings"
)

// maxAttempts caps what one Step remembers.
const maxAttempts = 256

// Decision explains a verdict. All of it is safe to show.
type Decision struct {
	Allowed     bool     `json:"allowed"`
	Scope       string   `json:"scope"`                 // the rule used: `default` or `transports.docker["…"]`
	Requirement string   `json:"requirement,omitempty"` // type of the requirement that decided; the last one when allowed
	Key         string   `json:"key,omitempty"`         // the key that verified the signature, "" when none had to
	Reason      string   `json:"reason,omitempty"`      // why it was denied; "" when allowed
	Warnings    []string `json:"warnings,omitempty"`    // what is doubtful about a signature that was accepted
	Steps       []Step   `json:"steps,omitempty"`       // the requirements looked at, in their order
}

// Step is what one requirement made of the image.
type Step struct {
	Requirement string    `json:"requirement"`
	Allowed     bool      `json:"allowed"`
	Key         string    `json:"key,omitempty"`
	Reason      string    `json:"reason,omitempty"` // why it was denied
	Signatures  []Attempt `json:"signatures,omitempty"`
	Omitted     int       `json:"omitted,omitempty"` // attempts beyond the first 256
}

// Attempt is one signature tried with one key, or a key that could not be had.
type Attempt struct {
	Signature string `json:"signature,omitempty"` // where it is
	Key       string `json:"key"`
	Accepted  bool   `json:"accepted"`
	Reason    string `json:"reason,omitempty"`  // why it was not accepted
	Warning   string `json:"warning,omitempty"` // why it should be looked at all the same
}

// attempt records a. The list keeps its beginning and what was accepted.
func (s *Step) attempt(a Attempt) {
	if len(s.Signatures) >= maxAttempts && !a.Accepted {
		s.Omitted++
		return
	}
	s.Signatures = append(s.Signatures, a)
}

// accept records that sig satisfied the requirement.
func (s *Step) accept(sig, key, warning string) {
	s.Key = key
	s.attempt(Attempt{Signature: sig, Key: key, Accepted: true, Warning: warning})
}

func (s *Step) finish(err error) {
	if s.Allowed = err == nil; !s.Allowed {
		s.Reason = reason(err)
	}
}

func (d *Decision) add(s Step) {
	d.Steps = append(d.Steps, s)
	if d.Reason != "" {
		return // decided before
	}
	d.Requirement, d.Reason = s.Requirement, s.Reason
	if s.Key != "" {
		d.Key = s.Key
	}
	for _, a := range s.Signatures {
		if a.Warning != "" {
			d.Warnings = append(d.Warnings, a.Warning)
		}
	}
}

// String renders the decision for a terminal, a line per requirement and per
// signature.
func (d Decision) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s by rule %s\n", verb(d.Allowed, "allowed", "denied"), d.Scope)
	for _, s := range d.Steps {
		fmt.Fprintf(&b, "  %s: %s", s.Requirement, verb(s.Allowed, "satisfied", "not satisfied"))
		if s.Reason != "" {
			fmt.Fprintf(&b, ": %s", s.Reason)
		}
		b.WriteByte('\n')
		for _, a := range s.Signatures {
			what := a.Signature
			if what == "" {
				what = "key"
			}
			fmt.Fprintf(&b, "    %s, %s: %s", what, a.Key, verb(a.Accepted, "accepted", a.Reason))
			if a.Warning != "" {
				fmt.Fprintf(&b, " (warning: %s)", a.Warning)
			}
			b.WriteByte('\n')
		}
		if s.Omitted > 0 {
			fmt.Fprintf(&b, "    and %d more that were not accepted\n", s.Omitted)
		}
	}
	return b.String()
}

func verb(ok bool, yes, no string) string {
	if ok {
		return yes
	}
	return no
}
