package azure

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/sealpod/sealpod/cdh/internal/strict"
	"github.com/sealpod/sealpod/cdh/kms/internal/wire"
	"github.com/sealpod/sealpod/podvm"
)

const (
	// service is the name of the KMS for people.
	service = "Azure Key Vault"
	// apiVersion is stable since 2023; vaults of every cloud have it.
	apiVersion = "?api-version=7.4"
	// freshToken is the age below which a refusal is final: it bounds how often
	// someone who keeps asking for what the vault does not give makes the guest
	// log in.
	freshToken = 10 * time.Second
	// maxWrapped caps a wrapped key in bytes: RSA of 4096 bits has 512.
	maxWrapped = 4096
)

// Algorithms of key wrapping. RSA-OAEP with SHA-1 and RSA1_5, which Key Vault
// also has, are not for new data.
const (
	rsaOAEP256 = "RSA-OAEP-256"
	aes256KW   = "A256KW"
)

// New returns what opens providers of this kind. Their access tokens are kept
// for all that it opens.
func New(env wire.Env) wire.Opener {
	kept := wire.NewTokens(env.Now)
	return func(settings wire.Object) (wire.Provider, error) {
		v, err := open(env, kept, settings)
		if err != nil {
			return nil, wire.Settings(err)
		}
		return v, nil
	}
}

// vault is a key vault or an HSM.
type vault struct {
	env    wire.Env
	place  place
	tokens *wire.Tokens
	login  login
}

func open(env wire.Env, kept *wire.Tokens, settings wire.Object) (*vault, error) {
	url, err := settings.Text("vault_url")
	if err != nil {
		return nil, err
	}
	p, err := parsePlace(url)
	if err != nil {
		return nil, fmt.Errorf("member %q: %w", "vault_url", err)
	}
	kind, err := settings.Text("client_type")
	if err != nil {
		return nil, err
	}
	v := &vault{env: env, place: p, tokens: kept}
	switch kind {
	case managedIdentityType:
		v.login, err = newManagedIdentity(env, p, settings)
	case clientSecretType:
		v.login = &clientSecret{env, p}
	default:
		err = errors.New(`member "client_type" is none of managed_identity, client_secret`)
	}
	return v, err
}

// Decrypt implements wire.Provider.
func (v *vault) Decrypt(ctx context.Context, keyID string, ciphertext []byte, annotations wire.Object) (podvm.Secret, error) {
	algorithm, err := annotations.TextOr("algorithm", rsaOAEP256)
	if err == nil && !slices.Contains([]string{rsaOAEP256, aes256KW}, algorithm) {
		err = errors.New(`member "algorithm" is none of RSA-OAEP-256, A256KW`)
	}
	if err == nil && (len(ciphertext) == 0 || len(ciphertext) > maxWrapped) {
		err = fmt.Errorf("wrapped key of %d bytes: want 1 to %d", len(ciphertext), maxWrapped)
	}
	if err != nil {
		return nil, wire.Settings(err)
	}
	return v.withKey(ctx, keyID, "unwrapkey", algorithm, ciphertext)
}

// withKey has the vault perform an operation with a key on value.
func (v *vault) withKey(ctx context.Context, keyID, operation, algorithm string, value []byte) (podvm.Secret, error) {
	path, err := v.place.object("keys", keyID)
	if err == nil && strings.Count(path, "/") != 3 {
		err = errors.New("key id without a version: want NAME/VERSION")
	}
	if err != nil {
		return nil, wire.Settings(err)
	}
	body, err := json.Marshal(map[string]string{"alg": algorithm, "value": base64.RawURLEncoding.EncodeToString(value)})
	if err != nil {
		return nil, fmt.Errorf("encoding the request: %w", err)
	}
	defer clear(body) // on the owner's side it holds a key
	return v.ask(ctx, http.MethodPost, path+"/"+operation, body, secretBase64)
}

// Secret implements wire.Provider: the value of the secret as it is.
func (v *vault) Secret(ctx context.Context, name string, _ wire.Object) (podvm.Secret, error) {
	path, err := v.place.object("secrets", name)
	if err != nil {
		return nil, wire.Settings(err)
	}
	return v.ask(ctx, http.MethodGet, path, nil, strict.SecretText)
}

// ask makes a request with a token and returns what read makes of the member
// value of the answer. A token the vault does not take is replaced once, unless it is new.
func (v *vault) ask(ctx context.Context, method, path string, body []byte, read func(json.RawMessage) (podvm.Secret, error)) (podvm.Secret, error) {
	key, fetch, err := v.login.prepare()
	if err != nil {
		return nil, err
	}
	token, err := v.tokens.Get(ctx, key, nil, fetch)
	if err != nil {
		return nil, err
	}
	defer token.Value.Wipe()
	resp, err := v.do(ctx, method, path, body, token.Value)
	if err == nil && resp.Status == http.StatusUnauthorized && v.env.Now().Sub(token.Since) >= freshToken {
		resp.Body.Wipe()
		v.env.Log.Info("Access token refused, getting another", "vault", v.place.host())
		refused := token.Value
		if token, err = v.tokens.Get(ctx, key, refused, fetch); err != nil {
			return nil, err
		}
		defer token.Value.Wipe()
		resp, err = v.do(ctx, method, path, body, token.Value)
	}
	if err != nil {
		return nil, fmt.Errorf("asking %s: %w", v.place.host(), err)
	}
	defer resp.Body.Wipe()
	if resp.Status != http.StatusOK {
		return nil, fmt.Errorf("asking %s: %w", v.place.host(), refused(service, resp))
	}
	o, err := strict.Parse(resp.Body)
	if err != nil {
		return nil, wire.Malformed(service, err)
	}
	secret, err := read(o["value"])
	if err == nil && len(secret) == 0 {
		err = errors.New("empty")
	}
	if err != nil {
		return nil, wire.Malformed(service, fmt.Errorf("member %q: %w", "value", err))
	}
	return secret, nil
}

func (v *vault) do(ctx context.Context, method, path string, body []byte, token podvm.Secret) (*wire.Response, error) {
	header := http.Header{"Accept": {"application/json"}, "Authorization": {"Bearer " + string(token)}}
	if body != nil {
		header.Set("Content-Type", "application/json")
	}
	return v.env.HTTP.Do(ctx, wire.Request{
		Service: service, Method: method, URL: "https://" + v.place.host() + path + apiVersion, Header: header, Body: body,
	})
}

// secretBase64 decodes the JSON string v of base64url without padding, and wipes
// it.
func secretBase64(v json.RawMessage) (podvm.Secret, error) {
	text, err := strict.SecretText(v)
	if err != nil {
		return nil, err
	}
	defer text.Wipe()
	out := make(podvm.Secret, base64.RawURLEncoding.DecodedLen(len(text)))
	_, err = base64.RawURLEncoding.Strict().Decode(out, text)
	if err != nil || bytes.ContainsAny(text, "\r\n") { // which the decoder skips
		out.Wipe()
		return nil, errors.New("not base64url without padding")
	}
	return out, nil
}

// refused says why an answer of who is none, in its own words.
func refused(who string, resp *wire.Response) error {
	code, message := fault(resp.Body)
	if resp.Status == http.StatusTooManyRequests || resp.Status >= 500 {
		return wire.Overloaded(who, resp.Status, code)
	}
	return wire.Refused(who, resp.Status, code, message)
}

// fault returns the words of an answer that says no, "" if it has none:
// {"error": {"code", "message"}} of Key Vault, {"error", "error_description"} of
// logins.
func fault(raw []byte) (code, message string) {
	o, err := strict.Parse(raw)
	if err != nil {
		return "", ""
	}
	if inner, err := strict.Parse(o["error"]); err == nil {
		code, _ = inner.Text("code")
		message, _ = inner.Text("message")
		return code, message
	}
	code, _ = o.Text("error")
	message, _ = o.Text("error_description")
	return code, message
}
