package registry

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"strconv"
	"time"
)

const (
	maxTries      = 5
	maxRetryAfter = time.Minute // a longer Retry-After is cut to this
)

// retryAfterError carries what a registry asked for with the error it sent.
type retryAfterError struct {
	error
	wait time.Duration
}

func (e *retryAfterError) Unwrap() error { return e.error }

// withRetryAfter attaches the Retry-After header of resp to err.
func withRetryAfter(err error, resp *http.Response) error {
	text := resp.Header.Get("Retry-After")
	if text == "" {
		return err
	}
	wait := time.Duration(0)
	if seconds, e := strconv.ParseUint(text, 10, 31); e == nil {
		wait = time.Duration(seconds) * time.Second
	} else if at, e := http.ParseTime(text); e == nil {
		wait = time.Until(at)
	}
	if wait <= 0 {
		return err
	}
	return &retryAfterError{err, min(wait, maxRetryAfter)}
}

// retry runs do until it succeeds, fails for good, has been tried maxTries
// times or ctx ends. Waits double and are jittered.
func (r *Repository) retry(ctx context.Context, what string, do func() error) error {
	for try := 1; ; try++ {
		err := do()
		if err == nil || ctx.Err() != nil || try == maxTries || !retryable(err) {
			return err
		}
		wait := r.wait(err, try)
		if end, ok := ctx.Deadline(); ok && time.Until(end) <= wait {
			return err // says more than a deadline that passed
		}
		r.log.Warn("Registry request failed, trying again", "registry", r.ref.Registry, "request", what,
			"try", try, "wait", wait, "err", err)
		if err := sleep(ctx, wait); err != nil {
			return err
		}
	}
}

// wait is how long to pause after the try-th failure, which was err. Machines
// that were told the same time to wait do not come back together.
func (r *Repository) wait(err error, try int) time.Duration {
	limit := r.opts.Backoff << (try - 1)
	var ra *retryAfterError
	if errors.As(err, &ra) {
		return ra.wait + rand.N(limit+1)
	}
	return limit/2 + rand.N(limit/2+1)
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
