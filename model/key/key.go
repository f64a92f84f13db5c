// Package key gets the key of a model from the guest's data hub, over the REST
// server that every container of a pod reaches on loopback.
//
// Data path: the storage initializer asks for one resource of the relying party
// before it fetches anything that is encrypted. Attestation happens behind it.
//
// Trust: whoever listens at the address can hand out a key of its own, and with
// it a model of its own: it must be on loopback, which in a confidential pod is
// the guest's. The key passes in clear and never leaves the machine.
package key

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/sealpod/sealpod/kbs"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/rpc"
)

// Limits.
const (
	attempt    = 30 * time.Second // for one answer, as upstream
	patience   = 2 * time.Minute  // for all of them
	firstPause = time.Second
	maxPause   = 15 * time.Second
	maxKey     = 64 << 10 // bytes
	maxText    = 4 << 10  // bytes of an answer that is an error
)

// DefaultAddr is where api-server-rest listens.
const DefaultAddr = "http://127.0.0.1:8006"

// reasonHeader is a header of api-server-rest, see cdh/rest: one of the words of
// package rpc.
const reasonHeader = "Sealpod-Reason"

// Why there is no key.
var (
	// ErrUsage says that the resource or the address of the data hub make no sense.
	ErrUsage = errors.New("not a key that can be asked for")
	// ErrRefused says that the relying party denies the key, or does not have it.
	ErrRefused = errors.New("the key is refused")
	// ErrUnreachable says that nobody who has the key could be asked.
	ErrUnreachable = errors.New("the key service is not reachable")
)

// Config says whom to ask, and how patiently.
type Config struct {
	// Addr is the base URL of api-server-rest; "" means DefaultAddr. It must be on
	// loopback.
	Addr string
	// Log takes a line for each try that is made again. Nil means slog.Default.
	Log *slog.Logger

	patience, pause time.Duration // 0 means those above
}

// Fetch gets the resource id, kbs:///REPOSITORY/TYPE/TAG, which the caller wipes.
// What may pass is tried again for up to two minutes. Errors: ErrUsage,
// ErrRefused, ErrUnreachable, each with a cause to show, and the context's.
func Fetch(ctx context.Context, cfg Config, id string) (podvm.Secret, error) {
	uri, err := kbs.ParseURI(id)
	if err != nil {
		return nil, podvm.Explain(fmt.Errorf("%w: %w", ErrUsage, err), fmt.Sprintf("%q is not kbs:///REPOSITORY/TYPE/TAG", podvm.Printable(id, 200)))
	}
	base, err := address(cfg.Addr)
	if err != nil {
		return nil, err
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.patience == 0 {
		cfg.patience = patience
	}
	pause := cfg.pause
	if pause == 0 {
		pause = firstPause
	}
	tr := &http.Transport{DisableKeepAlives: true, DialContext: (&net.Dialer{Timeout: attempt}).DialContext} // and never a proxy
	defer tr.CloseIdleConnections()
	target := base + "/cdh/resource/" + (&url.URL{Path: uri.Path()}).EscapedPath()
	end := time.Now().Add(cfg.patience)
	for {
		secret, again, err := ask(ctx, tr, target, uri.String())
		if err == nil || !again || time.Now().Add(pause).After(end) {
			return secret, err
		}
		cfg.Log.Warn("No key yet, trying again", "key", uri.String(), "pause", pause, "err", err)
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil, ctx.Err()
		case <-timer.C:
		}
		pause = min(2*pause, maxPause)
	}
}

// address checks the base URL.
func address(addr string) (string, error) {
	if addr == "" {
		addr = DefaultAddr
	}
	u, err := url.Parse(addr)
	if err != nil || u.Scheme != "http" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.Trim(u.Path, "/") != "" {
		return "", podvm.Explain(ErrUsage, "CDH_ADDR is not http://ADDRESS:PORT")
	}
	// The name is not looked up: whoever answers that is not the guest.
	if strings.EqualFold(u.Hostname(), "localhost") {
		u.Host = net.JoinHostPort("127.0.0.1", port(u))
	}
	if ip, err := netip.ParseAddr(u.Hostname()); err != nil || !ip.Unmap().IsLoopback() {
		return "", podvm.Explain(ErrUsage, "CDH_ADDR is not on loopback: a key from elsewhere would not be the owner's")
	}
	return "http://" + u.Host, nil
}

func port(u *url.URL) string {
	if p := u.Port(); p != "" {
		return p
	}
	return "80"
}

// ask makes one try, and tells whether another one may do better.
func ask(ctx context.Context, tr *http.Transport, target, id string) (secret podvm.Secret, again bool, err error) {
	limited, cancel := context.WithTimeout(ctx, attempt)
	defer cancel()
	req, err := http.NewRequestWithContext(limited, http.MethodGet, target, http.NoBody)
	if err != nil {
		return nil, false, podvm.Explain(fmt.Errorf("%w: %w", ErrUsage, err), "CDH_ADDR is not http://ADDRESS:PORT")
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, false, ctx.Err()
		}
		return nil, true, podvm.Explain(fmt.Errorf("%w: %w", ErrUnreachable, err), "api-server-rest does not answer at "+req.URL.Scheme+"://"+req.URL.Host)
	}
	defer resp.Body.Close() //nolint:errcheck // read-only
	if resp.StatusCode == http.StatusOK {
		if secret, err = podvm.ReadMax(resp.Body, maxKey); err != nil {
			return nil, !errors.Is(err, podvm.ErrTooLarge), podvm.Explain(fmt.Errorf("%w: %w", ErrUnreachable, err), "the answer with the key "+id+" cannot be read")
		}
		if len(secret) == 0 {
			return nil, false, podvm.Explain(ErrRefused, "the resource "+id+" is empty")
		}
		return secret, false, nil
	}
	text, _ := io.ReadAll(io.LimitReader(resp.Body, maxText)) // it only explains
	return refusal(resp, id, podvm.Printable(string(text), 600))
}

// refusal is what another status than 200 means.
func refusal(resp *http.Response, id, text string) (podvm.Secret, bool, error) {
	cause := fmt.Sprintf("%s: %s", id, text)
	switch word := resp.Header.Get(reasonHeader); {
	case word == rpc.Unreachable, resp.StatusCode == http.StatusBadGateway, resp.StatusCode == http.StatusServiceUnavailable,
		resp.StatusCode == http.StatusGatewayTimeout, resp.StatusCode == http.StatusTooManyRequests:
		return nil, true, podvm.Explain(fmt.Errorf("%w: HTTP status %d", ErrUnreachable, resp.StatusCode), cause)
	case word == rpc.Denied, word == rpc.NotFound:
		return nil, false, podvm.Explain(fmt.Errorf("%w: %s", ErrRefused, word), cause)
	}
	// Upstream's server has one status for everything, a reason to wait included.
	return nil, resp.StatusCode >= 500, podvm.Explain(fmt.Errorf("%w: HTTP status %d", ErrRefused, resp.StatusCode), cause)
}
