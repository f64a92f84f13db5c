package registry

import (
	"io"
	"net/http"
	"net/url"
	"strings"
)

// origin is the scheme, host and port of a URL in one form.
func origin(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"https": "443", "http": "80"}[u.Scheme]
	}
	return u.Scheme + "://" + strings.ToLower(u.Hostname()) + ":" + port
}

// fixedAuth adds a header to requests to one origin, and to no others. It is
// set on a copy of each request, so that http.Client has nothing to carry over
// a redirect.
type fixedAuth struct {
	next   http.RoundTripper
	at     string // origin
	header string
}

// RoundTrip implements http.RoundTripper.
func (t *fixedAuth) RoundTrip(req *http.Request) (*http.Response, error) {
	if origin(req.URL) == t.at && t.header != "" {
		req = req.Clone(req.Context())
		req.Header.Set("Authorization", t.header)
	}
	return t.next.RoundTrip(req)
}

// sessionAuth adds what the session of a registry says to requests to its
// origin. When the registry refuses that, it asks once more with a new token.
type sessionAuth struct {
	next    http.RoundTripper
	at      string // origin
	session *session
}

// RoundTrip implements http.RoundTripper.
func (t *sessionAuth) RoundTrip(req *http.Request) (*http.Response, error) {
	if origin(req.URL) != t.at {
		return t.next.RoundTrip(req)
	}
	ctx := req.Context()
	header, number, err := t.session.header(ctx, 0)
	if err != nil {
		return nil, err
	}
	resp, err := (&fixedAuth{t.next, t.at, header}).RoundTrip(req)
	if err != nil || resp.StatusCode != http.StatusUnauthorized {
		return resp, err
	}
	again, err := t.session.adopt(ctx, resp.Header)
	if err == nil && !again {
		return resp, nil
	}
	discard(resp)
	if err == nil {
		header, _, err = t.session.header(ctx, number)
	}
	if err != nil {
		return nil, err
	}
	return (&fixedAuth{t.next, t.at, header}).RoundTrip(req)
}

// discard ends an answer nobody wants. What is left of a short one is read, so
// that its connection can be used again.
func discard(resp *http.Response) {
	_, _ = io.CopyN(io.Discard, resp.Body, 4<<10)
	_ = resp.Body.Close()
}
