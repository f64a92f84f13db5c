package kbs

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/netfault"
)

// Caps in bytes on what a server may send.
const (
	maxHeaders   = 256 << 10
	maxErrorBody = 64 << 10
	maxChallenge = 64 << 10
	maxToken     = 1 << 20
	maxDetail    = 1 << 10 // of the explanation in an error body
)

// requestTimeout bounds one HTTP request with its answer.
const requestTimeout = 60 * time.Second

// pingAfter is how long a connection that many requests share (HTTP/2) may be
// silent before it is tested, and the test may take: a server that vanished
// would otherwise hold up everyone until their deadlines.
const pingAfter = 5 * time.Second

// web is an HTTP client for one server: capped, bounded in time, without
// redirects (a KBS has none, and following one would take evidence and tokens
// to a place nobody configured). Connections are kept and shared.
type web struct {
	name      string // of the kind of server, for people
	base      string // no trailing slash
	agent     string
	timeout   time.Duration
	transport *http.Transport
}

// newWeb returns a client for base, an http or https URL of a server that people
// call name. The certificates in certPEM are trusted beside those of the system.
func newWeb(name, base, agent string, certPEM []byte, timeout time.Duration) (*web, error) {
	u, err := url.Parse(base)
	if err != nil {
		return nil, fmt.Errorf("%s URL: not a URL", name) // which may hold a password
	}
	if (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("%s URL %q: want http(s)://HOST[:PORT][/PATH]", name, podvm.Printable(u.Redacted(), 256))
	}
	if timeout <= 0 {
		timeout = requestTimeout
	}
	tr := &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            (&net.Dialer{Timeout: 15 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    15 * time.Second,
		ForceAttemptHTTP2:      true,
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingAfter},
		DisableCompression:     true, // bodies are small and caps count what arrives
		MaxIdleConnsPerHost:    8,
		IdleConnTimeout:        90 * time.Second,
		MaxResponseHeaderBytes: maxHeaders,
	}
	if len(certPEM) > 0 {
		roots, err := x509.SystemCertPool()
		if err != nil { // an image without certificates still has the given one
			roots = x509.NewCertPool()
		}
		if !roots.AppendCertsFromPEM(certPEM) {
			return nil, fmt.Errorf("the %s certificate holds no PEM certificate", name)
		}
		tr.TLSClientConfig.RootCAs = roots
	}
	return &web{name: name, base: strings.TrimRight(base, "/"), agent: agent, timeout: timeout, transport: tr}, nil
}

// request is one exchange.
type request struct {
	method string
	path   string // appended to base, with the query
	body   []byte
	bearer string
	jar    http.CookieJar
	limit  int64 // bytes of an answer with status 200
}

// httpError is an answer that is not 200.
type httpError struct {
	status   int
	info     *ErrorInfo // nil when the body is not that of a KBS
	location string
}

func (e *httpError) Error() string {
	s := fmt.Sprintf("HTTP status %d", e.status)
	if e.info != nil {
		s += fmt.Sprintf(" (%s: %s)", e.variant(), e.detail())
	}
	if e.location != "" {
		s += " to " + podvm.Printable(e.location, 256)
	}
	return s
}

// variant returns the name of the KBS error, as in "PolicyDeny", or "".
func (e *httpError) variant() string {
	if e.info == nil {
		return ""
	}
	return podvm.Printable(strings.TrimPrefix(e.info.Type, ErrorTypePrefix), 64)
}

// detail returns the explanation of the KBS, printable and short.
func (e *httpError) detail() string {
	if e.info == nil {
		return fmt.Sprintf("HTTP status %d without an explanation", e.status)
	}
	return podvm.Printable(e.info.Detail, maxDetail)
}

// send makes the exchange and returns the body of an answer with status 200.
//
// Errors: *httpError for any other status; ErrUnreachable, with errRetry where
// another try may go better; ErrProtocol for a body beyond the limit.
func (w *web) send(ctx context.Context, r request) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, w.timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, r.method, w.base+r.path, bytes.NewReader(r.body))
	if err != nil {
		return nil, fmt.Errorf("%w: building the request: %w", ErrProtocol, err)
	}
	req.Header.Set("User-Agent", w.agent)
	if r.body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if r.bearer != "" {
		req.Header.Set("Authorization", "Bearer "+r.bearer)
	}
	hc := http.Client{Transport: w.transport, Jar: r.jar, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse
	}}
	resp, err := hc.Do(req)
	if err != nil {
		return nil, w.unreachable(err)
	}
	defer resp.Body.Close() //nolint:errcheck // read-only
	if resp.StatusCode != http.StatusOK {
		return nil, readError(resp)
	}
	body, err := podvm.ReadMax(resp.Body, r.limit)
	if errors.Is(err, podvm.ErrTooLarge) {
		return nil, podvm.Explain(fmt.Errorf("%w: reading the answer: %w", ErrProtocol, err),
			fmt.Sprintf("the %s at %s sent more than %d bytes", w.name, w.base, r.limit))
	}
	if err != nil {
		return nil, w.unreachable(err)
	}
	return body, nil
}

func readError(resp *http.Response) error {
	e := &httpError{status: resp.StatusCode, location: resp.Header.Get("Location")}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	var info ErrorInfo
	if err == nil && info.UnmarshalJSON(body) == nil {
		e.info = &info
	}
	return e
}

// errRetry marks failures that may be gone a second later.
var errRetry = errors.New("temporary")

// unreachable says why no answer came.
func (w *web) unreachable(err error) error {
	why, temporary := netfault.Why(err)
	if why == netfault.Untrusted {
		why += " (configure its CA certificate)"
	}
	if temporary {
		err = fmt.Errorf("%w: %w", errRetry, err)
	}
	return podvm.Explain(fmt.Errorf("%w: %w", ErrUnreachable, err),
		fmt.Sprintf("%s not reachable at %s: %s", w.name, w.base, why))
}

// unexpected maps the statuses that mean the same at every step.
func (w *web) unexpected(e *httpError) error {
	switch {
	case e.status == http.StatusTooManyRequests || e.status >= 500:
		return podvm.Explain(fmt.Errorf("%w: %w: %w", ErrUnreachable, errRetry, e),
			fmt.Sprintf("the %s at %s, or a proxy before it, answered with HTTP status %d", w.name, w.base, e.status))
	case e.status >= 300 && e.status < 400:
		return podvm.Explain(fmt.Errorf("%w: %w", ErrProtocol, e),
			fmt.Sprintf("the server at %s redirects elsewhere; configure the address of the %s itself", w.base, w.name))
	case e.status == http.StatusNotFound || e.info == nil:
		return podvm.Explain(fmt.Errorf("%w: %w", ErrProtocol, e),
			fmt.Sprintf("the server at %s does not answer like a %s (HTTP status %d); check the URL", w.base, w.name, e.status))
	}
	return podvm.Explain(fmt.Errorf("%w: %w", ErrProtocol, e),
		fmt.Sprintf("the %s at %s answered with HTTP status %d: %s", w.name, w.base, e.status, e.detail()))
}
