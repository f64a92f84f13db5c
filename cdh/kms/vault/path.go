package vault

import (
	"errors"
	"net/url"
	"regexp"
	"strings"
	"unicode"

	"github.com/sealpod/sealpod/cdh/kms/internal/wire"
)

// Limits in bytes on what becomes part of a URL.
const (
	maxMount = 256
	maxPath  = 1024
)

var (
	// keyForm is that of the name of a transit key.
	// Source: Vault sdk/framework/path.go (GenericNameRegex) at v1.21.4.
	keyForm = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_.-]{0,126}[A-Za-z0-9_])?$`)
	// segmentForm is that of a part of a mount path or a namespace.
	segmentForm = regexp.MustCompile(`^[A-Za-z0-9_.-]+$`)
)

// isPath tells whether s is a mount path or a namespace such as "team/kv".
func isPath(s string) bool {
	if len(s) > maxMount {
		return false
	}
	for _, part := range strings.Split(s, "/") {
		if part == "." || part == ".." || !segmentForm.MatchString(part) {
			return false
		}
	}
	return true
}

// escapeSecret returns the path of a secret for a URL. Vault takes nearly any
// character in it; no parts may be empty or lead elsewhere.
func escapeSecret(s string) (string, error) {
	parts := strings.Split(s, "/")
	for i, part := range parts {
		if part == "" || part == "." || part == ".." || strings.ContainsFunc(part, unicode.IsControl) {
			return "", errors.New("the name of the secret is not a path such as team/db")
		}
		parts[i] = url.PathEscape(part)
	}
	if len(s) > maxPath {
		return "", errors.New("the name of the secret is too long")
	}
	return strings.Join(parts, "/"), nil
}

// canonical returns the one form of an address that compares equal.
func canonical(address string) (string, error) {
	u, err := wire.BaseURL(address)
	if err != nil {
		return "", err
	}
	u.Host = strings.ToLower(u.Host)
	if port := map[string]string{"https": ":443", "http": ":80"}[u.Scheme]; strings.HasSuffix(u.Host, port) {
		u.Host = strings.TrimSuffix(u.Host, port)
	}
	u.Path, u.RawPath = strings.TrimRight(u.Path, "/"), ""
	if u.Path != "" && !isPath(u.Path[1:]) {
		return "", errors.New("its path is not plain")
	}
	return u.String(), nil
}
