package rest

import (
	"strings"
)

// parseQuery reads a query the way browsers submit forms: "+" is a space, an
// escape that is not one stays as it is, text that is not UTF-8 gets replacement
// characters, and of equal names the last counts. It never fails, unlike
// url.ParseQuery.
// Source: https://url.spec.whatwg.org/#concept-urlencoded-parser.
func parseQuery(raw string) map[string]string {
	q := map[string]string{}
	for _, pair := range strings.Split(raw, "&") {
		if pair == "" {
			continue
		}
		name, value, _ := strings.Cut(pair, "=")
		q[formDecode(name)] = formDecode(value)
	}
	return q
}

func formDecode(s string) string {
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '+':
			b = append(b, ' ')
		case s[i] == '%' && i+2 < len(s) && unhex(s[i+1]) < 16 && unhex(s[i+2]) < 16:
			b = append(b, unhex(s[i+1])<<4|unhex(s[i+2]))
			i += 2
		default:
			b = append(b, s[i])
		}
	}
	return strings.ToValidUTF8(string(b), "\ufffd")
}

// unhex returns the value of a hex digit, 16 for anything else.
func unhex(c byte) byte {
	switch {
	case c >= '0' && c <= '9':
		return c - '0'
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10
	case c >= 'A' && c <= 'F':
		return c - 'A' + 10
	}
	return 16
}
