package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/sealpod/sealpod/podvm"
)

// maxPolicy caps a policy document.
const maxPolicy = 1 << 20

// ErrInvalid says that a policy document cannot be used: it is malformed, or
// asks for something this build does not enforce.
var ErrInvalid = errors.New("invalid image policy")

// Policy is a parsed policy.json. It is immutable and safe for concurrent use.
type Policy struct {
	fallback []requirement            // the top-level "default"
	scopes   map[string][]requirement // transports.docker; "" is its own default
	warnings []string
}

// Parse reads a policy.json document of at most 1 MiB. Both `default` (a
// list) and `transports` (an object) are mandatory and no list of requirements
// may be empty; unknown fields are ignored with a warning, unknown types are
// not. Only the transport "docker" is ever consulted.
//
// Errors wrap ErrInvalid and, for a document that asks for something not
// available here, carry a sentence for podvm.Cause that names it.
func Parse(raw []byte) (*Policy, error) {
	p := &Policy{scopes: map[string][]requirement{}}
	if err := p.parse(raw); err != nil {
		return nil, podvm.Explain(fmt.Errorf("%w: %w", ErrInvalid, err),
			"the image security policy is not usable: "+podvm.Printable(err.Error(), 600))
	}
	return p, nil
}

// Warnings lists what Parse ignored or found doubtful, one sentence each.
func (p *Policy) Warnings() []string { return slices.Clone(p.warnings) }

func (p *Policy) warn(format string, args ...any) {
	p.warnings = append(p.warnings, podvm.Printable(fmt.Sprintf(format, args...), 300))
}

func (p *Policy) parse(raw []byte) error {
	if len(raw) > maxPolicy {
		return fmt.Errorf("%w: %d bytes", podvm.ErrTooLarge, len(raw))
	}
	doc, err := object(raw)
	if err != nil {
		return err
	}
	def, ok := doc["default"]
	if !ok {
		return errors.New(`"default" is missing`)
	}
	if p.fallback, err = p.parseRequirements("default", def); err != nil {
		return err
	}
	transports, ok := doc["transports"]
	if !ok {
		return errors.New(`"transports" is missing`)
	}
	p.warnUnknown("policy", doc, "default", "transports")
	byName, err := object(transports)
	if err != nil {
		return fmt.Errorf("transports: %w", err)
	}
	for _, name := range sortedKeys(byName) {
		scopes, err := object(byName[name])
		if err != nil {
			return fmt.Errorf("transports.%s: %w", name, err)
		}
		for _, scope := range sortedKeys(scopes) {
			where := fmt.Sprintf("transports.%s[%q]", name, scope)
			if name != "docker" {
				if err := checkTypes(scopes[scope]); err != nil {
					return fmt.Errorf("%s: %w", where, err)
				}
				continue
			}
			folded := FoldHost(scope)
			if _, twice := p.scopes[folded]; twice {
				return fmt.Errorf("%s: there is another rule for the same name in another case", where)
			}
			if p.scopes[folded], err = p.parseRequirements(where, scopes[scope]); err != nil {
				return err
			}
			if host, _, _ := strings.Cut(folded, "/"); host == "index.docker.io" {
				p.warn("%s never matches: images of Docker Hub are looked up under docker.io", where)
			}
		}
	}
	return nil
}

func (p *Policy) warnUnknown(where string, have fields, known ...string) {
	for _, k := range sortedKeys(have) {
		if !slices.Contains(known, k) {
			p.warn("%s: unknown field %q ignored", where, k)
		}
	}
}
