package aliyun

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"

	"github.com/sealpod/sealpod/cdh/kms/internal/wire"
	"github.com/sealpod/sealpod/podvm"
)

// instance is a dedicated KMS instance that a client key opens.
type instance struct {
	env   wire.Env
	id    string // of the instance, a label
	keyID string // of the client key, a name
}

func newInstance(env wire.Env, settings wire.Object) (*instance, error) {
	id, err := settings.Text("kms_instance_id")
	if err != nil {
		return nil, err
	}
	if !isLabel(id) {
		return nil, errors.New(`member "kms_instance_id": want letters, digits and hyphens`)
	}
	keyID, err := settings.Text("client_key_id")
	if err != nil {
		return nil, err
	}
	if !isName(keyID) {
		return nil, errors.New(`member "client_key_id": want letters, digits, hyphens and dots`)
	}
	return &instance{env, id, keyID}, nil
}

// Decrypt implements wire.Provider. The annotation iv is what the service gave
// out when it encrypted.
func (p *instance) Decrypt(ctx context.Context, keyID string, ciphertext []byte, annotations wire.Object) (podvm.Secret, error) {
	iv, err := annotations.Bytes("iv")
	if err == nil && (len(iv) == 0 || keyID == "" || len(ciphertext) == 0) {
		err = errors.New("the iv, the key id or the ciphertext is empty")
	}
	if err != nil {
		return nil, wire.Settings(err)
	}
	return p.ask(ctx, "Decrypt", decryptRequest(keyID, ciphertext, iv), plaintext)
}

// Secret implements wire.Provider: the text of the secret as it is, in whatever
// encoding its owner chose. The annotations version_stage and version_id are
// optional.
func (p *instance) Secret(ctx context.Context, name string, annotations wire.Object) (podvm.Secret, error) {
	stage, version, err := version(annotations)
	if err != nil {
		return nil, err
	}
	if name == "" {
		return nil, wire.Settings(errors.New("the name of the secret is empty"))
	}
	return p.ask(ctx, "GetSecretValue", secretRequest(name, stage, version), secretText)
}

// ask has the service do api and returns what read finds in its answer.
func (p *instance) ask(ctx context.Context, api string, body message, read func([]byte) (podvm.Secret, error)) (podvm.Secret, error) {
	key, err := p.key()
	if err != nil {
		return nil, err
	}
	client, err := p.client()
	if err != nil {
		return nil, err
	}
	raw, err := call(ctx, client, p.id, p.env, key, api, body)
	if err != nil {
		return nil, err
	}
	defer raw.Wipe()
	secret, err := read(raw)
	if err != nil {
		return nil, wire.Malformed(service, err)
	}
	return secret, nil
}

// key reads the client key. Errors: wire.ErrCredential.
func (p *instance) key() (*clientKey, error) {
	name := "clientKey_" + p.keyID + ".json"
	file, err := p.env.Files.Read(name)
	if err != nil {
		return nil, err
	}
	defer file.Wipe()
	password, err := p.env.Files.Read("password_" + p.keyID + ".json")
	if err != nil {
		return nil, err
	}
	defer password.Wipe()
	key, err := parseClientKey(file, password)
	if err != nil {
		return nil, wire.Credential(name, err)
	}
	return key, nil
}

// client returns one that trusts the CA of the instance too. Errors:
// wire.ErrCredential.
func (p *instance) client() (*wire.Client, error) {
	name := "PrivateKmsCA_" + p.id + ".pem"
	ca, err := p.env.Files.Read(name)
	if err != nil {
		return nil, err
	}
	client, err := p.env.HTTP.Trusting(ca)
	if err != nil {
		return nil, wire.Credential(name, err)
	}
	return client, nil
}

// call sends one signed message to the instance id and returns the answer, which
// the caller wipes. Errors: wire.ErrService, wire.ErrUnreachable.
func call(ctx context.Context, client *wire.Client, id string, env wire.Env, key *clientKey, api string, body message) (podvm.Secret, error) {
	resp, err := client.Do(ctx, wire.Request{
		Service: service,
		Method:  http.MethodPost,
		URL:     "https://" + id + ".cryptoservice.kms.aliyuncs.com/",
		Body:    body,
		Sign: func(r *http.Request) error {
			h, err := key.header(api, body, env.Now())
			maps.Copy(r.Header, h)
			return err
		},
		Again: func(r *wire.Response) bool {
			code, _ := serviceError(r.Body)
			return throttled(code)
		},
	})
	if err != nil {
		return nil, fmt.Errorf("calling %s of KMS instance %s: %w", api, id, err)
	}
	if resp.Status != http.StatusOK {
		defer resp.Body.Wipe()
		code, text := serviceError(resp.Body)
		return nil, fmt.Errorf("calling %s of KMS instance %s: %w", api, id, refused(service, resp.Status, code, text))
	}
	return resp.Body, nil
}
