package registry

import "strings"

// challenge is one entry of a WWW-Authenticate header. Scheme and the names of
// parameters are in lower case. Source: RFC 9110 section 11.6.1.
type challenge struct {
	scheme string
	params map[string]string
}

// maxChallenges bounds the entries of an answer and the parameters of each.
const maxChallenges = 16

// parseChallenges reads WWW-Authenticate headers, each of which may hold several
// challenges. What follows a syntax error in a header is ignored; a parameter
// given twice keeps its first value.
func parseChallenges(headers []string) []challenge {
	var list []challenge
	for _, h := range headers {
		for s := h; len(list) < maxChallenges; {
			scheme, rest := token(strings.TrimLeft(s, " \t,"))
			if scheme == "" {
				break
			}
			c := challenge{scheme: strings.ToLower(scheme), params: map[string]string{}}
			s = c.readParams(rest)
			list = append(list, c)
		}
	}
	return list
}

// readParams reads the parameters that s starts with and returns the rest: the
// next challenge, or what is not understood.
func (c *challenge) readParams(s string) string {
	for {
		start := strings.TrimLeft(s, " \t,")
		name, rest := token(start)
		rest, found := strings.CutPrefix(strings.TrimLeft(rest, " \t"), "=")
		if name == "" || !found || len(c.params) == maxChallenges {
			return start // a scheme, or nonsense that parses as an empty one
		}
		value, rest, ok := tokenOrQuoted(strings.TrimLeft(rest, " \t"))
		if !ok {
			return ""
		}
		if name = strings.ToLower(name); c.params[name] == "" {
			c.params[name] = value
		}
		s = rest
	}
}

// token cuts an RFC 9110 token off s.
func token(s string) (head, rest string) {
	i := strings.IndexFunc(s, func(r rune) bool {
		return r <= ' ' || r >= 0x7f || strings.ContainsRune("\"(),/:;<=>?@[\\]{}", r)
	})
	if i < 0 {
		return s, ""
	}
	return s[:i], s[i:]
}

func tokenOrQuoted(s string) (value, rest string, ok bool) {
	if !strings.HasPrefix(s, `"`) {
		value, rest = token(s)
		return value, rest, value != ""
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '"':
			return b.String(), s[i+1:], true
		case '\\':
			if i++; i == len(s) {
				return "", "", false
			}
		}
		b.WriteByte(s[i])
	}
	return "", "", false
}

// usable picks the challenge to answer: bearer, which the registry's own token
// service wants, before basic.
func usable(list []challenge) (challenge, bool) {
	for _, scheme := range []string{"bearer", "basic"} {
		for _, c := range list {
			if c.scheme == scheme && (scheme == "basic" || c.params["realm"] != "") {
				return c, true
			}
		}
	}
	return challenge{}, false
}
