package aliyun

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"

	"github.com/sealpod/sealpod/cdh/kms/internal/wire"
	"github.com/sealpod/sealpod/podvm"
)

// Owner is what the owner of a key has from Alibaba Cloud, as file contents.
type Owner struct {
	InstanceID string // "kst-…"
	ClientKey  []byte // the client key file
	Password   []byte // the file of its password
	CA         []byte // the CA certificate of the instance, PEM
}

// Encrypt wraps key with the key keyID of the instance, so that a guest with the
// same client key among its credentials can Decrypt it. It is for the owner's
// side and reads no files.
//
// Errors: those of package wire.
func Encrypt(ctx context.Context, env wire.Env, o Owner, keyID string, key podvm.Secret) (wire.Wrapped, error) {
	w, err := o.encrypt(ctx, env, keyID, key)
	if err != nil {
		return wire.Wrapped{}, fmt.Errorf("wrapping a key: %w", err)
	}
	return *w, nil
}

func (o Owner) encrypt(ctx context.Context, env wire.Env, keyID string, plain podvm.Secret) (*wire.Wrapped, error) {
	if !isLabel(o.InstanceID) || keyID == "" || len(plain) == 0 {
		return nil, wire.Settings(errors.New("want an instance id of letters, digits and hyphens, a key id and a key"))
	}
	key, err := parseClientKey(o.ClientKey, o.Password)
	if err != nil {
		return nil, wire.Credential("client key", err)
	}
	client, err := env.HTTP.Trusting(o.CA)
	if err != nil {
		return nil, wire.Credential("CA certificate", err)
	}
	body := encryptRequest(keyID, plain)
	defer clear(body)
	raw, err := call(ctx, client, o.InstanceID, env, key, "Encrypt", body)
	if err != nil {
		return nil, err
	}
	f, err := fields(raw, encryptedCiphertext, encryptedIV)
	if err == nil && (len(f[0]) == 0 || len(f[1]) == 0) {
		err = errors.New("no ciphertext or no iv")
	}
	if err != nil {
		return nil, wire.Malformed(service, err)
	}
	return &wire.Wrapped{
		Ciphertext:  f[0],
		Settings:    map[string]any{"client_type": "client_key", "client_key_id": key.id, "kms_instance_id": o.InstanceID},
		Annotations: map[string]any{"iv": base64.StdEncoding.EncodeToString(f[1])},
	}, nil
}
