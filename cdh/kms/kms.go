package kms

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/sealpod/sealpod/cdh/internal/strict"
	"github.com/sealpod/sealpod/cdh/kms/internal/wire"
	"github.com/sealpod/sealpod/podvm"
)

type (
	// Object is a JSON object of provider settings or annotations.
	Object = wire.Object
	// Provider is a key management service with its settings.
	Provider = wire.Provider
	// Env is what a provider has of the world around it.
	Env = wire.Env
	// Wrapped is a key as a service wrapped it for the guest.
	Wrapped = wire.Wrapped
)

// What callers tell apart. Each comes with a sentence for podvm.Cause.
var (
	// ErrUnknownProvider says that this build has no provider of that name.
	ErrUnknownProvider = errors.New("unknown KMS provider")
	ErrSettings        = wire.ErrSettings    // see there
	ErrCredential      = wire.ErrCredential  // see there
	ErrUnsupported     = wire.ErrUnsupported // see there
	ErrService         = wire.ErrService     // see there
	ErrUnreachable     = wire.ErrUnreachable // see there
)

// ParseObject reads a JSON object strictly: names must differ, nothing follows
// it. Nothing at all and null are errors. Errors: ErrSettings.
func ParseObject(raw []byte) (Object, error) {
	o, err := strict.Parse(raw)
	if err != nil {
		return nil, wire.Settings(err)
	}
	return o, nil
}

// Config says what a Client works with. The zero value works.
type Config struct {
	// Host is the machine with the credential files and the environment.
	Host podvm.Host
	// Log takes warnings; nil: slog.Default.
	Log *slog.Logger
}

// Client opens providers. It keeps connections and logins, is safe for
// concurrent use and must be closed.
type Client struct {
	http      *wire.Client
	providers map[string]wire.Opener
}

// New returns a Client. It touches neither network nor files.
func New(cfg Config) *Client {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	client := wire.NewClient(wire.ClientConfig{Host: cfg.Host, Log: cfg.Log})
	c := &Client{http: client, providers: map[string]wire.Opener{}}
	for name, open := range providers {
		env := cfg.env()
		env.HTTP, env.Files = c.http, wire.CredentialDir(cfg.Host, name)
		c.providers[name] = open(env)
	}
	return c
}

func (cfg Config) env() Env { return Env{Host: cfg.Host, Now: time.Now, Log: cfg.Log} }

// OwnerEnv returns what Encrypt of a provider package needs, and what closes its
// connections. It is for the owner's side: no credential files are read.
func OwnerEnv(cfg Config) (Env, func()) {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	env := cfg.env()
	env.HTTP = wire.NewClient(wire.ClientConfig{Host: cfg.Host, Log: cfg.Log})
	return env, env.HTTP.Close
}

// Close closes the connections that are kept open.
func (c *Client) Close() { c.http.Close() }

// Open returns the provider of that name, in any case, with its settings. It
// does not wait for anything: connections are made by the provider's calls.
// Errors: ErrUnknownProvider, ErrSettings.
func (c *Client) Open(_ context.Context, name string, settings Object) (Provider, error) {
	open := c.providers[strings.ToLower(name)]
	if open == nil {
		name = podvm.Printable(name, 64)
		have := strings.Join(slices.Sorted(maps.Keys(c.providers)), ", ")
		return nil, podvm.Explain(fmt.Errorf("%w: %q", ErrUnknownProvider, name),
			fmt.Sprintf("unknown KMS provider %q: this build has %s", name, have))
	}
	p, err := open(settings)
	if err != nil {
		return nil, fmt.Errorf("opening the KMS provider %s: %w", strings.ToLower(name), err)
	}
	return bounded{p}, nil
}

// timeout bounds a call with all its requests. Clients of the data hub wait 50 s.
const timeout = 45 * time.Second

// What a document may name, in bytes: far more than any service takes, and too
// little to make copies of it worth an attack.
const (
	maxName    = 4 << 10
	maxWrapped = 256 << 10
)

var errTooLong = errors.New("the key, the secret's name or the wrapped key is too long")

// bounded is a Provider whose calls end and whose arguments are short.
type bounded struct{ p Provider }

// Decrypt implements Provider.
func (b bounded) Decrypt(ctx context.Context, keyID string, ciphertext []byte, annotations Object) (podvm.Secret, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if len(keyID) > maxName || len(ciphertext) > maxWrapped {
		return nil, wire.Settings(errTooLong)
	}
	return b.p.Decrypt(ctx, keyID, ciphertext, annotations)
}

// Secret implements Provider.
func (b bounded) Secret(ctx context.Context, name string, annotations Object) (podvm.Secret, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if len(name) > maxName {
		return nil, wire.Settings(errTooLong)
	}
	return b.p.Secret(ctx, name, annotations)
}
