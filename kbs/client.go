package kbs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/sealpod/sealpod/podvm"
)

// Defaults of a client.
const (
	// defaultAgent is the user agent of the client this one stands in for.
	// Source: guest-components kbs_protocol/src/lib.rs at 8246e5e0.
	defaultAgent       = "attestation-agent-kbs-client/0.1.0"
	defaultAttempts    = 8
	defaultRetryPause  = time.Second
	firstPause         = 16      // part of the pause that the first one is
	defaultMaxResource = 8 << 20 // twice what a ttrpc frame can carry on
)

// ClientConfig says which KBS to talk to and how. Zero values are defaults.
type ClientConfig struct {
	// URL is the base address, as in "https://kbs.example:8080"; "/kbs/v0" is
	// appended. Trailing slashes do not matter.
	URL string
	// CertPEM holds certificates to trust beside those of the system.
	CertPEM []byte
	// UserAgent is the User-Agent header.
	UserAgent string
	// RequestTimeout bounds one HTTP request; 60 s by default. The context of
	// a call bounds the call as a whole.
	RequestTimeout time.Duration
	// Attempts is how often a handshake or a request for a resource is tried
	// while the KBS does not answer: 8 by default. RetryPause is the longest
	// time between, 1 s by default; the first pause is a sixteenth of it and
	// each next twice the one before, so that a KBS that is merely restarted
	// costs little, and one that is gone an error after four seconds.
	Attempts   int
	RetryPause time.Duration
	// MaxResource caps an encrypted resource in bytes; 8 MiB by default.
	MaxResource int64
	// Log takes a line for every repeated attempt; slog.Default() by default.
	Log *slog.Logger
}

// Client attests to one KBS and fetches from it. It keeps its connections and
// is safe for concurrent use. Close it when done.
type Client struct {
	web         *web
	attempts    int
	pause       time.Duration
	maxResource int64
	log         *slog.Logger
}

// NewClient checks cfg and returns a client; it does not connect.
func NewClient(cfg ClientConfig) (*Client, error) {
	if cfg.UserAgent == "" {
		cfg.UserAgent = defaultAgent
	}
	if cfg.Attempts <= 0 {
		cfg.Attempts = defaultAttempts
	}
	if cfg.RetryPause <= 0 {
		cfg.RetryPause = defaultRetryPause
	}
	if cfg.MaxResource <= 0 {
		cfg.MaxResource = defaultMaxResource
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	w, err := newWeb("KBS", cfg.URL, cfg.UserAgent, cfg.CertPEM, cfg.RequestTimeout)
	if err != nil {
		return nil, err
	}
	return &Client{web: w, attempts: cfg.Attempts, pause: cfg.RetryPause, maxResource: cfg.MaxResource, log: cfg.Log}, nil
}

// URL returns the base address of the KBS, without credentials.
func (c *Client) URL() string { return c.web.base }

// Close closes the connections that are kept open.
func (c *Client) Close() { c.web.transport.CloseIdleConnections() }

// Resource fetches what u names with a token and decrypts it with the token's
// key. A KBS that does not answer is asked again while ctx leaves time for it;
// getting a fresh token after ErrUnauthorized is the caller's part. The caller
// wipes the result.
//
// Errors: ErrUnauthorized, ErrDenied, ErrNotFound, ErrUnreachable, ErrProtocol,
// ErrDecrypt.
func (c *Client) Resource(ctx context.Context, tok *Token, u URI) (podvm.Secret, error) {
	path := "/kbs/v0/" + u.plugin + "/" + httpPath(u.path)
	if u.query != "" {
		path += "?" + u.query
	}
	var body []byte
	err := c.retry(ctx, "resource", func() (err error) {
		body, err = c.web.send(ctx, request{method: http.MethodGet, path: path, bearer: tok.JWT, limit: c.maxResource})
		return c.resourceError(u, err)
	})
	if err != nil {
		return nil, fmt.Errorf("fetching %s: %w", podvm.Printable(u.String(), 256), err)
	}
	defer clear(body)
	secret, err := tok.Key.Decrypt(body)
	if err != nil {
		return nil, podvm.Explain(fmt.Errorf("fetching %s: %w", podvm.Printable(u.String(), 256), err),
			"the answer of the KBS is not encrypted to the key of this guest")
	}
	return secret, nil
}

// retry calls try until it succeeds, fails for good, has failed c.attempts times
// or ctx leaves no time for another pause.
func (c *Client) retry(ctx context.Context, what string, try func() error) error {
	pause := c.pause / firstPause
	for attempt := 1; ; attempt++ {
		err := try()
		if err == nil || !errors.Is(err, errRetry) {
			return err
		}
		if attempt >= c.attempts || !wait(ctx, pause) {
			return fmt.Errorf("attempt %d: %w", attempt, err)
		}
		c.log.Warn("The KBS is asked again", "for", what, "kbs", c.web.base, "attempt", attempt, "err", err)
		pause = min(2*pause, c.pause)
	}
}

// resourceError maps an answer to a resource request. A KBS of this protocol
// says 401 for nearly everything, so the variant decides.
// Source: trustee kbs/src/error.rs at 78962cd4; 403 in later commits.
func (c *Client) resourceError(u URI, err error) error {
	var e *httpError
	if !errors.As(err, &e) {
		return err // nil included
	}
	name := podvm.Printable(u.String(), 256)
	switch {
	case e.status == http.StatusForbidden:
		return podvm.Explain(fmt.Errorf("%w: %w", ErrDenied, e),
			fmt.Sprintf("access to %s denied by the resource policy of the KBS (%s)", name, e.detail()))
	case e.status == http.StatusNotFound && e.variant() == "PluginNotFound":
		return podvm.Explain(fmt.Errorf("%w: %w", ErrNotFound, e),
			fmt.Sprintf("no such resource plugin at the KBS: %s", u.plugin))
	case e.status == http.StatusNotFound && e.info != nil:
		return podvm.Explain(fmt.Errorf("%w: %w", ErrNotFound, e),
			fmt.Sprintf("the KBS has no %s (%s)", name, e.detail()))
	case e.status != http.StatusUnauthorized:
		return c.web.unexpected(e)
	case e.variant() == "PolicyDeny":
		return podvm.Explain(fmt.Errorf("%w: %w: %w", ErrDenied, ErrUnauthorized, e),
			fmt.Sprintf("access to %s denied by the resource policy of the KBS (%s)", name, e.detail()))
	case e.variant() == "PluginInternalError":
		// Token and policy were passed before the plugin was asked.
		return podvm.Explain(fmt.Errorf("%w: %w", ErrNotFound, e),
			fmt.Sprintf("the KBS could not return %s; it probably does not exist there (%s)", name, e.detail()))
	}
	return podvm.Explain(fmt.Errorf("%w: %w", ErrUnauthorized, e),
		fmt.Sprintf("the KBS did not accept the attestation token for %s (%s)", name, e.detail()))
}

// httpPath turns the path of a URI into one that HTTP carries unchanged: a "%"
// that starts no escape, which the URL standard allows, becomes an escape of
// itself, and so do the few printable characters HTTP excludes.
func httpPath(path string) string {
	var b strings.Builder
	for i := range len(path) {
		if path[i] == '%' && (i+2 >= len(path) || !isHex(path[i+1]) || !isHex(path[i+2])) {
			b.WriteString("%25")
		} else {
			b.WriteByte(path[i])
		}
	}
	return percentEncode(b.String(), " \"#<>?\\^`{|}")
}

func isHex(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F'
}
