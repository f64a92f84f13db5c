package s3

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"sync"
	"time"

	"github.com/sealpod/sealpod/model/source"
	"github.com/sealpod/sealpod/model/source/internal/httpsrc"
	"github.com/sealpod/sealpod/model/source/settings"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/sigv4"
)

// Limits, in bytes.
const (
	maxIdentity = 64 << 10 // of a web identity token
	maxGrant    = 256 << 10
)

// keys give out what to sign with.
type keys interface {
	// get returns the credential, nil to sign nothing.
	get(ctx context.Context) (*sigv4.Credential, error)
	close()
}

// fixed is a credential from the environment, or none.
type fixed struct{ cred *sigv4.Credential }

func (f fixed) get(context.Context) (*sigv4.Credential, error) { return f.cred, nil }
func (fixed) close()                                           {}

// newKeys finds the credential: of the environment, or of a role that the pod's
// token stands for. Others of AWS's places, such as instance metadata, are the
// host's and not asked.
func newKeys(env *settings.Env, c config) (keys, error) {
	if c.anonymous {
		return fixed{}, nil
	}
	h := env.Host
	cred := &sigv4.Credential{
		ID: h.Getenv("AWS_ACCESS_KEY_ID"), Secret: podvm.Secret(h.Getenv("AWS_SECRET_ACCESS_KEY")), Session: podvm.Secret(h.Getenv("AWS_SESSION_TOKEN")),
	}
	if cred.ID != "" || len(cred.Secret) > 0 {
		if err := checkCredential(cred); err != nil {
			return nil, settings.Usage("AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN: %v", err)
		}
		return fixed{cred}, nil
	}
	file, role := h.Getenv("AWS_WEB_IDENTITY_TOKEN_FILE"), h.Getenv("AWS_ROLE_ARN")
	if file == "" || role == "" {
		return nil, settings.Usage("no credentials for S3: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or awsAnonymousCredential=true for a public bucket")
	}
	w := &webIdentity{file: h.Path(file), role: role, session: h.Getenv("AWS_ROLE_SESSION_NAME"), now: time.Now}
	if w.session == "" {
		w.session = "sealpod"
	}
	var err error
	if w.url, err = tokenService(env, c.region); err != nil {
		return nil, err
	}
	// It gets the pod's token, and so has to say who it is even where the store
	// need not.
	conf := c.http
	conf.Name, conf.CAFile, conf.SkipVerify = "AWS STS", "AWS_CA_BUNDLE", false
	if w.http, err = httpsrc.New(conf); err != nil {
		return nil, err
	}
	return w, nil
}

// tokenService is the address of the Security Token Service: of the region, or
// where AWS_ENDPOINT_URL_STS says.
func tokenService(env *settings.Env, region string) (string, error) {
	text := env.Host.Getenv("AWS_ENDPOINT_URL_STS")
	if text == "" {
		if !sigv4.IsRegion(region) {
			return "", settings.Usage("environment variable AWS_DEFAULT_REGION: not an AWS region, where web identities are exchanged")
		}
		return "https://sts." + region + "." + sigv4.DNSSuffix(region) + "/", nil
	}
	u, err := url.Parse(text)
	if err != nil || u.Hostname() == "" || u.User != nil || u.Scheme != "https" && (u.Scheme != "http" || !isLoopback(u.Hostname())) {
		return "", settings.Usage("environment variable AWS_ENDPOINT_URL_STS: want https://HOST[:PORT]")
	}
	return text, nil
}

func isLoopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}

func checkCredential(c *sigv4.Credential) error {
	if c.ID == "" || len(c.Secret) == 0 {
		return errors.New("one of the first two is missing")
	}
	for _, s := range [][]byte{[]byte(c.ID), c.Secret, c.Session} {
		for _, b := range s {
			if b <= ' ' || b > '~' {
				return errors.New("other than visible ASCII in it")
			}
		}
	}
	return nil
}

// webIdentity trades the token of the pod's service account for a credential of
// a role, again before that ends.
type webIdentity struct {
	http                     *httpsrc.Client
	file, role, session, url string
	now                      func() time.Time

	mu    sync.Mutex
	cred  *sigv4.Credential
	until time.Time // when it is asked for again
}

// grant is the answer to AssumeRoleWithWebIdentity.
// Source: AWS STS API Reference, AssumeRoleWithWebIdentity.
type grant struct {
	XMLName xml.Name
	Result  struct {
		Credentials struct {
			AccessKeyID     string `xml:"AccessKeyId"`
			SecretAccessKey string
			SessionToken    string
			Expiration      time.Time
		}
	} `xml:"AssumeRoleWithWebIdentityResult"`
}

func (w *webIdentity) close() { w.http.Close() }

func (w *webIdentity) get(ctx context.Context) (*sigv4.Credential, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cred != nil && w.now().Before(w.until) {
		return w.cred, nil
	}
	token, err := podvm.ReadFileMax(w.file, maxIdentity)
	if err != nil {
		return nil, podvm.Explain(errors.Join(source.ErrRefused, err), "the pod's web identity token cannot be read")
	}
	defer clear(token)
	form := url.Values{
		"Action": {"AssumeRoleWithWebIdentity"}, "Version": {"2011-06-15"},
		"RoleArn": {w.role}, "RoleSessionName": {w.session}, "WebIdentityToken": {string(token)},
	}
	_, raw, err := w.http.Document(ctx, httpsrc.Request{
		Method: http.MethodPost, URL: w.url, Body: []byte(form.Encode()),
		Header: http.Header{"Content-Type": {"application/x-www-form-urlencoded"}},
		Explain: func(a *httpsrc.Fault) (string, error) {
			if a.Status == 400 { // of which each means that token or role will not do
				return parseFault(a.Body).text(), source.ErrRefused
			}
			return parseFault(a.Body).text(), nil
		},
	}, maxGrant)
	if err != nil {
		return nil, fmt.Errorf("asking the Security Token Service: %w", err)
	}
	defer clear(raw)
	if w.cred, w.until, err = parseGrant(raw, w.now()); err != nil {
		return nil, podvm.Explain(fmt.Errorf("%w: %w", source.ErrUnreachable, err), "the Security Token Service answers with something unusable")
	}
	return w.cred, nil
}

// parseGrant returns a credential and when to ask for the next.
func parseGrant(raw []byte, now time.Time) (*sigv4.Credential, time.Time, error) {
	var g grant
	if err := xml.Unmarshal(raw, &g); err != nil {
		return nil, time.Time{}, errors.New("not the XML of a grant")
	}
	c := g.Result.Credentials
	cred := &sigv4.Credential{ID: c.AccessKeyID, Secret: podvm.Secret(c.SecretAccessKey), Session: podvm.Secret(c.SessionToken)}
	if err := checkCredential(cred); err != nil {
		return nil, time.Time{}, err
	}
	until := c.Expiration.Add(-5 * time.Minute)
	return cred, maxTime(until, now.Add(time.Minute)), nil
}

func maxTime(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
