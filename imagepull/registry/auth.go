package registry

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/sealpod/sealpod/imagepull/policy"
	"github.com/sealpod/sealpod/podvm"
)

// ErrAuthFile says that an auth.json cannot be used.
var ErrAuthFile = errors.New("invalid registry credentials file")

// Credentials log in to a registry. The zero value is anonymous.
type Credentials struct {
	Username string
	Password podvm.Secret
}

func (c Credentials) anonymous() bool { return c.Username == "" && len(c.Password) == 0 }

// basic is the header of basic authentication.
func (c Credentials) basic() string {
	raw := slices.Concat([]byte(c.Username), []byte(":"), c.Password)
	defer clear(raw)
	return "Basic " + base64.StdEncoding.EncodeToString(raw)
}

// key tells credentials apart without keeping them.
func (c Credentials) key() string {
	sum := sha256.New()
	fmt.Fprintf(sum, "%d:%s", len(c.Username), c.Username)
	sum.Write(c.Password) //nolint:errcheck // a hash never fails
	return hex.EncodeToString(sum.Sum(nil))
}

// AuthFile is a parsed auth.json: {"auths":{"<key>":{"auth":"base64(user:pass)"}}}.
// Credential helpers and identity tokens are not supported; entries without
// "auth", which helpers leave behind, are skipped. The zero value knows nobody.
// Source: guest-components image-rs auth/auth_config.rs at 8246e5e.
type AuthFile struct {
	auths map[string]podvm.Secret // key -> base64 text, decoded on use
}

// ParseAuthFile reads an auth.json. Errors wrap ErrAuthFile and quote nothing
// of the file.
func ParseAuthFile(raw []byte) (*AuthFile, error) {
	var doc struct {
		Auths map[string]struct {
			Auth string `json:"auth"`
		} `json:"auths"`
	}
	if err := json.Unmarshal(raw, &doc); err != nil {
		// The cause would quote the file, and the file holds passwords.
		return nil, fmt.Errorf("%w: not the JSON of an auth.json", ErrAuthFile)
	}
	if doc.Auths == nil {
		return nil, fmt.Errorf("%w: no \"auths\"", ErrAuthFile)
	}
	a := &AuthFile{auths: map[string]podvm.Secret{}}
	// Capitals sort first: of the same name in several cases the plainest stays.
	for _, key := range slices.Sorted(maps.Keys(doc.Auths)) {
		if entry := doc.Auths[key]; entry.Auth != "" {
			a.auths[foldKey(key)] = podvm.Secret(entry.Auth)
		}
	}
	return a, nil
}

// foldKey returns key with its host in lower case.
func foldKey(key string) string {
	scheme, rest, isURL := strings.Cut(key, "://")
	if !isURL {
		return policy.FoldHost(key)
	}
	return strings.ToLower(scheme) + "://" + policy.FoldHost(rest)
}

// For returns the credentials for ref: those of the longest key among
// host/path, its parents and host; else those of a key that names the host
// alone, as a URL or bare. The names of Docker Hub are one host, and hosts have no
// case. No key means
// anonymous. An entry that was chosen but cannot be decoded is ErrAuthFile.
func (a *AuthFile) For(ref Reference) (Credentials, error) {
	key, ok := a.key(ref)
	if !ok {
		return Credentials{}, nil
	}
	raw, err := base64.StdEncoding.DecodeString(string(a.auths[key]))
	if err != nil {
		return Credentials{}, fmt.Errorf("%w: entry %q is not base64", ErrAuthFile, podvm.Printable(key, 128))
	}
	user, password, ok := strings.Cut(string(raw), ":")
	clear(raw)
	if !ok {
		return Credentials{}, fmt.Errorf("%w: entry %q is not user:password", ErrAuthFile, podvm.Printable(key, 128))
	}
	return Credentials{Username: user, Password: podvm.Secret(strings.TrimRight(password, "\r\n"))}, nil
}

func (a *AuthFile) key(ref Reference) (string, bool) {
	for name := ref.Name(); ; {
		if _, ok := a.auths[name]; ok {
			return name, true
		}
		i := strings.LastIndexByte(name, '/')
		if i < 0 {
			break
		}
		name = name[:i]
	}
	want := hubAlias(ref.Registry)
	for _, key := range slices.Sorted(maps.Keys(a.auths)) {
		host := key
		if scheme, rest, isURL := strings.Cut(key, "://"); isURL && (scheme == "http" || scheme == "https") {
			host = hostOf(rest)
		}
		if hubAlias(host) == want {
			return key, true
		}
	}
	return "", false
}

// hubAlias maps the names of Docker Hub to one.
func hubAlias(host string) string {
	switch host {
	case "registry-1.docker.io", "index.docker.io":
		return dockerHub
	}
	return host
}
