package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"time"
)

// errStalled says that a peer sent nothing, or next to nothing, for too long.
var errStalled = errors.New("the connection stalled")

// stalled returns errStalled in place of err when that is why ctx has ended.
func stalled(ctx context.Context, err error) error {
	if err != nil && errors.Is(context.Cause(ctx), errStalled) {
		return errStalled
	}
	return err
}

// bounded gives all requests that do makes no more than maxAnswer stallTimeouts.
func bounded[T any](ctx context.Context, r *Repository, do func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, maxAnswer*r.opts.Stall, errStalled)
	defer cancel()
	v, err := do(ctx)
	return v, stalled(ctx, err)
}

// trickle is how many bytes a peer must send within the stall limit: less than
// anyone could use, more than one who only keeps the connection busy sends.
const trickle = 16 << 10

// stallBody cancels the request of a body when its reader has waited for
// longer than limit for the next need bytes. Time the reader spends elsewhere
// does not count.
type stallBody struct {
	body   io.ReadCloser
	limit  time.Duration
	need   int
	left   time.Duration // of limit
	got    int           // bytes since left was full
	timer  *time.Timer
	cancel context.CancelCauseFunc
}

func newStallBody(body io.ReadCloser, limit time.Duration, need int, cancel context.CancelCauseFunc) *stallBody {
	t := time.AfterFunc(limit, func() { cancel(errStalled) })
	t.Stop()
	return &stallBody{body: body, limit: limit, need: need, left: limit, timer: t, cancel: cancel}
}

// Read implements io.Reader.
func (b *stallBody) Read(p []byte) (int, error) {
	start := time.Now()
	b.timer.Reset(b.left)
	n, err := b.body.Read(p)
	if !b.timer.Stop() && errors.Is(err, context.Canceled) {
		err = errStalled
	}
	b.left = max(b.left-time.Since(start), 1)
	if b.got += n; b.got >= b.need {
		b.got, b.left = 0, b.limit
	}
	return n, err
}

// Close implements io.Closer. It may run beside Read.
func (b *stallBody) Close() error {
	b.timer.Stop()
	b.cancel(nil)
	return b.body.Close()
}

// get sends one GET and returns the answer if its status is 200, or 206 when
// header asks for a range. The body fails when it stalls.
func (r *Repository) get(ctx context.Context, client *http.Client, url string, header http.Header) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	// The limits of the transport hold for one request; here may be several.
	// Waiting for one of the connections a host may have is no stall of its.
	timer := time.AfterFunc(maxStalls*r.opts.Stall, func() { cancel(errStalled) })
	defer timer.Stop()
	trace := &httptrace.ClientTrace{
		GetConn: func(string) { timer.Stop() },
		GotConn: func(httptrace.GotConnInfo) { timer.Reset(maxStalls * r.opts.Stall) },
	}
	req, err := http.NewRequestWithContext(httptrace.WithClientTrace(ctx, trace), http.MethodGet, url, nil)
	if err != nil {
		cancel(nil)
		return nil, fmt.Errorf("preparing the request: %w", err)
	}
	req.Header.Set("Accept-Encoding", "identity")
	for k, v := range header {
		req.Header[k] = v
	}
	resp, err := client.Do(req)
	if err != nil {
		err = stalled(ctx, err)
		cancel(nil)
		return nil, tidy(err)
	}
	resp.Body = newStallBody(resp.Body, r.opts.Stall, trickle, cancel)
	if resp.StatusCode != http.StatusOK && (resp.StatusCode != http.StatusPartialContent || req.Header.Get("Range") == "") {
		defer discard(resp)
		return nil, statusOf(resp)
	}
	return resp, nil
}
