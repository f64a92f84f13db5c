// Package bearer gets the tokens that some stores take in place of a signature,
// and gets the next one before a token ends.
//
// Data path: a source says how to ask for a token, and has its requests signed
// here.
//
// Trust: whoever is asked is configured by the owner of the pod and proves by TLS
// who it is; its answer is bounded and has to be fit for a header. What is sent to
// it, and the token, are secret and never logged.
package bearer

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/netip"
	"net/url"
	"sync"
	"time"

	"github.com/sealpod/sealpod/model/source"
	"github.com/sealpod/sealpod/model/source/internal/httpsrc"
	"github.com/sealpod/sealpod/podvm"
)

// Limits.
const (
	maxAnswer = 256 << 10 // bytes
	maxToken  = 64 << 10  // bytes
	ahead     = 5 * time.Minute
	most      = 24 * time.Hour // that a token is believed to be good
)

// Tokens gives out tokens. It is safe for concurrent use.
type Tokens struct {
	http *httpsrc.Client
	name string
	url  string
	form func(time.Time) (url.Values, error)
	now  func() time.Time

	mu    sync.Mutex
	token string
	until time.Time // when the next is asked for
}

// New returns Tokens of the OAuth 2.0 token endpoint at address, which is sent the
// form that is made for the time. Errors: source.ErrUsage.
func New(conf httpsrc.Config, address string, form func(time.Time) (url.Values, error)) (*Tokens, error) {
	client, err := httpsrc.New(conf)
	if err != nil {
		return nil, err
	}
	return &Tokens{http: client, name: conf.Name, url: address, form: form, now: time.Now}, nil
}

// Safe tells whether secrets may be sent to a URL: it is https, or of this
// machine.
func Safe(u *url.URL) bool {
	ip, err := netip.ParseAddr(u.Hostname())
	return u.User == nil && u.Hostname() != "" && (u.Scheme == "https" || u.Scheme == "http" && err == nil && ip.IsLoopback())
}

// Close closes idle connections. Nil Tokens have none.
func (t *Tokens) Close() {
	if t != nil {
		t.http.Close()
	}
}

// Sign has a request carry a token; nil Tokens leave it as it is. Errors:
// source.ErrRefused, source.ErrUnreachable, the context's.
func (t *Tokens) Sign(req *http.Request) error {
	if t == nil {
		return nil
	}
	token, err := t.get(req.Context())
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	return nil
}

func (t *Tokens) get(ctx context.Context) (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.token != "" && t.now().Before(t.until) {
		return t.token, nil
	}
	form, err := t.form(t.now())
	if err != nil {
		return "", err
	}
	_, raw, err := t.http.Document(ctx, httpsrc.Request{
		Method: http.MethodPost, URL: t.url, Body: []byte(form.Encode()), Explain: explain,
		Header: http.Header{"Content-Type": {"application/x-www-form-urlencoded"}, "Accept": {"application/json"}},
	}, maxAnswer)
	if err != nil {
		return "", err
	}
	defer clear(raw)
	token, life, err := parse(raw)
	if err != nil {
		return "", podvm.Explain(errors.Join(source.ErrUnreachable, err), t.name+" answers with something that is no token")
	}
	t.token, t.until = token, t.now().Add(life)
	return token, nil
}

// parse reads an answer: the token, and for how long to use it.
// Source: RFC 6749 section 5.1.
func parse(raw []byte) (token string, life time.Duration, err error) {
	var a struct {
		Token string      `json:"access_token"`
		Type  string      `json:"token_type"`
		Life  json.Number `json:"expires_in"` // some services quote it
	}
	if json.Unmarshal(raw, &a) != nil {
		return "", 0, errors.New("not the JSON of a token")
	}
	if a.Token == "" || len(a.Token) > maxToken || a.Type != "" && a.Type != "Bearer" && a.Type != "bearer" {
		return "", 0, errors.New("no bearer token")
	}
	for _, c := range []byte(a.Token) {
		if c <= ' ' || c > '~' {
			return "", 0, errors.New("a token with other than visible ASCII in it")
		}
	}
	seconds, _ := a.Life.Int64()
	life = time.Duration(min(max(seconds, 0), int64(most/time.Second))) * time.Second
	return a.Token, max(life-ahead, life/2, time.Second), nil
}

// explain reads an answer that is an error. A token endpoint refuses with 400.
// Source: RFC 6749 section 5.2.
func explain(f *httpsrc.Fault) (string, error) {
	var a struct {
		Code string `json:"error"`
		Text string `json:"error_description"`
	}
	_ = json.Unmarshal(f.Body, &a)
	text := a.Code
	if a.Text != "" {
		text += ": " + a.Text
	}
	if f.Status == http.StatusBadRequest {
		return text, source.ErrRefused
	}
	return text, nil
}
