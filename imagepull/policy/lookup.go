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
func (p *Policy) lookup(img Image) (string, []requirement) {
	for _, scope := range candidates(img) {
		if reqs, ok := p.scopes[scope]; ok {
			return fmt.Sprintf("transports.docker[%q]", scope), reqs
		}
	}
	return "default", p.fallback
}

func candidates(img Image) []string {
	out := []string{img.String()}
	for name := img.name(); ; {
		out = append(out, name)
		i := strings.LastIndexByte(name, '/')
		if i < 0 {
			break
		}
		name = name[:i]
	}
	host := hostname(img.Registry)
	for {
		i := strings.IndexByte(host, '.')
		if i < 0 {
			break
		}
		host = host[i+1:]
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
