package azure

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/sealpod/sealpod/cdh/internal/strict"
	"github.com/sealpod/sealpod/cdh/kms/internal/wire"
	"github.com/sealpod/sealpod/podvm"
)

// Values of client_type.
const (
	managedIdentityType = "managed_identity"
	clientSecretType    = "client_secret"
)

// CredentialFile is the name of the credential file for client_type
// client_secret, a JSON object with tenant_id, client_id and client_secret, and,
// outside the public cloud, with authority: the host that logins go to, as in
// "login.chinacloudapi.cn".
const CredentialFile = "credential.json"

// Names of services for people.
const (
	metadata = "the Azure metadata service"
	entra    = "Microsoft Entra"
)

// login is a way to get access tokens.
type login interface {
	// prepare reads credentials and returns what fetches a token with them,
	// and the key under which it is kept.
	prepare() (key wire.TokenKey, fetch fetchFunc, err error)
}

type fetchFunc = func(context.Context) (token podvm.Secret, life time.Duration, err error)

// managedIdentity is an identity of the machine.
type managedIdentity struct {
	env      wire.Env
	place    place
	clientID string // "" for the only one
}

func newManagedIdentity(env wire.Env, p place, settings wire.Object) (*managedIdentity, error) {
	id, err := settings.TextOr("client_id", "")
	if err == nil && id != "" && !isObjectName(id) {
		err = errors.New(`member "client_id": want a UUID`)
	}
	return &managedIdentity{env, p, id}, err
}

func (m *managedIdentity) prepare() (wire.TokenKey, fetchFunc, error) {
	return wire.KeyOf([]byte(managedIdentityType), []byte(m.place.resource()), []byte(m.clientID)), m.fetch, nil
}

func (m *managedIdentity) fetch(ctx context.Context) (podvm.Secret, time.Duration, error) {
	query := url.Values{"api-version": {"2018-02-01"}, "resource": {m.place.resource()}}
	if m.clientID != "" {
		query.Set("client_id", m.clientID)
	}
	return ask(ctx, m.env.HTTP.Direct(), wire.Request{
		Service: metadata,
		Method:  http.MethodGet,
		URL:     m.env.Host.MetadataURL("/metadata/identity/oauth2/token?" + query.Encode()),
		Header:  http.Header{"Metadata": {"true"}},
		Again: func(r *wire.Response) bool { // while it is updated
			return r.Status == http.StatusNotFound || r.Status == http.StatusGone
		},
	})
}

// clientSecret is a registered application with a password, which is for one
// cloud only.
type clientSecret struct {
	env   wire.Env
	place place
}

func (c *clientSecret) prepare() (wire.TokenKey, fetchFunc, error) {
	raw, err := c.env.Files.Read(CredentialFile)
	if err != nil {
		return wire.TokenKey{}, nil, err
	}
	defer raw.Wipe()
	authority, tenant, form, err := parseCredential(raw)
	if err != nil {
		return wire.TokenKey{}, nil, wire.Credential(CredentialFile, err)
	}
	if authority != c.place.authority {
		return wire.TokenKey{}, nil, wire.Settings(errors.New("the vault is in another cloud than the credential"))
	}
	form.Set("scope", c.place.resource()+"/.default")
	body := []byte(form.Encode())
	fetch := func(ctx context.Context) (podvm.Secret, time.Duration, error) {
		return ask(ctx, c.env.HTTP, wire.Request{
			Service: entra,
			Method:  http.MethodPost,
			URL:     "https://" + c.place.authority + "/" + tenant + "/oauth2/v2.0/token",
			Header:  http.Header{"Content-Type": {"application/x-www-form-urlencoded"}},
			Body:    body,
		})
	}
	return wire.KeyOf([]byte(clientSecretType), []byte(c.place.authority), []byte(tenant), body), fetch, nil
}

// parseCredential reads a credential file. The tenant becomes part of a URL.
func parseCredential(raw []byte) (authority, tenant string, form url.Values, err error) {
	o, err := strict.Parse(raw)
	if err != nil {
		return "", "", nil, err
	}
	if authority, err = o.TextOr("authority", publicAuthority); err != nil {
		return "", "", nil, err
	}
	form = url.Values{"grant_type": {"client_credentials"}}
	for _, name := range []string{"client_id", "client_secret"} {
		text, err := o.Text(name)
		if err != nil {
			return "", "", nil, err
		}
		if text == "" {
			return "", "", nil, fmt.Errorf("member %q is empty", name)
		}
		form.Set(name, text)
	}
	tenant, err = o.Text("tenant_id")
	for label := range strings.SplitSeq(tenant, ".") {
		if err == nil && !isObjectName(label) {
			err = errors.New(`member "tenant_id": want a UUID or a domain name`)
		}
	}
	return authority, tenant, form, err
}

// ask makes a request for a token and reads the answer.
func ask(ctx context.Context, client *wire.Client, r wire.Request) (podvm.Secret, time.Duration, error) {
	resp, err := client.Do(ctx, r)
	if err != nil {
		return nil, 0, fmt.Errorf("getting an access token: %w", err)
	}
	defer resp.Body.Wipe()
	if resp.Status != http.StatusOK {
		return nil, 0, fmt.Errorf("getting an access token: %w", refused(r.Service, resp))
	}
	value, life, err := parseToken(resp.Body)
	if err != nil {
		return nil, 0, wire.Malformed(r.Service, err)
	}
	return value, life, nil
}

// Bounds of a token.
const (
	maxToken = 32 << 10       // bytes; with many group memberships it has 8 KiB
	maxLife  = 24 * time.Hour // what managed identities get
)

// parseToken reads the answer to a login. Entra gives the life in seconds as a
// number, the metadata service as text.
func parseToken(raw []byte) (value podvm.Secret, life time.Duration, err error) {
	o, err := strict.Parse(raw)
	if err != nil {
		return nil, 0, err
	}
	if kind, err := o.Text("token_type"); err != nil || !strings.EqualFold(kind, "Bearer") {
		return nil, 0, errors.New("not a bearer token")
	}
	text := string(o["expires_in"])
	if strings.HasPrefix(text, `"`) {
		if text, err = o.Text("expires_in"); err != nil {
			return nil, 0, err
		}
	}
	seconds, err := strconv.ParseUint(text, 10, 31)
	if err != nil || seconds == 0 {
		return nil, 0, errors.New("a token without a life")
	}
	if value, err = strict.SecretText(o["access_token"]); err != nil {
		return nil, 0, err
	}
	if len(value) == 0 || len(value) > maxToken || bytes.ContainsFunc(value, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return nil, 0, errors.New("a token that is none")
	}
	return value, min(time.Duration(seconds)*time.Second, maxLife), nil
}
