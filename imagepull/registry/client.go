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
	"slices"
	"sync"
	"time"

	"github.com/sealpod/sealpod/podvm"
)

// Limits of one HTTP exchange.
const (
	connectTimeout = 10 * time.Second // TCP, and again TLS
	headerTimeout  = 30 * time.Second // request sent to response headers
	stallTimeout   = 30 * time.Second // for the next 16 KiB of a body
	maxStalls      = 4                // stallTimeouts until headers are there, with redirects and logins on the way
	maxAnswer      = 10               // stallTimeouts for all documents that answer one question, with tries and waits
	maxSlow        = 20               // stallTimeouts in which a blob has to keep up minRate
	minRate        = 16 << 10         // bytes per second
	maxHeader      = 64 << 10         // bytes of response headers
	readBuffer     = 64 << 10         // bytes per connection
	maxRedirects   = 5
	maxConns       = 32 // per host; further requests wait
	maxLogins      = 64 // remembered
)

// hubEndpoint is where Docker Hub's registry is.
const hubEndpoint = "index.docker.io"

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
	// Stall, when it is not 0, replaces the limits of 10 s for connecting and
	// for TLS, and of 30 s for headers and for 16 KiB of a body; limits that
	// are several of the latter follow. Tests shorten it.
	Stall time.Duration

	resolver *net.Resolver // nil: the system's
}

// Client holds the connections to registries. It is safe for concurrent use.
type Client struct {
	opts Options
	// Idle connections are kept apart, so that none that was made to a registry
	// on this machine serves what others lead to.
	own     *http.Transport // to registries themselves
	others  *http.Transport // to elsewhere, see dialer
	ranging ranging
	minRate int           // of a blob, in bytes per second
	helpers chan struct{} // one value per further connection in use
	pages   sync.Pool     // of *[pageSize]byte

	mu     sync.Mutex
	logins map[string]*login
}

// NewClient returns a Client. It touches no network.
func NewClient(opts Options) (*Client, error) {
	if opts.Log == nil {
		opts.Log = slog.Default()
	}
	if opts.Backoff == 0 {
		opts.Backoff = 500 * time.Millisecond
	}
	connect, header := connectTimeout, headerTimeout
	if opts.Stall == 0 {
		opts.Stall = stallTimeout
	} else {
		connect, header = opts.Stall, opts.Stall
	}
	roots, err := rootPool(opts.Roots)
	if err != nil {
		return nil, err
	}
	proxy, proxies, err := proxyFunc(opts.Proxy, opts.Host)
	if err != nil {
		return nil, err
	}
	d := &dialer{Dialer: net.Dialer{Timeout: connect, KeepAlive: 15 * time.Second, Resolver: opts.resolver}, proxies: proxies}
	c := &Client{opts: opts, ranging: defaultRanging, minRate: minRate, helpers: make(chan struct{}, maxHelpers), logins: map[string]*login{}}
	c.pages.New = func() any { return new([pageSize]byte) }
	c.own = &http.Transport{
		Proxy:                  func(r *http.Request) (*url.URL, error) { return proxy(r.URL) },
		OnProxyConnectResponse: checkProxy,
		DialContext:            d.toRegistry,
		TLSClientConfig:        &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    connect,
		ResponseHeaderTimeout:  header,
		ExpectContinueTimeout:  time.Second,
		IdleConnTimeout:        30 * time.Second,
		MaxIdleConnsPerHost:    8,
		MaxConnsPerHost:        maxConns,
		MaxResponseHeaderBytes: maxHeader,
		ReadBufferSize:         readBuffer,
		// Blobs are hashed as sent: no transparent gunzip. And HTTP/1.1 only,
		// so that parallel layers do not share one TCP connection.
		DisableCompression: true,
	}
	c.others = c.own.Clone()
	c.others.DialContext = d.toOthers
	return c, nil
}

// Close closes idle connections.
func (c *Client) Close() {
	c.own.CloseIdleConnections()
	c.others.CloseIdleConnections()
}

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

// Open logs in to the registry of a candidate and returns its repository.
// Registry and token service are asked once; later calls with the same
// credentials use what is known while it is good.
// Errors: ErrUnauthorized, ErrUnavailable.
func (c *Client) Open(ctx context.Context, cand Candidate, cred Credentials) (*Repository, error) {
	ref := cand.Reference
	scheme := "https"
	if cand.Insecure {
		scheme = "http"
	}
	host := ref.Registry
	if host == dockerHub {
		host = hubEndpoint
	}
	registry := &url.URL{Scheme: scheme, Host: host, Path: "/v2/"}
	cred.Password = slices.Clone(cred.Password) // the caller wipes its own
	plain := &http.Client{
		Transport:     &guard{own: c.own, others: c.others, host: host, plain: cand.Insecure},
		CheckRedirect: checkRedirect,
	}
	in := &session{
		login:      c.login(registry.String() + ref.Repository + " " + cred.key()),
		cred:       cred,
		repository: ref.Repository,
		client:     plain,
		limit:      2 * c.opts.Stall,
	}
	r := &Repository{
		ref:       ref,
		base:      registry.String() + ref.Repository,
		client:    c,
		opts:      c.opts,
		log:       c.opts.Log,
		anonymous: plain,
		http: &http.Client{
			Transport:     &sessionAuth{next: plain.Transport, at: origin(registry), session: in},
			CheckRedirect: checkRedirect,
		},
	}
	err := r.retry(ctx, "logging in", func() error { return in.start(ctx, registry.String()) })
	if err != nil {
		return nil, explain(ctx, err, ref.Registry, "login for "+ref.Name())
	}
	return r, nil
}

// login returns what is known under key, at first nothing.
func (c *Client) login(key string) *login {
	c.mu.Lock()
	defer c.mu.Unlock()
	if l := c.logins[key]; l != nil {
		return l
	}
	for k := range c.logins {
		if len(c.logins) < maxLogins {
			break
		}
		delete(c.logins, k) // any: it costs one more login
	}
	l := newLogin()
	c.logins[key] = l
	return l
}
