package aliyun

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/sealpod/sealpod/cdh/internal/strict"
	"github.com/sealpod/sealpod/cdh/kms/internal/wire"
	"github.com/sealpod/sealpod/podvm"
)

// login is a temporary identity and the region it is used in.
type login struct {
	region string // of regionForm
	id     string // access key id
	secret podvm.Secret
	token  string // security token of the session
}

// check makes sure that a login consists of what Alibaba Cloud gives out. It
// keeps pieces of a file that is none from being sent out as an id or a token.
func (l login) check() error {
	for _, s := range []string{l.id, string(l.secret), l.token} {
		if s == "" || len(s) > 8<<10 {
			return errors.New("a part of the session credential is empty or too long")
		}
		for i := range len(s) {
			if c := s[i]; c <= ' ' || c > '~' || c == '"' || c == '\\' {
				return errors.New("a part of the session credential has characters that no credential has")
			}
		}
	}
	return nil
}

// regional is the KMS endpoint of a region.
type regional struct {
	env   wire.Env
	login func(context.Context) (login, error)
}

// Decrypt implements wire.Provider: ErrUnsupported.
func (p *regional) Decrypt(context.Context, string, []byte, wire.Object) (podvm.Secret, error) {
	const why = "Alibaba Cloud KMS decrypts with client_type client_key only"
	return nil, podvm.Explain(fmt.Errorf("%w: %s", wire.ErrUnsupported, why), why)
}

// Secret implements wire.Provider, as the one of instance does.
func (p *regional) Secret(ctx context.Context, name string, annotations wire.Object) (podvm.Secret, error) {
	stage, version, err := version(annotations)
	if err != nil {
		return nil, err
	}
	if name == "" {
		return nil, wire.Settings(errors.New("the name of the secret is empty"))
	}
	l, err := p.login(ctx)
	if err != nil {
		return nil, err
	}
	defer l.secret.Wipe()
	resp, err := p.env.HTTP.Do(ctx, wire.Request{
		Service: service,
		Method:  http.MethodPost,
		URL:     "https://kms." + l.region + ".aliyuncs.com/",
		Sign: func(r *http.Request) error { // a nonce counts once
			r.URL.RawQuery = rpcQuery(r.Method, map[string]string{
				"SecretName":          name,
				"VersionStage":        stage,
				"VersionId":           version,
				"FetchExtendedConfig": "true",
				"Version":             "2016-01-20",
				"Action":              "GetSecretValue",
				"Format":              "json",
				"RegionId":            l.region,
				"Timestamp":           p.env.Now().UTC().Format(time.RFC3339),
				"SignatureMethod":     "HMAC-SHA1",
				"SignatureType":       "",
				"SignatureVersion":    "1.0",
				"SignatureNonce":      rand.Text(),
				"AccessKeyId":         l.id,
				"SecurityToken":       l.token,
			}, l.secret)
			return nil
		},
		Again: func(r *wire.Response) bool {
			code, _ := apiError(r.Body)
			return throttled(code)
		},
	})
	if err != nil {
		return nil, fmt.Errorf("calling GetSecretValue in region %s: %w", l.region, err)
	}
	defer resp.Body.Wipe()
	if resp.Status != http.StatusOK {
		code, text := apiError(resp.Body)
		return nil, fmt.Errorf("calling GetSecretValue in region %s: %w", l.region, refused(service, resp.Status, code, text))
	}
	secret, err := secretJSON(resp.Body)
	if err != nil {
		return nil, wire.Malformed(service, err)
	}
	return secret, nil
}

// secretJSON returns the member SecretData of an answer.
func secretJSON(raw []byte) (podvm.Secret, error) {
	o, err := strict.Parse(raw)
	if err != nil {
		return nil, err
	}
	secret, err := strict.SecretText(o["SecretData"])
	if err != nil {
		return nil, fmt.Errorf("member %q: %w", "SecretData", err)
	}
	if len(secret) == 0 {
		return nil, errNothing
	}
	return secret, nil
}

// apiError returns the words of an answer that says no, "" if it has none.
func apiError(raw []byte) (code, message string) {
	o, err := strict.Parse(raw)
	if err != nil {
		return "", ""
	}
	code, _ = o.Text("Code")
	message, _ = o.Text("Message")
	return code, message
}
