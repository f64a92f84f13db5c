package azure

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sealpod/sealpod/cdh/kms/internal/wire"
	"github.com/sealpod/sealpod/podvm"
)

// Owner says how the owner of a vault reaches it and how the guest will.
type Owner struct {
	VaultURL string
	// Token is an access token for the vault, as "az account get-access-token
	// --resource https://vault.azure.net" prints it.
	Token podvm.Secret
	// Credential is the content of a CredentialFile, which logs in when there
	// is no Token.
	Credential []byte
	// Algorithm is RSA-OAEP-256 when empty.
	Algorithm string
	// ClientType and ClientID become settings of the guest: managed_identity,
	// which is meant when it is empty, with an id or without, or client_secret.
	ClientType, ClientID string
}

// Encrypt wraps key with the key keyID, NAME/VERSION, of the vault. It is for the
// owner's side and reads no files.
//
// Errors: those of package wire.
func Encrypt(ctx context.Context, env wire.Env, o Owner, keyID string, key podvm.Secret) (wire.Wrapped, error) {
	w, err := o.encrypt(ctx, env, keyID, key)
	if err != nil {
		return wire.Wrapped{}, fmt.Errorf("wrapping a key: %w", err)
	}
	return *w, nil
}

func (o Owner) encrypt(ctx context.Context, env wire.Env, keyID string, key podvm.Secret) (*wire.Wrapped, error) {
	if len(key) == 0 {
		return nil, wire.Settings(errors.New("the key is empty"))
	}
	if o.Algorithm == "" {
		o.Algorithm = rsaOAEP256
	}
	if o.ClientType == "" {
		o.ClientType = managedIdentityType
	}
	p, err := parsePlace(o.VaultURL)
	if err != nil {
		return nil, wire.Settings(err)
	}
	v := &vault{env: env, place: p, tokens: wire.NewTokens(env.Now), login: given(o.Token)}
	if len(o.Token) == 0 {
		env.Files = wire.Content(o.Credential)
		v.login = &clientSecret{env, p}
	}
	wrapped, err := v.withKey(ctx, keyID, "wrapkey", o.Algorithm, key)
	if err != nil {
		return nil, err
	}
	w := &wire.Wrapped{
		Ciphertext:  wrapped,
		Settings:    map[string]any{"vault_url": "https://" + p.host(), "client_type": o.ClientType},
		Annotations: map[string]any{"algorithm": o.Algorithm},
	}
	if o.ClientID != "" {
		w.Settings["client_id"] = o.ClientID
	}
	return w, nil
}

// given is a token somebody already has.
type given podvm.Secret

func (g given) prepare() (wire.TokenKey, fetchFunc, error) {
	fetch := func(context.Context) (podvm.Secret, time.Duration, error) {
		return podvm.Secret(bytes.Clone(g)), wire.Forever, nil
	}
	return wire.TokenKey{}, fetch, nil
}
