package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/sealpod/sealpod/podvm"
)

// Tokens without a stated life are good for a minute, and no life counts for
// more than an hour.
// Source: distribution docs/content/spec/auth/token.md at v3.0.0.
const (
	tokenLife    = time.Minute
	maxTokenLife = time.Hour
	maxToken     = 64 << 10 // bytes of a token service's answer
)

var (
	// errRealm says that a registry names a token service that is not asked.
	errRealm = errors.New("token service refused")
	// errToken says that the answer of a token service cannot be used.
	errToken = errors.New("unusable answer")
)

// tokenError says that the token service of a registry gave no token.
type tokenError struct {
	host string // printable
	err  error
}

func (e *tokenError) Error() string { return fmt.Sprintf("asking token service %s: %v", e.host, e.err) }

func (e *tokenError) Unwrap() error { return e.err }

// login is the standing of one set of credentials with one repository of a
// registry: how it wants to be asked, and the token it gave. All pulls of a
// Client share it.
type login struct {
	turn   chan struct{} // takes one value; the fields below are for whose it is
	asked  bool          // GET /v2/ was answered, so how is known
	how    challenge     // scheme "" sends nothing
	token  podvm.Secret
	number int       // of the token, from 1
	good   time.Time // until when
}

func newLogin() *login { return &login{turn: make(chan struct{}, 1)} }

// session uses a login with the credentials it belongs to.
type session struct {
	*login
	cred       Credentials
	repository string
	client     *http.Client // sends no credentials
	limit      time.Duration
}

func (s *session) lock(ctx context.Context) error {
	select {
	case s.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (s *session) unlock() { <-s.turn }

// start asks the registry at base, GET /v2/, unless it did before, and gets a
// token if one is wanted. What the answer is beyond that does not matter: some
// registries have no such path.
func (s *session) start(ctx context.Context, base string) error {
	if err := s.ask(ctx, base); err != nil {
		return err
	}
	_, _, err := s.header(ctx, 0)
	return err
}

func (s *session) ask(ctx context.Context, base string) error {
	if err := s.lock(ctx); err != nil {
		return err
	}
	defer s.unlock()
	if s.asked {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, s.limit, errStalled)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base, nil)
	if err != nil {
		return fmt.Errorf("preparing the request: %w", err)
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return tidy(stalled(ctx, err))
	}
	defer discard(resp)
	if temporary(resp.StatusCode) {
		return statusOf(resp)
	}
	if resp.StatusCode == http.StatusUnauthorized {
		s.how, _ = usable(parseChallenges(resp.Header.Values("WWW-Authenticate")))
	}
	s.asked = true
	return nil
}

// header returns the Authorization header for a request, "" for none, and the
// number of the token in it. A token that must be bad by now is renewed first;
// bad is the number of one that was refused, 0 for none.
func (s *session) header(ctx context.Context, bad int) (string, int, error) {
	if err := s.lock(ctx); err != nil {
		return "", 0, err
	}
	defer s.unlock()
	switch {
	case s.how.scheme == "basic" && !s.cred.anonymous():
		return s.cred.basic(), 0, nil
	case s.how.scheme != "bearer":
		return "", 0, nil
	}
	if s.number == 0 || s.number == bad || time.Now().After(s.good) {
		if err := s.renew(ctx); err != nil {
			return "", 0, err
		}
	}
	return "Bearer " + string(s.token), s.number, nil
}

// adopt learns from a 401 how the registry wants to be asked, and says whether
// asking again, perhaps with a new token, can help.
func (s *session) adopt(ctx context.Context, answer http.Header) (again bool, err error) {
	if err := s.lock(ctx); err != nil {
		return false, err
	}
	defer s.unlock()
	c, ok := usable(parseChallenges(answer.Values("WWW-Authenticate")))
	if !ok {
		return false, nil
	}
	again = c.scheme == "bearer" || s.how.scheme != "basic" && !s.cred.anonymous()
	s.how = c
	return again, nil
}

// renew asks the token service. The scope is always a pull of this repository,
// whatever the registry says, so that its token is worth nothing elsewhere.
func (s *session) renew(ctx context.Context) error {
	text := s.how.params["realm"]
	realm, err := url.Parse(text)
	if err != nil || realm.Host == "" || realm.User != nil {
		return fmt.Errorf("%w: %q is not a URL to ask", errRealm, podvm.Printable(text, 128))
	}
	query := realm.Query()
	query.Set("scope", "repository:"+s.repository+":pull")
	if service := s.how.params["service"]; service != "" {
		query.Set("service", service)
	}
	realm.RawQuery, realm.Fragment = query.Encode(), ""
	ctx, cancel := context.WithTimeoutCause(ctx, s.limit, errStalled)
	defer cancel()
	token, life, err := s.fetch(ctx, realm)
	if err != nil {
		return &tokenError{podvm.Printable(realm.Host, 128), stalled(ctx, err)}
	}
	s.token.Wipe()
	s.token, s.good = token, time.Now().Add(life*9/10)
	s.number++
	return nil
}

// fetch sends one request to a token service.
func (s *session) fetch(ctx context.Context, realm *url.URL) (podvm.Secret, time.Duration, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, realm.String(), nil)
	if err != nil {
		return nil, 0, fmt.Errorf("%w: not a URL to ask", errRealm)
	}
	client := s.client
	if !s.cred.anonymous() {
		with := *s.client
		with.Transport = &fixedAuth{next: with.Transport, at: origin(realm), header: s.cred.basic()}
		client = &with
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, 0, tidy(err)
	}
	defer discard(resp)
	if resp.StatusCode != http.StatusOK {
		return nil, 0, statusOf(resp)
	}
	raw, err := podvm.ReadMax(resp.Body, maxToken)
	if err != nil {
		return nil, 0, fmt.Errorf("reading the token: %w", err)
	}
	defer clear(raw)
	return parseToken(raw)
}

// parseToken reads the answer of a token service: the token and its life.
func parseToken(raw []byte) (podvm.Secret, time.Duration, error) {
	var doc struct {
		Token       string  `json:"token"`
		AccessToken string  `json:"access_token"`
		ExpiresIn   float64 `json:"expires_in"` // seconds
	}
	if err := json.Unmarshal(raw, &doc); err != nil {
		return nil, 0, fmt.Errorf("%w: not the JSON of a token", errToken) // the cause would quote it
	}
	if doc.Token == "" {
		doc.Token = doc.AccessToken
	}
	if doc.Token == "" {
		return nil, 0, fmt.Errorf("%w: no token in it", errToken)
	}
	if strings.ContainsFunc(doc.Token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return nil, 0, fmt.Errorf("%w: the token cannot go into a header", errToken)
	}
	life := tokenLife
	if doc.ExpiresIn > 0 {
		life = time.Duration(min(doc.ExpiresIn, maxTokenLife.Seconds()) * float64(time.Second))
	}
	return podvm.Secret(doc.Token), life, nil
}
