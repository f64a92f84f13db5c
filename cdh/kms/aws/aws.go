package aws

import (
	"context"
	"errors"
	"fmt"

	"github.com/sealpod/sealpod/cdh/internal/strict"
	"github.com/sealpod/sealpod/cdh/kms/internal/wire"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/sigv4"
)

// Limits of the services.
// Source: AWS KMS API Reference (Decrypt), Secrets Manager API Reference
// (GetSecretValue).
const (
	maxCiphertext = 6144 // bytes
	maxName       = 2048 // characters of a key id or secret id
)

// New returns what opens the provider. Its settings are the region, as in
// {"region":"eu-west-1"}.
// Source: guest-components confidential-data-hub/kms/src/plugins/aws at 8246e5e.
func New(env wire.Env) wire.Opener {
	return func(settings wire.Object) (wire.Provider, error) {
		region, err := settings.Text("region")
		if err != nil {
			return nil, wire.Settings(err)
		}
		return newClient(env, region)
	}
}

// client is KMS and Secrets Manager of one region.
type client struct {
	env    wire.Env
	region string
	suffix string // of host names
}

func newClient(env wire.Env, region string) (*client, error) {
	if !sigv4.IsRegion(region) {
		return nil, wire.Settings(errors.New(`member "region": not an AWS region such as eu-west-1`))
	}
	return &client{env: env, region: region, suffix: sigv4.DNSSuffix(region)}, nil
}

// Decrypt implements wire.Provider with the operation Decrypt of KMS. The
// annotation "encryption_context", an object of strings, must be what the key
// was encrypted with.
//
// Errors: those of package wire.
func (c *client) Decrypt(ctx context.Context, keyID string, ciphertext []byte, annotations wire.Object) (podvm.Secret, error) {
	context, err := annotations.Texts("encryption_context")
	if err != nil {
		return nil, wire.Settings(err)
	}
	if err := checkName("key id", keyID); err != nil {
		return nil, err
	}
	if len(ciphertext) == 0 || len(ciphertext) > maxCiphertext {
		return nil, wire.Settings(fmt.Errorf("wrapped key of %d bytes: AWS KMS takes 1 to %d", len(ciphertext), maxCiphertext))
	}
	in := struct {
		KeyID             string            `json:"KeyId"`
		CiphertextBlob    []byte            // JSON has it in base64, as the service wants it
		EncryptionContext map[string]string `json:",omitempty"`
	}{keyID, ciphertext, context}
	return c.call(ctx, kms, "Decrypt", in, plaintext)
}

// Secret implements wire.Provider with the operation GetSecretValue of Secrets
// Manager: the text of the secret or else its bytes. name is the name or the ARN
// of the secret; the annotations "version_id" and "version_stage" choose another
// version than the current one.
//
// Errors: those of package wire.
func (c *client) Secret(ctx context.Context, name string, annotations wire.Object) (podvm.Secret, error) {
	if err := checkName("secret", name); err != nil {
		return nil, err
	}
	in := struct {
		SecretID     string `json:"SecretId"`
		VersionID    string `json:"VersionId,omitempty"`
		VersionStage string `json:",omitempty"`
	}{SecretID: name}
	var err error
	if in.VersionID, err = annotations.TextOr("version_id", ""); err != nil {
		return nil, wire.Settings(err)
	}
	if in.VersionStage, err = annotations.TextOr("version_stage", ""); err != nil {
		return nil, wire.Settings(err)
	}
	return c.call(ctx, secretsManager, "GetSecretValue", in, secretValue)
}

func checkName(what, name string) error {
	if name == "" || len(name) > maxName {
		return wire.Settings(fmt.Errorf("%s of %d bytes: AWS takes 1 to %d", what, len(name), maxName))
	}
	return nil
}

func plaintext(o wire.Object) (podvm.Secret, error) { return strict.Secret(o["Plaintext"]) }

func secretValue(o wire.Object) (podvm.Secret, error) {
	switch {
	case o.Has("SecretString"):
		return strict.SecretText(o["SecretString"])
	case o.Has("SecretBinary"):
		return strict.Secret(o["SecretBinary"])
	}
	return nil, errors.New("neither SecretString nor SecretBinary")
}
