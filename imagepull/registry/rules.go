package registry

import (
	"errors"
	"fmt"
	"strings"

	"github.com/sealpod/sealpod/imagepull/policy"
	"github.com/sealpod/sealpod/podvm"
)

var (
	// ErrRules says that registry rules cannot be used as they stand.
	ErrRules = errors.New("invalid registry configuration")
	// ErrBlocked says that the rules leave nowhere to get an image from.
	ErrBlocked = errors.New("blocked by registry rule")
)

// Rules say where images really come from: mirrors, rewrites, blocks. The
// format is a subset of containers-registries.conf(5); the zero value changes
// nothing, and hosts have no case. Source: guest-components image-rs registry/mod.rs at 8246e5e, but
// prefixes match at the start of a name only and whole path components, and a
// digest is never dropped.
type Rules struct {
	// UnqualifiedSearch lists the registries tried for an image of docker.io,
	// whether or not its reference says so. Nil means docker.io only.
	UnqualifiedSearch []string `config:"unqualified-search-registries"`
	// Registry holds the rules; the longest matching prefix wins.
	Registry []Rule `config:"registry"`
}

// Rule is one [[registry]] table.
type Rule struct {
	// Prefix selects images: host[:port][/path…], or *.domain for any
	// subdomain. Empty means Location.
	Prefix string `config:"prefix"`
	// Location replaces the matched prefix; empty keeps the name.
	Location string `config:"location"`
	// Insecure selects plain HTTP; it counts only when Location is set.
	Insecure bool `config:"insecure"`
	// Blocked refuses every image the rule selects.
	Blocked bool `config:"blocked"`
	// Mirror are tried in order before Location.
	Mirror []Mirror `config:"mirror"`
}

// Mirror is one [[registry.mirror]] table.
type Mirror struct {
	// Location replaces the matched prefix.
	Location string `config:"location"`
	// Insecure selects plain HTTP.
	Insecure bool `config:"insecure"`
}

// Candidate is one place to get an image from. Credentials, policy and
// signatures are looked up under Reference, not under the name asked for.
type Candidate struct {
	Reference Reference
	Insecure  bool // plain HTTP instead of HTTPS
}

// ParseRules reads a registries TOML file. Unknown keys are returned for a
// warning. Errors wrap ErrRules.
func ParseRules(raw []byte) (*Rules, []podvm.UnknownKey, error) {
	var r Rules
	unknown, err := podvm.DecodeConfig(raw, "toml", &r)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrRules, err)
	}
	if err := r.Validate(); err != nil {
		return nil, nil, err
	}
	return &r, unknown, nil
}

// Validate reports the first rule that cannot work, as ErrRules.
func (r *Rules) Validate() error {
	for _, host := range r.UnqualifiedSearch {
		if !looksLikeHost(strings.ToLower(host)) || !hostRE.MatchString(host) { // names of its images would be read as Docker Hub's
			return fmt.Errorf("%w: unqualified-search-registries: %q is not a registry host with a dot or a port", ErrRules, podvm.Printable(host, 128))
		}
	}
	for i, rule := range r.Registry {
		if err := rule.validate(); err != nil {
			return fmt.Errorf("%w: registry %d (prefix %q): %w", ErrRules, i+1, podvm.Printable(rule.Prefix, 128), err)
		}
	}
	return nil
}

func (r Rule) validate() error {
	domain, wildcard := strings.CutPrefix(r.Prefix, "*.")
	switch {
	case r.Prefix == "" && r.Location == "":
		return errors.New("prefix and location are both empty")
	case wildcard && r.Location == "":
		return errors.New("a wildcard prefix needs a location")
	case wildcard && !hostRE.MatchString(domain):
		return errors.New("a wildcard prefix is *.domain, without a path")
	case !wildcard && r.Prefix != "" && !hostRE.MatchString(hostOf(r.Prefix)):
		return errors.New("prefix does not start with a registry host")
	case r.Location != "" && !validLocation(r.Location):
		return errors.New("location is not host[:port][/path]")
	}
	for j, m := range r.Mirror {
		if !validLocation(m.Location) {
			return fmt.Errorf("mirror %d: location is not host[:port][/path]", j+1)
		}
	}
	return nil
}

func validLocation(s string) bool {
	host, path, hasPath := strings.Cut(s, "/")
	return looksLikeHost(host) && hostRE.MatchString(host) && (!hasPath || pathRE.MatchString(path))
}

func hostOf(name string) string {
	host, _, _ := strings.Cut(name, "/")
	return host
}

// Candidates lists where to look for ref, best first. The list is never empty:
// when everything is blocked, the error is ErrBlocked.
func (r *Rules) Candidates(ref Reference) ([]Candidate, error) {
	var out []Candidate
	var blocked []string
	for _, name := range r.search(ref) {
		rule, matched := r.match(name)
		switch {
		case rule == nil:
			out = append(out, Candidate{Reference: name})
			continue
		case rule.Blocked:
			blocked = append(blocked, name.String())
			continue
		}
		for _, m := range rule.Mirror {
			c, err := rewrite(name, matched, m.Location, m.Insecure)
			if err != nil {
				return nil, err
			}
			out = append(out, c)
		}
		if rule.Location == "" {
			out = append(out, Candidate{Reference: name})
			continue
		}
		c, err := rewrite(name, matched, rule.Location, rule.Insecure)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	if len(out) == 0 && len(blocked) == 0 {
		text := fmt.Sprintf("image %s has no registry: unqualified-search-registries is empty", ref)
		return nil, podvm.Explain(fmt.Errorf("%w: the search list is empty", ErrBlocked), text)
	}
	if len(out) == 0 {
		text := fmt.Sprintf("image %s is blocked by registry rule", ref)
		return nil, podvm.Explain(fmt.Errorf("%w: %s", ErrBlocked, strings.Join(blocked, ", ")), text)
	}
	return out, nil
}

// search expands an image of Docker Hub over the search list.
func (r *Rules) search(ref Reference) []Reference {
	if ref.Registry != dockerHub || r.UnqualifiedSearch == nil {
		return []Reference{ref}
	}
	out := make([]Reference, 0, len(r.UnqualifiedSearch))
	for _, host := range r.UnqualifiedSearch {
		c := ref
		host = strings.ToLower(host)
		c.Registry = host
		if host != dockerHub {
			c.Repository = strings.TrimPrefix(ref.Repository, "library/")
		}
		out = append(out, c)
	}
	return out
}

// match returns the rule with the longest match and how many bytes of ref's
// text it covers.
func (r *Rules) match(ref Reference) (best *Rule, length int) {
	longest := 0
	for i := range r.Registry {
		rule := &r.Registry[i]
		prefix := rule.Prefix
		if prefix == "" {
			prefix = rule.Location
		}
		prefix = policy.FoldHost(prefix)
		if n, ok := covers(prefix, ref); ok && len(prefix) > longest {
			best, length, longest = rule, n, len(prefix)
		}
	}
	return best, length
}

// covers says whether prefix selects ref, by whole components from the start,
// and how many bytes of ref's text it stands for.
func covers(prefix string, ref Reference) (int, bool) {
	text := ref.String()
	if suffix, ok := strings.CutPrefix(prefix, "*"); ok {
		host := ref.Registry
		if !strings.HasSuffix(host, suffix) {
			host, _, _ = strings.Cut(host, ":")
		}
		return len(ref.Registry), strings.HasSuffix(host, suffix) && len(host) > len(suffix)
	}
	if !strings.HasPrefix(text, prefix) {
		return 0, false
	}
	rest := text[len(prefix):]
	if !strings.Contains(prefix, "/") {
		return len(prefix), rest[0] == '/' // a colon here would start a port
	}
	return len(prefix), rest == "" || strings.IndexByte("/:@", rest[0]) >= 0
}

func rewrite(ref Reference, matched int, location string, insecure bool) (Candidate, error) {
	text := location + ref.String()[matched:]
	out, err := ParseReference(text)
	if err == nil && hubAlias(out.Registry) != hubAlias(strings.ToLower(hostOf(location))) {
		// "host:tag" without a path would be read as a name on Docker Hub.
		err = fmt.Errorf("%w: no repository is left", ErrReference)
	}
	if err != nil {
		err = fmt.Errorf("%w: %s becomes %s: %w", ErrRules, ref, podvm.Printable(text, 256), err)
		return Candidate{}, podvm.Explain(err, fmt.Sprintf("by the registry configuration %s becomes %s, which is no image", ref, podvm.Printable(text, 256)))
	}
	return Candidate{Reference: out, Insecure: insecure}, nil
}
