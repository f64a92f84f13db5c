package httpsrc

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	"golang.org/x/net/http/httpproxy"

	"github.com/sealpod/sealpod/model/source/settings"
)

// Limits of an exchange.
const (
	maxHeaders   = 64 << 10 // bytes of response headers
	maxFault     = 64 << 10 // bytes of an answer that is an error
	maxRedirects = 5
	maxDirect    = 1024 // redirects remembered
	idleConns    = 64   // kept open
	readBuffer   = 64 << 10
)

// Config says how to make a Client.
type Config struct {
	// Env is the world around. Not nil.
	Env *settings.Env
	// Name is the service, for people, as in "S3".
	Name string
	// ConnectTimeout bounds a TCP connection, and again TLS; 0 means 15 s.
	ConnectTimeout time.Duration
	// ReadTimeout bounds the wait for the headers of an answer and for each
	// further 64 KiB of a body; 0 means 30 s.
	ReadTimeout time.Duration
	// Attempts is how often a request is tried, and how many connections in a
	// row may break within a body with less than 1 MiB brought; 0 means 3.
	Attempts int
	// CAFile is the variable that may name a file of certificates for this
	// service only, or "".
	CAFile string
	// SkipVerify trusts any server, as KServe's S3_VERIFY_SSL=0 asks for.
	SkipVerify bool
}

// Client has the connections of a source. It is safe for concurrent use.
type Client struct {
	cfg    Config
	proxy  func(*url.URL) (*url.URL, error)
	own    *http.Transport // to the host that was configured, and to proxies
	others *http.Transport // to where that one leads, see dialOthers

	mu     sync.Mutex
	direct map[string]*url.URL // where URLs redirected to, elsewhere
}

// New returns a Client. It touches no network. Errors: source.ErrUsage.
func New(cfg Config) (*Client, error) {
	if cfg.ConnectTimeout <= 0 {
		cfg.ConnectTimeout = 15 * time.Second
	}
	if cfg.ReadTimeout <= 0 {
		cfg.ReadTimeout = 30 * time.Second
	}
	if cfg.Attempts <= 0 {
		cfg.Attempts = 3
	}
	roots, err := roots(cfg)
	if err != nil {
		return nil, err
	}
	c := &Client{cfg: cfg, proxy: proxyFunc(cfg.Env), direct: map[string]*url.URL{}}
	dial := cfg.Env.Dial
	if dial == nil {
		dial = (&net.Dialer{Timeout: cfg.ConnectTimeout, KeepAlive: 15 * time.Second}).DialContext
	}
	c.own = &http.Transport{
		Proxy:                  func(r *http.Request) (*url.URL, error) { return c.proxy(r.URL) },
		DialContext:            dial,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, InsecureSkipVerify: cfg.SkipVerify}, //nolint:gosec // where the owner of the pod says so
		TLSHandshakeTimeout:    cfg.ConnectTimeout,
		ResponseHeaderTimeout:  cfg.ReadTimeout,
		IdleConnTimeout:        30 * time.Second,
		MaxIdleConnsPerHost:    idleConns,
		MaxResponseHeaderBytes: maxHeaders,
		ReadBufferSize:         readBuffer,
		DisableCompression:     true, // ranges and sizes are of what is stored
	}
	c.others = c.own.Clone()
	c.others.Proxy = nil
	if cfg.Env.Dial == nil {
		c.others.DialContext = (&net.Dialer{Timeout: cfg.ConnectTimeout, KeepAlive: 15 * time.Second, Control: refuseLocal}).DialContext
	}
	return c, nil
}

// Close closes idle connections.
func (c *Client) Close() {
	c.own.CloseIdleConnections()
	c.others.CloseIdleConnections()
}

func roots(cfg Config) (*x509.CertPool, error) {
	pem, err := cfg.Env.CABundle(cfg.CAFile)
	if err != nil || pem == nil {
		return nil, err
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool() // a minimal image has no system store
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, settings.Usage("the CA bundle has no PEM certificate in it")
	}
	return pool, nil
}

func proxyFunc(e *settings.Env) func(*url.URL) (*url.URL, error) {
	env := func(upper, lower string) string {
		if v := e.Host.Getenv(upper); v != "" {
			return v
		}
		return e.Host.Getenv(lower)
	}
	return (&httpproxy.Config{
		HTTPSProxy: env("HTTPS_PROXY", "https_proxy"),
		HTTPProxy:  env("HTTP_PROXY", "http_proxy"),
		NoProxy:    env("NO_PROXY", "no_proxy"),
	}).ProxyFunc()
}

// Request is what is asked for. Its functions may be called by several
// goroutines at once.
type Request struct {
	Method string // "" means GET
	URL    string
	// Header goes to the host of URL and, of redirects, to that same host only.
	Header http.Header
	Body   []byte // it may be sent several times
	// Sign, when not nil, completes each try that goes to the host of URL.
	Sign func(*http.Request) error
	// Redirects lets the server lead elsewhere.
	Redirects bool
	// Version is what the object must have, see VersionOf, or "".
	Version string
	// Check, when not nil, judges the answer that is about to be used and each
	// redirect on the way. Its error ends the request.
	Check func(*http.Response) error
	// Explain, when not nil, reads an answer that is an error: what it says, to
	// show to people, and what kind of error it is: one of package source, perhaps
	// with ErrAgain, or nil to go by the status.
	Explain func(*Fault) (text string, err error)
}

// Fault is an answer that is an error.
type Fault struct {
	Status int
	Header http.Header
	Body   []byte // at most 64 KiB
}

func (r *Request) method() string {
	if r.Method == "" {
		return http.MethodGet
	}
	return r.Method
}

// roundTrip sends a request on one of the transports.
func (c *Client) roundTrip(ctx context.Context, req *http.Request, home string) (*http.Response, error) {
	tr := c.own
	if req.URL.Hostname() != home {
		if p, err := c.proxy(req.URL); err == nil && p == nil {
			tr = c.others
		}
	}
	return tr.RoundTrip(req.WithContext(ctx))
}
