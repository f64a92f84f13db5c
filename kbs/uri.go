package kbs

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/sealpod/sealpod/podvm"
)

// maxURI caps a resource URI in bytes.
const maxURI = 8 << 10

// DefaultPlugin is the plugin of a URI that names none.
const DefaultPlugin = "resource"

// URI names what a KBS plugin releases:
//
//	kbs[+PLUGIN]://[HOST[:PORT]]/SEGMENT[/SEGMENT...][?QUERY]
//
// The zero value is not valid; see ParseURI.
type URI struct{ plugin, authority, path, query string }

// ParseURI reads a resource URI by the rules of the WHATWG URL standard for a
// scheme that is not special: white space and control characters around it and
// tabs and line ends within are dropped, the scheme is put in lower case, "."
// and ".." segments (also "%2e") are resolved, characters no URL may have are
// percent-encoded, empty segments stay, the fragment is dropped.
//
// Stricter than the standard: a "/" must follow "kbs:", and user information, a
// plugin called "." or "..", text that is not UTF-8 and more than 8 KiB are
// refused.
//
// Errors: ErrURI.
// Source: guest-components attestation-agent/deps/resource_uri at 8246e5e0;
// https://url.spec.whatwg.org/#concept-basic-url-parser.
func ParseURI(text string) (URI, error) {
	u, err := parseURI(text)
	if err != nil {
		return URI{}, podvm.Explain(fmt.Errorf("%w: %q: %w", ErrURI, podvm.Printable(text, 256), err),
			"not a resource URI of the form kbs:///repository/type/tag")
	}
	return u, nil
}

func parseURI(text string) (u URI, err error) {
	if len(text) > maxURI {
		return u, fmt.Errorf("longer than %d bytes", maxURI)
	}
	if !utf8.ValidString(text) {
		return u, fmt.Errorf("not UTF-8")
	}
	text = strings.TrimFunc(text, func(r rune) bool { return r <= ' ' })
	text = strings.NewReplacer("\t", "", "\n", "", "\r", "").Replace(text)
	scheme, rest, ok := strings.Cut(text, ":")
	if !ok {
		return u, fmt.Errorf("no scheme")
	}
	if u.plugin, err = pluginOf(scheme); err != nil {
		return u, err
	}
	rest, _, _ = strings.Cut(rest, "#")
	rest, query, hasQuery := strings.Cut(rest, "?")
	if hasQuery {
		u.query = percentEncode(query, " \"<>")
	}
	path := rest
	if after, ok := strings.CutPrefix(rest, "//"); ok {
		host, p, slash := strings.Cut(after, "/")
		if u.authority, err = authority(host); err != nil {
			return u, err
		}
		if path = ""; slash {
			path = "/" + p
		}
	}
	if !strings.HasPrefix(path, "/") {
		return u, fmt.Errorf("no path that starts with /")
	}
	u.path = strings.Join(resolveDots(strings.Split(path[1:], "/")), "/")
	return u, nil
}

// Plugin returns the KBS plugin in lower case, "resource" by default.
func (u URI) Plugin() string { return u.plugin }

// Path returns the segments joined with "/", percent-encoded, with no slash
// before the first one: "default/key/1".
func (u URI) Path() string { return u.path }

// Query returns the text after "?", percent-encoded, or "".
func (u URI) Query() string { return u.query }

// String returns the canonical form. Host and port are kept though they do not
// say where the resource is fetched.
func (u URI) String() string {
	s := "kbs"
	if u.plugin != DefaultPlugin {
		s += "+" + u.plugin
	}
	s += "://" + u.authority + "/" + u.path
	if u.query != "" {
		s += "?" + u.query
	}
	return s
}

// pluginOf returns the plugin a scheme names.
func pluginOf(scheme string) (string, error) {
	for _, c := range []byte(scheme) {
		if c >= utf8.RuneSelf { // some letters beyond ASCII have an ASCII lower case
			return "", fmt.Errorf("the scheme is not ASCII")
		}
	}
	scheme = strings.ToLower(scheme)
	if scheme == "kbs" {
		return DefaultPlugin, nil
	}
	plugin, ok := strings.CutPrefix(scheme, "kbs+")
	if !ok {
		return "", fmt.Errorf("the scheme is not kbs or kbs+PLUGIN")
	}
	switch plugin {
	case "":
		return "", fmt.Errorf("the plugin name is empty")
	case ".", "..": // would be a segment of the path that is asked for
		return "", fmt.Errorf("the plugin name is a dot segment")
	}
	for _, c := range []byte(plugin) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '+' && c != '-' && c != '.' {
			return "", fmt.Errorf("the plugin name has a character no scheme has")
		}
	}
	return plugin, nil
}

// authority returns HOST[:PORT] in canonical form. A host is opaque: it is not
// looked up, put in lower case or converted.
func authority(text string) (string, error) {
	if text == "" {
		return "", nil
	}
	if strings.Contains(text, "@") {
		return "", fmt.Errorf("user information does not belong in it")
	}
	host, port := text, ""
	if i := strings.LastIndexByte(text, ':'); i > strings.LastIndexByte(text, ']') {
		host, port = text[:i], text[i+1:]
	}
	switch {
	case host == "":
		return "", fmt.Errorf("a port without a host")
	case host[0] == '[':
		ip, err := netip.ParseAddr(strings.TrimSuffix(host[1:], "]"))
		if err != nil || !ip.Is6() || ip.Zone() != "" || host[len(host)-1] != ']' {
			return "", fmt.Errorf("the host is not an IPv6 address in brackets")
		}
		host = "[" + ip.String() + "]"
		if ip.Is4In6() { // the URL standard writes no dots
			b := ip.As16()
			host = fmt.Sprintf("[::ffff:%x:%x]", uint(b[12])<<8|uint(b[13]), uint(b[14])<<8|uint(b[15]))
		}
	case strings.ContainsAny(host, "\x00 #/:<>?@[\\]^|"):
		return "", fmt.Errorf("the host has a character no host has")
	default:
		host = percentEncode(host, "")
	}
	if port == "" {
		return host, nil
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return "", fmt.Errorf("the port is not a number up to 65535")
	}
	return host + ":" + strconv.FormatUint(n, 10), nil
}

// resolveDots applies "." and ".." segments and encodes the others. One at the
// end leaves an empty segment, as the slash before it would.
func resolveDots(in []string) []string {
	out := make([]string, 0, len(in))
	for i, seg := range in {
		last := i == len(in)-1
		switch dots := strings.ReplaceAll(strings.ToLower(seg), "%2e", "."); dots {
		case ".":
		case "..":
			out = slices.Delete(out, max(0, len(out)-1), len(out))
		default:
			out = append(out, percentEncode(seg, " \"#<>?^`{}"))
			continue
		}
		if last {
			out = append(out, "")
		}
	}
	return out
}

// percentEncode encodes control characters, everything beyond ASCII and the
// bytes in set. A "%" stays as it is, whatever follows.
func percentEncode(s, set string) string {
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for _, c := range []byte(s) {
		if c <= 0x1f || c >= 0x7f || strings.IndexByte(set, c) >= 0 {
			b.Write([]byte{'%', hex[c>>4], hex[c&15]})
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}
