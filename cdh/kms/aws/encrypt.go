package aws

import (
	"context"
	"fmt"

	"github.com/sealpod/sealpod/cdh/internal/strict"
	"github.com/sealpod/sealpod/cdh/kms/internal/wire"
	"github.com/sealpod/sealpod/podvm"
)

// maxPlaintext is what KMS encrypts, in bytes.
// Source: AWS KMS API Reference (Encrypt).
const maxPlaintext = 4096

// Owner is what the owner of a key has from AWS.
type Owner struct {
	Region     string // as in "eu-west-1"
	Credential []byte // content of a CredentialFile
}

// Encrypt wraps key with a key of KMS; with is the encryption context, nil for
// none. It is for the owner's side and reads no files.
//
// Errors: those of package wire.
func Encrypt(ctx context.Context, env wire.Env, o Owner, keyID string, key podvm.Secret, with map[string]string) (wire.Wrapped, error) {
	env.Files = wire.Content(o.Credential)
	c, err := newClient(env, o.Region)
	if err != nil {
		return wire.Wrapped{}, err
	}
	if err := checkName("key id", keyID); err != nil {
		return wire.Wrapped{}, err
	}
	if len(key) == 0 || len(key) > maxPlaintext {
		return wire.Wrapped{}, wire.Settings(fmt.Errorf("key of %d bytes: AWS KMS encrypts 1 to %d", len(key), maxPlaintext))
	}
	in := struct {
		KeyID             string `json:"KeyId"`
		Plaintext         []byte
		EncryptionContext map[string]string `json:",omitempty"`
	}{keyID, key, with}
	out, err := c.call(ctx, kms, "Encrypt", in, func(o wire.Object) (podvm.Secret, error) { return strict.Secret(o["CiphertextBlob"]) })
	if err != nil {
		return wire.Wrapped{}, err
	}
	w := wire.Wrapped{Ciphertext: out, Settings: map[string]any{"region": o.Region}, Annotations: map[string]any{}}
	if len(with) > 0 {
		w.Annotations["encryption_context"] = with
	}
	return w, nil
}
