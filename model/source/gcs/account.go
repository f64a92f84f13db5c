package gcs

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"net/url"
	"time"

	"github.com/sealpod/sealpod/model/source"
	"github.com/sealpod/sealpod/model/source/internal/bearer"
	"github.com/sealpod/sealpod/model/source/internal/httpsrc"
	"github.com/sealpod/sealpod/model/source/settings"
	"github.com/sealpod/sealpod/podvm"
)

const (
	credentialsEnv = "GOOGLE_APPLICATION_CREDENTIALS"
	maxCredentials = 64 << 10 // bytes of that file
	tokenService   = "https://oauth2.googleapis.com/token"
	scope          = "https://www.googleapis.com/auth/devstorage.read_only"
)

// account is a service account.
type account struct {
	email, keyID, audience string
	key                    *rsa.PrivateKey
}

// newTokens returns the tokens of the service account in the environment, nil
// without one. Errors: source.ErrUsage, source.ErrUnsupported.
func newTokens(env *settings.Env) (*bearer.Tokens, error) {
	path := env.Host.Getenv(credentialsEnv)
	if path == "" {
		return nil, nil
	}
	raw, err := podvm.ReadFileMax(env.Host.Path(path), maxCredentials)
	if err != nil {
		return nil, podvm.Explain(errors.Join(source.ErrUsage, err), "the file that "+credentialsEnv+" names cannot be read")
	}
	defer clear(raw)
	a, err := parseAccount(raw)
	if err != nil {
		return nil, err
	}
	return bearer.New(httpsrc.Config{Env: env, Name: "Google's token service"}, a.audience, a.grant)
}

// parseAccount reads the file of a service account's key.
// Source: Google Cloud IAM, "Create and delete service account keys".
func parseAccount(raw []byte) (*account, error) {
	var f struct {
		Type  string
		Email string `json:"client_email"`
		KeyID string `json:"private_key_id"`
		Key   string `json:"private_key"`
		URL   string `json:"token_uri"`
	}
	if json.Unmarshal(raw, &f) != nil {
		return nil, settings.Usage("the file that %s names is not JSON", credentialsEnv)
	}
	if f.Type != "service_account" {
		return nil, podvm.Explain(source.ErrUnsupported, "the file that "+credentialsEnv+" names is not the key of a service account")
	}
	block, _ := pem.Decode([]byte(f.Key))
	if block == nil || f.Email == "" {
		return nil, settings.Usage("the file that %s names has no private key, or no client_email", credentialsEnv)
	}
	defer clear(block.Bytes)
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		parsed, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	}
	key, ok := parsed.(*rsa.PrivateKey)
	if err != nil || !ok || key.N.BitLen() < 2048 {
		return nil, settings.Usage("the file that %s names has another private key than RSA of 2048 bits and more", credentialsEnv)
	}
	if f.URL == "" {
		f.URL = tokenService
	}
	if u, err := url.Parse(f.URL); err != nil || !bearer.Safe(u) {
		return nil, settings.Usage("the file that %s names has a token_uri that is not https", credentialsEnv)
	}
	return &account{email: f.Email, keyID: f.KeyID, audience: f.URL, key: key}, nil
}

// grant is what the token service is sent: a claim, signed, to be the account.
// Source: RFC 7523 section 2.1; Google Identity, "Using OAuth 2.0 for Server to
// Server Applications".
func (a *account) grant(now time.Time) (url.Values, error) {
	head, err := json.Marshal(map[string]string{"alg": "RS256", "typ": "JWT", "kid": a.keyID})
	if err != nil {
		return nil, err
	}
	claims, err := json.Marshal(map[string]any{
		"iss": a.email, "scope": scope, "aud": a.audience, "iat": now.Unix(), "exp": now.Add(time.Hour).Unix(),
	})
	if err != nil {
		return nil, err
	}
	enc := base64.RawURLEncoding
	text := enc.EncodeToString(head) + "." + enc.EncodeToString(claims)
	sum := sha256.Sum256([]byte(text))
	sig, err := rsa.SignPKCS1v15(rand.Reader, a.key, crypto.SHA256, sum[:])
	if err != nil {
		return nil, settings.Usage("the private key in the file that %s names does not sign", credentialsEnv)
	}
	return url.Values{
		"grant_type": {"urn:ietf:params:oauth:grant-type:jwt-bearer"}, "assertion": {text + "." + enc.EncodeToString(sig)},
	}, nil
}
