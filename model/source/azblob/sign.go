package azblob

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/sealpod/sealpod/model/source"
	"github.com/sealpod/sealpod/model/source/internal/bearer"
	"github.com/sealpod/sealpod/model/source/internal/httpsrc"
	"github.com/sealpod/sealpod/model/source/settings"
	"github.com/sealpod/sealpod/podvm"
)

const (
	// version is the protocol's: the first that escapes names in listings, and
	// that takes tokens and keys alike.
	version = "2021-12-02"
	// authority is where tokens come from, unless AZURE_AUTHORITY_HOST says
	// something else.
	authority = "https://login.microsoftonline.com"
	scope     = "https://storage.azure.com/.default"
	maxSecret = 64 << 10 // bytes of a federated token
)

// credentials reads what the environment has to sign with: a client, else the
// account's key, else nothing.
// Source: kserve python/storage/kserve_storage/kserve_storage.py,
// _get_azure_storage_token and _get_azure_storage_access_key, at aaac4e2.
func (s *Source) credentials(env *settings.Env) error {
	get := func(name string) string { // the old names, where set, count
		if v := env.Host.Getenv("AZ_" + name); v != "" {
			return v
		}
		return env.Host.Getenv("AZURE_" + name)
	}
	client := get("CLIENT_ID")
	if client == "" {
		text := env.Host.Getenv("AZURE_STORAGE_ACCESS_KEY")
		key, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			return settings.Usage("environment variable AZURE_STORAGE_ACCESS_KEY: not base64")
		}
		if len(key) > 0 {
			s.key = key
		}
		return nil
	}
	tenant, secret, file := get("TENANT_ID"), get("CLIENT_SECRET"), env.Host.Getenv("AZURE_FEDERATED_TOKEN_FILE")
	if tenant == "" || strings.Trim(tenant, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-") != "" {
		return settings.Usage("environment variable AZURE_TENANT_ID: not a tenant, and AZURE_CLIENT_ID is set")
	}
	if secret == "" && file == "" {
		return settings.Usage("AZURE_CLIENT_ID is set, and neither AZURE_CLIENT_SECRET nor AZURE_FEDERATED_TOKEN_FILE")
	}
	base := env.Host.Getenv("AZURE_AUTHORITY_HOST")
	if base == "" {
		base = authority
	}
	if u, err := url.Parse(base); err != nil || !bearer.Safe(u) {
		return settings.Usage("environment variable AZURE_AUTHORITY_HOST: want https://HOST")
	}
	var err error
	s.tokens, err = bearer.New(httpsrc.Config{Env: env, Name: "Microsoft Entra ID"}, strings.TrimRight(base, "/")+"/"+tenant+"/oauth2/v2.0/token",
		func(time.Time) (url.Values, error) { return grant(client, secret, env.Host.Path(file)) })
	return err
}

// grant is what the token service is sent: the client's secret, or else a token
// that the cluster gave the pod.
// Source: Microsoft identity platform, "OAuth 2.0 client credentials flow".
func grant(client, secret, file string) (url.Values, error) {
	form := url.Values{"grant_type": {"client_credentials"}, "client_id": {client}, "scope": {scope}}
	if secret != "" {
		form.Set("client_secret", secret)
		return form, nil
	}
	token, err := podvm.ReadFileMax(file, maxSecret)
	if err != nil {
		return nil, podvm.Explain(errors.Join(source.ErrRefused, err), "the file that AZURE_FEDERATED_TOKEN_FILE names cannot be read")
	}
	form.Set("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer")
	form.Set("client_assertion", strings.TrimSpace(string(token)))
	return form, nil
}

// sign implements httpsrc.Request.Sign.
func (s *Source) sign(req *http.Request) error {
	req.Header.Set("X-Ms-Date", time.Now().UTC().Format(http.TimeFormat))
	if s.key == nil {
		return s.tokens.Sign(req)
	}
	mac := hmac.New(sha256.New, s.key)
	mac.Write([]byte(toSign(req, strings.TrimSuffix(s.account, "-secondary"))))
	req.Header.Set("Authorization", "SharedKey "+strings.TrimSuffix(s.account, "-secondary")+":"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	return nil
}

// toSign is the text of a request without a body that a shared key signs.
// Source: Azure Storage REST API, "Authorize with Shared Key".
func toSign(req *http.Request, account string) string {
	lines := []string{req.Method}
	for _, name := range []string{
		"Content-Encoding", "Content-Language", "Content-Length", "Content-MD5", "Content-Type", "Date",
		"If-Modified-Since", "If-Match", "If-None-Match", "If-Unmodified-Since", "Range",
	} {
		lines = append(lines, req.Header.Get(name))
	}
	var own []string
	for name, values := range req.Header {
		if name := strings.ToLower(name); strings.HasPrefix(name, "x-ms-") {
			own = append(own, name+":"+strings.Join(values, ","))
		}
	}
	slices.Sort(own)
	lines = append(append(lines, own...), "/"+account+req.URL.EscapedPath())
	var query []string
	for name, values := range req.URL.Query() {
		slices.Sort(values)
		query = append(query, strings.ToLower(name)+":"+strings.Join(values, ","))
	}
	slices.Sort(query)
	return strings.Join(append(lines, query...), "\n")
}
