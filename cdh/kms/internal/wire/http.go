package wire

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	"golang.org/x/net/http/httpproxy"

	"github.com/sealpod/sealpod/podvm"
)

// Limits of an exchange. The whole stays below the 50 s that clients of the data
// hub wait.
const (
	totalTimeout   = 40 * time.Second // with all tries
	tryTimeout     = 15 * time.Second // request and answer
	connectTimeout = 5 * time.Second  // TCP, and again TLS
	headerTimeout  = 10 * time.Second // request sent to response headers
	maxHeaders     = 64 << 10         // bytes
	maxBody        = 1 << 20          // bytes of an answer
	maxIdle        = 16               // connections kept open, of all hosts
	maxRoots       = 16               // clients for CAs of their own that are kept
)

// ClientConfig says how to make a Client. The zero value works.
type ClientConfig struct {
	// Host is where the proxy variables of the environment are read.
	Host podvm.Host
	// Log takes a line for every repeated try; nil: slog.Default.
	Log *slog.Logger
	// Backoff is the longest wait before the second try, doubled for each
	// further one; 0 means 500 ms. Tests shorten it.
	Backoff time.Duration
	// TryTimeout, when not 0, replaces the limits of 15 s for one try with its
	// answer. Tests shorten it.
	TryTimeout time.Duration
	// Dial, when not nil, makes the connections. Tests lead names elsewhere.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// Roots are trusted in place of the system's when not nil.
	Roots *x509.CertPool
}

// Client carries requests to services: bounded in time and size, through the
// proxy the environment names, without redirects (which would take credentials
// to a place nobody configured) and cookies. It keeps connections, is safe for
// concurrent use and must be closed.
type Client struct {
	cfg   ClientConfig
	proxy func(*url.URL) (*url.URL, error)
	http  http.Client

	mu      sync.Mutex
	derived map[[sha256.Size]byte]*Client // by what Trusting was given, zero for Direct
}

// NewClient returns a Client. It touches no network.
func NewClient(cfg ClientConfig) *Client {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.Backoff <= 0 {
		cfg.Backoff = 500 * time.Millisecond
	}
	if cfg.TryTimeout <= 0 {
		cfg.TryTimeout = tryTimeout
	}
	if cfg.Dial == nil {
		cfg.Dial = (&net.Dialer{Timeout: connectTimeout, KeepAlive: 15 * time.Second}).DialContext
	}
	env := func(upper, lower string) string {
		if v := cfg.Host.Getenv(upper); v != "" {
			return v
		}
		return cfg.Host.Getenv(lower)
	}
	proxy := httpproxy.Config{
		HTTPSProxy: env("HTTPS_PROXY", "https_proxy"),
		HTTPProxy:  env("HTTP_PROXY", "http_proxy"),
		NoProxy:    env("NO_PROXY", "no_proxy"),
	}
	return newClient(cfg, proxy.ProxyFunc())
}

func newClient(cfg ClientConfig, proxy func(*url.URL) (*url.URL, error)) *Client {
	c := &Client{cfg: cfg, proxy: proxy, derived: map[[sha256.Size]byte]*Client{}}
	tr := &http.Transport{
		DialContext:            cfg.Dial,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: cfg.Roots},
		TLSHandshakeTimeout:    connectTimeout,
		ResponseHeaderTimeout:  headerTimeout,
		IdleConnTimeout:        30 * time.Second,
		MaxIdleConns:           maxIdle,
		MaxIdleConnsPerHost:    2,
		MaxConnsPerHost:        16,
		MaxResponseHeaderBytes: maxHeaders,
		DisableCompression:     true, // caps count what arrives
	}
	if proxy != nil {
		tr.Proxy = func(r *http.Request) (*url.URL, error) { return proxy(r.URL) }
	}
	c.http = http.Client{
		Transport:     tr,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c
}

// Close closes the connections that are kept open.
func (c *Client) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.http.CloseIdleConnections()
	for _, d := range c.derived {
		d.http.CloseIdleConnections()
	}
}

// Trusting returns a Client that trusts the PEM certificates in ca beside those
// c trusts. It belongs to c and is not closed by the caller.
func (c *Client) Trusting(ca []byte) (*Client, error) {
	return c.derive(sha256.Sum256(ca), func() (*Client, error) {
		cfg := c.cfg
		if cfg.Roots != nil {
			cfg.Roots = cfg.Roots.Clone()
		} else if pool, err := x509.SystemCertPool(); err == nil {
			cfg.Roots = pool
		} else { // a minimal image has no system store
			cfg.Roots = x509.NewCertPool()
		}
		if !cfg.Roots.AppendCertsFromPEM(ca) {
			return nil, errors.New("no PEM certificate in it")
		}
		return newClient(cfg, c.proxy), nil
	})
}

// Direct returns a Client that uses no proxy, for services of the cloud that
// only the machine itself reaches. It belongs to c and is not closed by the
// caller.
func (c *Client) Direct() *Client {
	d, _ := c.derive([sha256.Size]byte{}, func() (*Client, error) { return newClient(c.cfg, nil), nil })
	return d
}

func (c *Client) derive(key [sha256.Size]byte, build func() (*Client, error)) (*Client, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if d := c.derived[key]; d != nil {
		return d, nil
	}
	d, err := build()
	if err != nil {
		return nil, err
	}
	for k, old := range c.derived {
		if len(c.derived) < maxRoots {
			break
		}
		delete(c.derived, k) // any: it costs one more connection
		old.http.CloseIdleConnections()
	}
	c.derived[key] = d
	return d, nil
}

// Request is one exchange, which may take several tries: it must be safe to
// repeat.
type Request struct {
	Service string // name for people, as in "AWS KMS"
	Method  string
	URL     string
	Header  http.Header
	Body    []byte
	// Sign, when not nil, completes each try, whose body is Body.
	Sign func(*http.Request) error
	// Again, when not nil, tells whether an answer beside 200, 429 and 5xx is
	// worth another try.
	Again func(*Response) bool
}

// Response is an answer of any status but 3xx.
type Response struct {
	Status int
	Header http.Header
	Body   podvm.Secret // at most 1 MiB; the caller wipes it
}

// Do makes the exchange. Answers of 429 and 5xx and broken connections are tried
// again twice, within ctx and 40 s. The last answer is returned whatever its
// status says, so that the provider can read why; only a redirect is an error.
//
// Errors: ErrUnreachable, ErrService, and those of Sign.
func (c *Client) Do(ctx context.Context, r Request) (*Response, error) {
	ctx, cancel := context.WithTimeout(ctx, totalTimeout)
	defer cancel()
	for try := 1; ; try++ {
		resp, err := c.try(ctx, r)
		wait, again := c.again(r, resp, err, try)
		if end, ok := ctx.Deadline(); !again || ok && time.Until(end) <= wait {
			return resp, err
		}
		status := 0
		if resp != nil {
			status = resp.Status
			resp.Body.Wipe()
		}
		c.cfg.Log.Warn("KMS request did not succeed, trying again", "service", r.Service, "try", try, "status", status, "err", err)
		if sleep(ctx, wait) != nil {
			return nil, unreachable(r.Service, ctx.Err())
		}
	}
}

func (c *Client) try(ctx context.Context, r Request) (*Response, error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.TryTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, r.Method, r.URL, bytes.NewReader(r.Body))
	if err != nil {
		return nil, Settings(errors.New("they do not make a URL"))
	}
	req.Header = r.Header.Clone()
	if req.Header == nil {
		req.Header = http.Header{}
	}
	req.Header.Set("User-Agent", "sealpod/"+podvm.Version())
	if r.Sign != nil {
		if err := r.Sign(req); err != nil {
			return nil, fmt.Errorf("signing the request: %w", err)
		}
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, unreachable(r.Service, err)
	}
	defer resp.Body.Close() //nolint:errcheck // read-only
	if resp.StatusCode >= 300 && resp.StatusCode < 400 {
		return nil, podvm.Explain(fmt.Errorf("%w: redirect with HTTP status %d", ErrService, resp.StatusCode),
			fmt.Sprintf("%s redirects elsewhere, which is not followed", r.Service))
	}
	body, err := podvm.ReadMax(resp.Body, maxBody)
	if errors.Is(err, podvm.ErrTooLarge) {
		return nil, Malformed(r.Service, err)
	}
	if err != nil {
		return nil, unreachable(r.Service, err)
	}
	return &Response{Status: resp.StatusCode, Header: resp.Header, Body: body}, nil
}
