package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"golang.org/x/net/http/httpproxy"

	"github.com/sealpod/sealpod/podvm"
)

// Limits of one HTTP exchange.
const (
	connectTimeout = 10 * time.Second // TCP, and again TLS
	headerTimeout  = 30 * time.Second // request sent to response headers
	stallTimeout   = 30 * time.Second // between two reads of a body
	maxStalls      = 4                // stallTimeouts until headers are there, with redirects and logins on the way
	maxHeader      = 64 << 10         // bytes of response headers
	readBuffer     = 64 << 10         // bytes per connection
	maxRedirects   = 5
)

// Options configures a Client.
type Options struct {
	// Roots are PEM certificates trusted beside the system's.
	Roots []string
	// Proxy overrides the proxy variables of the environment; nil keeps them.
	Proxy *Proxy
	// Host is where the environment is read.
	Host podvm.Host
	// Log receives warnings; nil means slog.Default.
	Log *slog.Logger
	// Backoff is the longest wait before the second try, doubled for each
	// further one; 0 means 500 ms. Tests shorten it.
	Backoff time.Duration
	// Stall replaces the 30 s limits for headers and between reads of a body
	// when it is not 0. Tests shorten it.
	Stall time.Duration
}

// Proxy names the proxies for https and http URLs and a comma-separated list
// of hosts, domains and CIDRs reached directly. Loopback never uses a proxy.
type Proxy struct{ HTTPS, HTTP, NoProxy string }

// Client holds the connections to registries. It is safe for concurrent use.
type Client struct {
	opts Options
	base *http.Transport
}

// NewClient returns a Client. It touches no network.
func NewClient(opts Options) (*Client, error) {
	if opts.Log == nil {
		opts.Log = slog.Default()
	}
	if opts.Backoff == 0 {
		opts.Backoff = 500 * time.Millisecond
	}
	header := headerTimeout
	if opts.Stall == 0 {
		opts.Stall = stallTimeout
	} else {
		header = opts.Stall
	}
	roots, err := rootPool(opts.Roots)
	if err != nil {
		return nil, err
	}
	proxy, err := proxyFunc(opts.Proxy, opts.Host)
	if err != nil {
		return nil, err
	}
	dialer := &net.Dialer{Timeout: connectTimeout, KeepAlive: 15 * time.Second}
	return &Client{opts: opts, base: &http.Transport{
		Proxy:                  func(r *http.Request) (*url.URL, error) { return proxy(r.URL) },
		DialContext:            dialer.DialContext,
		TLSClientConfig:        &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    connectTimeout,
		ResponseHeaderTimeout:  header,
		ExpectContinueTimeout:  time.Second,
		IdleConnTimeout:        30 * time.Second,
		MaxIdleConnsPerHost:    8,
		MaxResponseHeaderBytes: maxHeader,
		ReadBufferSize:         readBuffer,
		// Blobs are hashed as sent: no transparent gunzip. And HTTP/1.1 only,
		// so that parallel layers do not share one TCP connection.
		DisableCompression: true,
	}}, nil
}

// Close closes idle connections.
func (c *Client) Close() { c.base.CloseIdleConnections() }

func rootPool(extra []string) (*x509.CertPool, error) {
	if len(extra) == 0 {
		return nil, nil // the system's
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool() // a minimal image has no system store
	}
	for i, pem := range extra {
		if !pool.AppendCertsFromPEM([]byte(pem)) {
			return nil, fmt.Errorf("extra root certificate %d: no PEM certificate in it", i+1)
		}
	}
	return pool, nil
}

func proxyFunc(p *Proxy, host podvm.Host) (func(*url.URL) (*url.URL, error), error) {
	env := func(upper, lower string) string {
		if v := host.Getenv(upper); v != "" {
			return v
		}
		return host.Getenv(lower)
	}
	conf := httpproxy.Config{
		HTTPSProxy: env("HTTPS_PROXY", "https_proxy"),
		HTTPProxy:  env("HTTP_PROXY", "http_proxy"),
		NoProxy:    env("NO_PROXY", "no_proxy"),
	}
	if p != nil {
		conf = httpproxy.Config{HTTPSProxy: p.HTTPS, HTTPProxy: p.HTTP, NoProxy: p.NoProxy}
	}
	for _, s := range []string{conf.HTTPSProxy, conf.HTTPProxy} {
		if _, err := url.Parse(s); err != nil {
			return nil, fmt.Errorf("proxy URL is malformed") // it may hold a password
		}
	}
	return conf.ProxyFunc(), nil
}

// Open logs in to the registry of a candidate and returns its repository.
// Errors: ErrUnauthorized, ErrUnavailable.
func (c *Client) Open(ctx context.Context, cand Candidate, cred Credentials) (*Repository, error) {
	ref := cand.Reference
	opts := []name.Option{name.WeakValidation}
	scheme := "https"
	if cand.Insecure {
		scheme = "http"
		opts = append(opts, name.Insecure)
	}
	reg, err := name.NewRegistry(ref.Registry, opts...)
	if err != nil {
		return nil, fmt.Errorf("%w: registry %s: %w", ErrReference, ref.Registry, err)
	}
	auth := authn.Anonymous
	if cred.Username != "" || len(cred.Password) > 0 {
		auth = &authn.Basic{Username: cred.Username, Password: string(cred.Password)}
	}
	r := &Repository{
		ref:  ref,
		base: scheme + "://" + reg.RegistryStr() + "/v2/" + ref.Repository,
		opts: c.opts,
		log:  c.opts.Log,
	}
	bottom := transport.NewUserAgent(&schemeGuard{next: c.base, host: reg.RegistryStr(), plain: cand.Insecure}, "sealpod/"+podvm.Version())
	r.anonymous = &http.Client{Transport: bottom, CheckRedirect: checkRedirect}
	err = r.retry(ctx, "logging in", func() error {
		// ggcr reads the answers to their ends, however long those take.
		ctx, cancel := context.WithTimeoutCause(ctx, maxStalls*c.opts.Stall, errStalled)
		defer cancel()
		rt, err := transport.NewWithContext(ctx, reg, auth, bottom, []string{"repository:" + ref.Repository + ":pull"})
		if err != nil {
			return normalize(stalled(ctx, err), 0)
		}
		r.http = &http.Client{Transport: rt, CheckRedirect: checkRedirect}
		return nil
	})
	if err != nil {
		return nil, explain(ctx, err, ref.Registry, "access to "+ref.Name())
	}
	return r, nil
}

// schemeGuard holds requests to the scheme the rules chose: a registry is
// reached over HTTPS, or over plain HTTP when it is marked insecure, and an
// HTTPS registry never leads to plain HTTP elsewhere. ggcr on its own falls
// back to HTTP for private addresses.
type schemeGuard struct {
	next  http.RoundTripper
	host  string
	plain bool
}

// RoundTrip implements http.RoundTripper.
func (g *schemeGuard) RoundTrip(req *http.Request) (*http.Response, error) {
	switch {
	case req.URL.Scheme == "https" && (!g.plain || req.URL.Host != g.host):
	case req.URL.Scheme == "http" && g.plain:
	default:
		if req.Body != nil {
			_ = req.Body.Close()
		}
		return nil, fmt.Errorf("%w: %s to %s", errScheme, req.URL.Scheme, podvm.Printable(req.URL.Host, 128))
	}
	return g.next.RoundTrip(req)
}

// checkRedirect lets a registry point to its blob store, a few hops at most
// and never from https to something else.
func checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects {
		return fmt.Errorf("%w: more than %d", errRedirect, maxRedirects)
	}
	if via[0].URL.Scheme == "https" && req.URL.Scheme != "https" {
		return fmt.Errorf("%w: from https to %s", errRedirect, req.URL.Scheme)
	}
	return nil
}
