package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

// errStalled says that a peer sent nothing for too long.
var errStalled = errors.New("the connection stalled")

// stalled returns errStalled in place of err when that is why ctx has ended.
func stalled(ctx context.Context, err error) error {
	if errors.Is(context.Cause(ctx), errStalled) {
		return errStalled
	}
	return err
}

// stallBody cancels the request of a body when one Read takes longer than
// limit. Time the reader spends elsewhere does not count.
type stallBody struct {
	body   io.ReadCloser
	limit  time.Duration
	timer  *time.Timer
	cancel context.CancelCauseFunc
}

func newStallBody(body io.ReadCloser, limit time.Duration, cancel context.CancelCauseFunc) *stallBody {
	t := time.AfterFunc(limit, func() { cancel(errStalled) })
	t.Stop()
	return &stallBody{body: body, limit: limit, timer: t, cancel: cancel}
}

// Read implements io.Reader.
func (b *stallBody) Read(p []byte) (int, error) {
	b.timer.Reset(b.limit)
	n, err := b.body.Read(p)
	if !b.timer.Stop() && errors.Is(err, context.Canceled) {
		err = errStalled
	}
	return n, err
}

// Close implements io.Closer. It may run beside Read.
func (b *stallBody) Close() error {
	b.timer.Stop()
	b.cancel(nil)
	return b.body.Close()
}

// Blob opens a layer for reading. The reader returns exactly desc.Size bytes
// or an error; it verifies no digest, the caller does. A connection that
// breaks is taken up again where it broke. Close may be called while a Read
// runs and ends it.
//
// A foreign layer that the registry does not have is taken from the https URLs
// of its descriptor, without credentials.
//
// Errors, also of Read: ErrUnauthorized, ErrNotFound, ErrUnavailable, ErrDigest
// (size), ErrTruncated.
func (r *Repository) Blob(ctx context.Context, desc Descriptor) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancel(ctx)
	b := &blob{ctx: ctx, cancel: cancel, repo: r, desc: desc, client: r.http, url: r.base + "/blobs/" + desc.Digest}
	err := b.open()
	if errors.Is(err, ErrNotFound) && isForeign(desc.MediaType) {
		for _, u := range desc.URLs {
			if parsed, e := url.Parse(u); e != nil || parsed.Scheme != "https" {
				continue
			}
			b.client, b.url = r.anonymous, u
			if err = b.open(); err == nil {
				break
			}
		}
	}
	if err != nil {
		err = explain(ctx, err, r.ref.Registry, "layer "+desc.Digest)
		cancel()
		return nil, err
	}
	return b, nil
}

// isForeign tells layers that need not be in the registry.
// Source: OCI image-spec v1.1 layer.md, docker image manifest v2.2.
func isForeign(mediaType string) bool {
	return strings.Contains(mediaType, ".nondistributable.") || strings.Contains(mediaType, ".foreign.")
}

// blob reads one blob over as many connections as it takes.
type blob struct {
	ctx    context.Context
	cancel context.CancelFunc
	repo   *Repository
	desc   Descriptor
	client *http.Client
	url    string
	off    int64 // bytes handed out
	broken int   // connections that broke since the last progress
	last   int64 // off when the latest connection was opened

	mu   sync.Mutex // guards body against Close
	body io.ReadCloser
}

// progress is how much a connection must bring for earlier failures to be
// forgotten, so that a slow, flaky link finishes and a hostile one does not.
const progress = 1 << 20

// open starts a connection at b.off.
func (b *blob) open() error {
	return b.repo.retry(b.ctx, "blob "+b.desc.Digest, func() error {
		header := http.Header{}
		if b.off > 0 {
			header.Set("Range", fmt.Sprintf("bytes=%d-%d", b.off, b.desc.Size-1))
		}
		resp, err := b.repo.get(b.ctx, b.client, b.url, header)
		if err != nil {
			return err
		}
		if err := b.position(resp); err != nil {
			_ = resp.Body.Close()
			return err
		}
		b.mu.Lock()
		b.body, b.last = resp.Body, b.off
		b.mu.Unlock()
		return nil
	})
}

// position makes sure that the body of resp continues at b.off and promises no
// other size than the descriptor.
func (b *blob) position(resp *http.Response) error {
	rest := b.desc.Size - b.off
	if resp.StatusCode == http.StatusPartialContent {
		var first, last int64
		_, err := fmt.Sscanf(resp.Header.Get("Content-Range"), "bytes %d-%d/", &first, &last)
		if err != nil || first != b.off || last != b.desc.Size-1 {
			return fmt.Errorf("%w: range from %d answered with %q", ErrDigest, b.off, resp.Header.Get("Content-Range"))
		}
	} else {
		rest = b.desc.Size
	}
	if resp.ContentLength >= 0 && resp.ContentLength != rest {
		return fmt.Errorf("%w: registry announces %d bytes, expected %d", ErrDigest, resp.ContentLength, rest)
	}
	if resp.StatusCode == http.StatusOK && b.off > 0 {
		if _, err := io.CopyN(io.Discard, resp.Body, b.off); err != nil {
			return fmt.Errorf("skipping to offset %d: %w", b.off, err)
		}
	}
	return nil
}

// Read implements io.Reader.
func (b *blob) Read(p []byte) (int, error) {
	for {
		n, err := b.body.Read(p)
		if int64(n) > b.desc.Size-b.off {
			return 0, b.fail(fmt.Errorf("%w: more than the %d bytes of its descriptor", ErrDigest, b.desc.Size))
		}
		b.off += int64(n)
		switch {
		case err == nil, err == io.EOF && b.off == b.desc.Size:
			return n, err
		case n > 0:
			return n, nil // the error comes back with the next call
		case b.ctx.Err() != nil:
			return 0, b.fail(err)
		}
		if err := b.resume(err); err != nil {
			return 0, b.fail(err)
		}
	}
}

// resume opens the next connection after one ended early with cause.
func (b *blob) resume(cause error) error {
	if b.off-b.last >= progress {
		b.broken = 0
	}
	if b.broken++; b.broken >= maxTries {
		if errors.Is(cause, io.EOF) || errors.Is(cause, io.ErrUnexpectedEOF) {
			cause = fmt.Errorf("%w: %d of %d bytes", ErrTruncated, b.off, b.desc.Size)
		}
		return cause
	}
	b.repo.log.Warn("Blob connection broke, resuming", "layer", b.desc.Digest, "offset", b.off, "err", cause)
	_ = b.body.Close()
	if err := sleep(b.ctx, b.repo.wait(cause, b.broken)); err != nil {
		return err
	}
	err := b.open()
	var status *statusError
	if errors.As(err, &status) && status.code == http.StatusRequestedRangeNotSatisfiable {
		return fmt.Errorf("%w: %d of %d bytes", ErrTruncated, b.off, b.desc.Size)
	}
	return err
}

func (b *blob) fail(err error) error {
	return explain(b.ctx, err, b.repo.ref.Registry, "layer "+b.desc.Digest)
}

// Close implements io.Closer.
func (b *blob) Close() error {
	b.cancel()
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.body.Close()
}
