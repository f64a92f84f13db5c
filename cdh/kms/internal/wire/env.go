package wire

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"path"
	"strings"
	"time"

	"github.com/sealpod/sealpod/cdh/internal/confined"
	"github.com/sealpod/sealpod/cdh/internal/strict"
	"github.com/sealpod/sealpod/podvm"
)

// Object is a JSON object of provider settings or annotations. Its names all
// differ; its getters are strict. Members a provider does not know are ignored,
// as upstream does.
type Object = strict.Object

// Provider is a key management service with its settings. It is safe for
// concurrent use. Credentials are read for each call.
type Provider interface {
	// Decrypt decrypts with a key of the service. The caller wipes the result.
	Decrypt(ctx context.Context, keyID string, ciphertext []byte, annotations Object) (podvm.Secret, error)
	// Secret returns the content of a secret. The caller wipes the result.
	Secret(ctx context.Context, name string, annotations Object) (podvm.Secret, error)
}

// Opener makes a Provider of settings. It opens no connection. Errors:
// ErrSettings.
type Opener func(settings Object) (Provider, error)

// Wrapped is what a service made of a key on the owner's side, with all that
// Provider.Decrypt needs in the guest.
type Wrapped struct {
	Ciphertext  []byte
	Settings    map[string]any // provider_settings
	Annotations map[string]any
}

// Env is what a provider has of the world around it. All members are set.
type Env struct {
	Host  podvm.Host
	HTTP  *Client
	Files Files // of this provider; nil on the owner's side
	Now   func() time.Time
	Log   *slog.Logger
}

// Files gives out the credential files of one provider.
type Files interface {
	// Read returns a file as it is. The caller wipes it. Errors: ErrCredential.
	Read(name string) (podvm.Secret, error)
}

// maxCredential caps a credential file in bytes: a few keys, or a chain of CA
// certificates.
const maxCredential = 64 << 10

// Dir is a directory of the machine with credential files, to which reading is
// confined.
type Dir string

// CredentialDir is where the credential files of a provider are: below
// podvm.CDHResourceDir, or where the variable <PROVIDER>_IN_GUEST_KEY_PATH says.
// Source: guest-components confidential-data-hub/kms/src/plugins/mod.rs and
// plugins/{aliyun,aws}/** at 8246e5e.
func CredentialDir(host podvm.Host, provider string) Dir {
	dir := host.Getenv(strings.ToUpper(provider) + "_IN_GUEST_KEY_PATH")
	if dir == "" {
		dir = path.Join(podvm.CDHResourceDir, "kms-credential", provider)
	}
	return Dir(host.Path(dir))
}

// Read implements Files.
func (d Dir) Read(name string) (podvm.Secret, error) {
	b, err := confined.Read(string(d), name, maxCredential)
	if err != nil {
		return nil, Credential(name, err)
	}
	return b, nil
}

// Content is a file of the owner's that Read returns under every name.
type Content []byte

// Read implements Files.
func (c Content) Read(string) (podvm.Secret, error) { return bytes.Clone(c), nil }

// Endpoint returns the base URL of a service: the value of an environment
// variable, which only the machine's owner can set, or else byDefault.
func (e Env) Endpoint(variable, byDefault string) (string, error) {
	v := strings.TrimRight(e.Host.Getenv(variable), "/")
	if v == "" {
		return byDefault, nil
	}
	if _, err := BaseURL(v); err != nil {
		return "", Settings(fmt.Errorf("environment variable %s: %w", variable, err))
	}
	return v, nil
}

// BaseURL reads the address of a server: https://HOST[:PORT][/PATH], or with
// http where HOST is a loopback address or localhost.
func BaseURL(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	switch {
	case err != nil: // whose text quotes s
		return nil, errors.New("not a URL")
	case u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || u.Opaque != "":
		return nil, errors.New("want https://HOST[:PORT][/PATH] and no more")
	case u.Scheme != "https" && (u.Scheme != "http" || !loopback(u.Hostname())):
		return nil, errors.New("want https, or http to this machine only")
	}
	return u, nil
}

func loopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback() || err != nil && net.ParseIP(host) == nil && host == "localhost"
}
