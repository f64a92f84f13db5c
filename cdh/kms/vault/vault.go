package vault

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"regexp"

	"github.com/sealpod/sealpod/cdh/internal/strict"
	"github.com/sealpod/sealpod/cdh/kms/internal/wire"
	"github.com/sealpod/sealpod/podvm"
)

// Default mounts of the engines, those of a Vault started for development.
const (
	transitMount = "transit"
	kvMount      = "secret"
)

// maxCiphertext caps a wrapped key in bytes of Vault's text form.
const maxCiphertext = 32 << 10

// New returns what opens the provider. Its settings, all of which may be absent:
// "address" of the server, which must be the credential's; "mount" of the
// engine, by default "transit" for keys and "secret" for secrets; "namespace" of
// a Vault that has them.
func New(env wire.Env) wire.Opener {
	tokens := wire.NewTokens(env.Now)
	return func(settings wire.Object) (wire.Provider, error) {
		p := &client{env: env, tokens: tokens}
		var err error
		for name, to := range map[string]*string{"address": &p.address, "mount": &p.mount, "namespace": &p.namespace} {
			if *to, err = settings.TextOr(name, ""); err != nil {
				return nil, wire.Settings(err)
			}
		}
		if p.address != "" {
			if p.address, err = canonical(p.address); err != nil {
				return nil, wire.Settings(fmt.Errorf("member \"address\": %w", err))
			}
		}
		if p.mount != "" && !isPath(p.mount) || p.namespace != "" && !isPath(p.namespace) {
			return nil, wire.Settings(errors.New("mount or namespace is not a path such as team/transit"))
		}
		return p, nil
	}
}

// client is the engines of one server.
type client struct {
	env       wire.Env
	tokens    *wire.Tokens // of AppRoles
	address   string       // "" for the credential's
	mount     string       // "" for the engine's default
	namespace string       // "" for none
}

func (c *client) mountOr(byDefault string) string {
	if c.mount == "" {
		return byDefault
	}
	return c.mount
}

// ciphertextForm is Vault's text form of what its transit engine encrypted.
var ciphertextForm = regexp.MustCompile(`^vault:v[1-9][0-9]{0,9}:[A-Za-z0-9+/]+=*$`)

// Decrypt implements wire.Provider with the transit engine. ciphertext is
// Vault's own text, "vault:v1:…". The annotation "context" is the standard
// base64 of the context of a derived key.
//
// Errors: those of package wire.
func (c *client) Decrypt(ctx context.Context, keyID string, ciphertext []byte, annotations wire.Object) (podvm.Secret, error) {
	if !keyForm.MatchString(keyID) {
		return nil, wire.Settings(errors.New("the key id is not the name of a transit key"))
	}
	if len(ciphertext) > maxCiphertext || !ciphertextForm.Match(ciphertext) {
		return nil, wire.Settings(errors.New("the wrapped key is not of the form vault:v1:BASE64"))
	}
	var derive []byte
	if _, ok := annotations["context"]; ok {
		var err error
		if derive, err = annotations.Bytes("context"); err != nil {
			return nil, wire.Settings(err)
		}
	}
	in := struct {
		Ciphertext string `json:"ciphertext"`
		Context    []byte `json:"context,omitempty"`
	}{string(ciphertext), derive}
	return c.call(ctx, http.MethodPost, c.mountOr(transitMount)+"/decrypt/"+keyID, in, func(data wire.Object) (podvm.Secret, error) {
		return strict.Secret(data["plaintext"])
	})
}

var versionForm = regexp.MustCompile(`^"?([1-9][0-9]{0,9})"?$`)

// Secret implements wire.Provider with the KV engine, version 2: one text field
// of the secret at the path name. The annotation "field" chooses it, by default
// "value" or else the only one; "version", a number or its text, chooses another
// version than the last one.
//
// Errors: those of package wire.
func (c *client) Secret(ctx context.Context, name string, annotations wire.Object) (podvm.Secret, error) {
	path, err := escapeSecret(name)
	if err != nil {
		return nil, wire.Settings(err)
	}
	path = c.mountOr(kvMount) + "/data/" + path
	if v, ok := annotations["version"]; ok {
		m := versionForm.FindSubmatch(v)
		if m == nil {
			return nil, wire.Settings(errors.New(`member "version": not a number from 1`))
		}
		path += "?version=" + string(m[1])
	}
	field, err := annotations.TextOr("field", "")
	if err != nil {
		return nil, wire.Settings(err)
	}
	return c.call(ctx, http.MethodGet, path, nil, func(data wire.Object) (podvm.Secret, error) {
		return pick(data, field)
	})
}

// pick returns a field of the answer of the KV engine.
func pick(data wire.Object, field string) (podvm.Secret, error) {
	fields, err := strict.Parse(data["data"])
	if err != nil {
		return nil, fmt.Errorf("member \"data\": %w", err)
	}
	if field == "" {
		field = "value"
		if _, ok := fields[field]; !ok && len(fields) == 1 {
			for field = range fields {
				break
			}
		}
	}
	v, ok := fields[field]
	if !ok {
		return nil, podvm.Explain(errField, "the secret does not have the field asked for")
	}
	out, err := strict.SecretText(v)
	if err != nil {
		return nil, podvm.Explain(errField, "the field of the secret is not text")
	}
	return out, nil
}

// errField says that a secret is there but not the field of it, or not as text.
var errField = errors.New("no such field of text")

// Owner is what the owner of a key has of Vault.
type Owner struct {
	Mount      string // of the transit engine; "" means "transit"
	Namespace  string // "" for none
	Credential []byte // content of a CredentialFile
}

// Encrypt wraps key with a transit key; derive is the context of a derived key,
// nil for none. It is for the owner's side and reads no files.
//
// Errors: those of package wire.
func Encrypt(ctx context.Context, env wire.Env, o Owner, keyID string, key podvm.Secret, derive []byte) (wire.Wrapped, error) {
	env.Files = wire.Content(o.Credential)
	cred, err := readCredential(env.Files)
	if err != nil {
		return wire.Wrapped{}, err
	}
	cred.wipe()
	if !keyForm.MatchString(keyID) || o.Mount != "" && !isPath(o.Mount) || o.Namespace != "" && !isPath(o.Namespace) {
		return wire.Wrapped{}, wire.Settings(errors.New("key id, mount or namespace does not make a path"))
	}
	c := &client{env: env, tokens: wire.NewTokens(env.Now), mount: o.Mount, namespace: o.Namespace}
	in := struct {
		Plaintext []byte `json:"plaintext"`
		Context   []byte `json:"context,omitempty"`
	}{key, derive}
	out, err := c.call(ctx, http.MethodPost, c.mountOr(transitMount)+"/encrypt/"+keyID, in, func(data wire.Object) (podvm.Secret, error) {
		return strict.SecretText(data["ciphertext"])
	})
	if err != nil {
		return wire.Wrapped{}, err
	}
	w := wire.Wrapped{Ciphertext: out, Settings: map[string]any{"address": cred.address}, Annotations: map[string]any{}}
	for name, v := range map[string]string{"mount": o.Mount, "namespace": o.Namespace} {
		if v != "" {
			w.Settings[name] = v
		}
	}
	if len(derive) > 0 {
		w.Annotations["context"] = base64.StdEncoding.EncodeToString(derive)
	}
	return w, nil
}
