package httpsrc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/sealpod/sealpod/model/source"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/netfault"
)

// maxRetryAfter is what a longer Retry-After is cut to.
const maxRetryAfter = 30 * time.Second

// ErrAgain says of an error that another try may go better.
var ErrAgain = errors.New("temporary")

// waitError is an error with the time a server wants to be left alone.
type waitError struct {
	error
	wait time.Duration
}

func (e *waitError) Unwrap() error { return e.error }

// retry has do make tries until one succeeds or fails for good, or there were
// enough, or ctx ends.
func (c *Client) retry(ctx context.Context, do func() error) error {
	for try := 1; ; try++ {
		err := do()
		if err == nil || ctx.Err() != nil || try >= c.cfg.Attempts || !errors.Is(err, ErrAgain) {
			return err
		}
		if werr := c.pause(ctx, err, try); werr != nil {
			return errors.Join(err, werr)
		}
	}
}

// pause waits after the n-th failure in a row. Pods that met the same fault do
// not come back together.
func (c *Client) pause(ctx context.Context, err error, n int) error {
	limit := c.cfg.Env.Backoff
	if limit <= 0 {
		limit = 500 * time.Millisecond
	}
	limit = min(limit<<min(n-1, 10), 20*time.Second)
	wait := limit/2 + rand.N(limit/2+1)
	if w := (*waitError)(nil); errors.As(err, &w) {
		wait += w.wait
	}
	c.cfg.Env.Log.Warn("Source gave no answer, trying again", "source", c.cfg.Name, "try", n, "wait", wait, "err", err)
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// get makes one try and returns an answer whose status is among want. Its body
// fails when it stalls. The context of the answer ends with its body's Close.
func (c *Client) get(ctx context.Context, r *Request, extra http.Header, want ...int) (*http.Response, error) {
	bctx, cancel := context.WithCancelCause(ctx)
	resp, err := c.send(bctx, r, extra)
	if err != nil {
		cancel(nil)
		return nil, c.broken(ctx, err)
	}
	resp.Body = guardStall(resp.Body, c.cfg.ReadTimeout, cancel)
	if !slices.Contains(want, resp.StatusCode) {
		defer drain(resp)
		return nil, c.fault(r, resp)
	}
	if r.Check != nil {
		err = r.Check(resp)
	}
	if err == nil && resp.StatusCode/100 == 2 {
		err = checkVersion(r.Version, resp.Header)
	}
	if err != nil {
		_ = resp.Body.Close()
		return nil, err
	}
	return resp, nil
}

// broken is what a request without an answer means.
func (c *Client) broken(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if errors.Is(err, source.ErrUsage) || errors.Is(err, source.ErrChanged) || errors.Is(err, source.ErrRefused) || errors.Is(err, source.ErrUnreachable) {
		return err
	}
	if ue := (*url.Error)(nil); errors.As(err, &ue) { // quotes the URL, which may hold a token
		err = ue.Err
	}
	if errors.Is(err, errRedirect) {
		return podvm.Explain(fmt.Errorf("%w: %w", source.ErrUnreachable, err), c.cfg.Name+" leads to a place that is not followed to")
	}
	why, temporary := netfault.Why(err)
	if errors.Is(err, errStalled) {
		why, temporary = "no answer in time", true
	}
	if temporary {
		err = errors.Join(ErrAgain, err)
	}
	return podvm.Explain(fmt.Errorf("%w: %w", source.ErrUnreachable, err), c.cfg.Name+" not reachable: "+why)
}

// fault is what an answer means that is an error.
func (c *Client) fault(r *Request, resp *http.Response) error {
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxFault))
	var text string
	var err error
	if r.Explain != nil {
		text, err = r.Explain(&Fault{Status: resp.StatusCode, Header: resp.Header, Body: body})
	}
	if err == nil {
		err = byStatus(resp.StatusCode)
	}
	says := map[error]string{
		source.ErrRefused: "refuses access", source.ErrNotFound: "has nothing there",
		source.ErrChanged: "has something else there by now",
	}
	what := "gives no usable answer"
	for class, words := range says {
		if errors.Is(err, class) {
			what = words
		}
	}
	cause := fmt.Sprintf("%s %s (HTTP status %d)", c.cfg.Name, what, resp.StatusCode)
	if text = podvm.Printable(text, 300); text != "" {
		cause += ": " + text
	}
	err = podvm.Explain(err, cause)
	if s, perr := strconv.ParseUint(resp.Header.Get("Retry-After"), 10, 31); perr == nil && errors.Is(err, ErrAgain) {
		return &waitError{err, min(time.Duration(s)*time.Second, maxRetryAfter)}
	}
	return err
}

// byStatus is the meaning of a status that was not wanted.
// Source: RFC 9110 section 15.
func byStatus(status int) error {
	switch status {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusProxyAuthRequired:
		return source.ErrRefused
	case http.StatusNotFound, http.StatusGone:
		return source.ErrNotFound
	case http.StatusPreconditionFailed, http.StatusRequestedRangeNotSatisfiable:
		return source.ErrChanged
	case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests:
		return errors.Join(source.ErrUnreachable, ErrAgain)
	case http.StatusNotImplemented, http.StatusHTTPVersionNotSupported:
		return source.ErrUnreachable
	}
	if status >= 500 {
		return errors.Join(source.ErrUnreachable, ErrAgain)
	}
	return source.ErrUnreachable
}

// drain reads the little that is left of an answer, so that its connection can
// be used again, and closes it.
func drain(resp *http.Response) {
	_, _ = io.CopyN(io.Discard, resp.Body, maxFault)
	_ = resp.Body.Close()
}
