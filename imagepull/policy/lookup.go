package policy

import (
	"fmt"
	"strings"
)

// lookup returns the requirements for img and a name for where they stand.
// The first scope present wins, from the most to the least specific:
//
//	host/repo:tag@digest as requested, host/repo, its parents, host:port,
//	*.domain (port left out, longest first), "", the top-level default.
//
// The case of a host does not matter.
func (p *Policy) lookup(img Image) (string, []requirement) {
	for _, scope := range img.Scopes() {
		if reqs, ok := p.scopes[scope]; ok {
			return fmt.Sprintf("transports.docker[%q]", scope), reqs
		}
	}
	return "default", p.fallback
}

// Scopes lists the names under which there may be a rule for the image, the
// most specific first and "" last. Hosts are in lower case.
func (i Image) Scopes() []string {
	out := []string{FoldHost(i.String())}
	for name := FoldHost(i.name()); ; {
		out = append(out, name)
		slash := strings.LastIndexByte(name, '/')
		if slash < 0 {
			break
		}
		name = name[:slash]
	}
	for host := hostname(strings.ToLower(i.Registry)); ; {
		_, domain, found := strings.Cut(host, ".")
		if !found {
			break
		}
		host = domain
		out = append(out, "*."+host)
	}
	return append(out, "")
}

// hostname strips the port of a registry. A bracketed IPv6 address has no
// domains above it and yields "".
func hostname(registry string) string {
	if strings.HasPrefix(registry, "[") {
		return ""
	}
	host, _, _ := strings.Cut(registry, ":")
	return host
}
