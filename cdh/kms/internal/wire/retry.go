package wire

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/netfault"
)

const (
	maxTries      = 3
	maxRetryAfter = 10 * time.Second // a longer Retry-After is cut to this
)

// errRetry marks failures that may be gone a second later.
var errRetry = errors.New("temporary")

// again tells whether the outcome of the try-th try is worth another one, and
// how long to wait before. Guests that met the same fault do not come back
// together.
func (c *Client) again(r Request, resp *Response, err error, try int) (time.Duration, bool) {
	limit := c.cfg.Backoff << (try - 1)
	wait := limit/2 + rand.N(limit/2+1)
	switch {
	case try == maxTries:
		return 0, false
	case err != nil:
		return wait, errors.Is(err, errRetry)
	case resp.Status == http.StatusTooManyRequests || resp.Status >= 500:
		if s, err := strconv.ParseUint(resp.Header.Get("Retry-After"), 10, 31); err == nil {
			wait += min(time.Duration(s)*time.Second, maxRetryAfter)
		}
		return wait, true
	}
	return wait, resp.Status != http.StatusOK && r.Again != nil && r.Again(resp)
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Overloaded is the ErrUnreachable for a last answer that asks to come back
// later: 429, 5xx, or a service's own words for it in code.
func Overloaded(service string, status int, code string) error {
	text := fmt.Sprintf("%s is overloaded or broken (HTTP status %d)", service, status)
	if code = podvm.Printable(code, maxCode); code != "" {
		text += ": " + code
	}
	return podvm.Explain(fmt.Errorf("%w: %s", ErrUnreachable, text), text)
}

// unreachable says why no answer came.
func unreachable(service string, err error) error {
	// It quotes the URL, whose query may hold a signature or a token.
	if ue := (*url.Error)(nil); errors.As(err, &ue) {
		err = ue.Err
	}
	why, temporary := netfault.Why(err)
	if temporary {
		err = fmt.Errorf("%w: %w", errRetry, err)
	}
	return podvm.Explain(fmt.Errorf("%w: %w", ErrUnreachable, err), fmt.Sprintf("%s not reachable: %s", service, why))
}
