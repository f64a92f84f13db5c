package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
)

// progress is how much a connection must bring for earlier failures to be
// forgotten, so that a slow, flaky link finishes and a hostile one does not.
const progress = 1 << 20

var (
	// errRange says that a range was answered with something else.
	errRange = errors.New("the registry answers ranges wrongly")
	// errNoParts says that a part cannot be had alone.
	errNoParts = errors.New("the registry does not send parts")
)

// span reads the bytes [off, end) of a blob over as many connections as it
// takes. Blobs are named by digest, which the caller checks: no validator is
// needed to tell whether what a later connection brings belongs to what an
// earlier one did.
type span struct {
	ctx    context.Context
	cancel context.CancelFunc
	src    *source
	off    int64 // next byte to hand out
	end    int64
	broken int   // connections that broke since the last progress
	last   int64 // off when the latest connection was opened

	mu   sync.Mutex // guards body against Close
	body io.ReadCloser
}

// span opens [off, end) of the blob.
func (s *source) span(ctx context.Context, off, end int64) (*span, error) {
	ctx, cancel := context.WithCancel(ctx)
	sp := &span{ctx: ctx, cancel: cancel, src: s, off: off, end: end}
	if err := sp.open(); err != nil {
		cancel()
		return nil, err
	}
	return sp, nil
}

// open starts a connection at s.off.
func (s *span) open() error {
	return s.src.repo.retry(s.ctx, "blob "+s.src.desc.Digest, func() error {
		if s.off > 0 && s.end < s.src.desc.Size && s.src.rangesRefused() {
			return errNoParts
		}
		header := http.Header{}
		whole := s.off == 0 && s.end == s.src.desc.Size
		if !whole && !s.src.rangesRefused() {
			header.Set("Range", fmt.Sprintf("bytes=%d-%d", s.off, s.end-1))
		}
		resp, err := s.src.get(s.ctx, header)
		var status *statusError
		if errors.As(err, &status) && status.code == http.StatusRequestedRangeNotSatisfiable && header.Get("Range") != "" {
			s.src.refuseRanges() // the whole blob will show whether it is shorter
			return fmt.Errorf("%w: %w", errRange, err)
		}
		if err != nil {
			return err
		}
		if err := s.position(resp); err != nil {
			_ = resp.Body.Close()
			return err
		}
		s.mu.Lock()
		s.body, s.last = resp.Body, s.off
		s.mu.Unlock()
		return nil
	})
}

// position makes sure that the body of resp continues at s.off and promises no
// other size than the descriptor. After errRange, asking again is done without
// a range.
func (s *span) position(resp *http.Response) error {
	size := s.src.desc.Size
	if resp.StatusCode == http.StatusPartialContent {
		text := resp.Header.Get("Content-Range")
		first, last, total, err := parseContentRange(text)
		if err != nil || first != s.off || last >= s.end || total >= 0 && total != size ||
			resp.ContentLength >= 0 && resp.ContentLength != last-first+1 {
			s.src.refuseRanges()
			return fmt.Errorf("%w: %d-%d of %d with %.64q and %d bytes", errRange, s.off, s.end-1, size, text, resp.ContentLength)
		}
		return nil
	}
	if resp.ContentLength >= 0 && resp.ContentLength != size {
		return fmt.Errorf("%w: registry announces %d bytes, expected %d", ErrDigest, resp.ContentLength, size)
	}
	if resp.Request.Header.Get("Range") != "" {
		s.src.refuseRanges()
	}
	if s.off > 0 && s.end < size {
		return errNoParts
	}
	if s.end < size {
		s.end = size // the beginning of one: this connection may as well bring it all
	}
	if _, err := io.CopyN(io.Discard, resp.Body, s.off); err != nil {
		return fmt.Errorf("skipping to offset %d: %w", s.off, err)
	}
	return nil
}

// Read implements io.Reader.
func (s *span) Read(p []byte) (int, error) {
	for {
		n, err := s.body.Read(p)
		if int64(n) > s.end-s.off {
			return 0, fmt.Errorf("%w: more than the %d bytes of its descriptor", ErrDigest, s.src.desc.Size)
		}
		s.off += int64(n)
		switch {
		case err == nil:
			return n, nil
		case s.off == s.end:
			return n, io.EOF // and how the connection ended does not matter
		case n > 0:
			return n, nil // the error comes back with the next call
		case s.ctx.Err() != nil:
			return 0, err
		}
		if err := s.resume(err); err != nil {
			return 0, err
		}
	}
}

// resume opens the next connection after one ended early with cause. Without
// ranges each one starts from the beginning, so there are only a few.
func (s *span) resume(cause error) error {
	if s.off-s.last >= progress && !s.src.rangesRefused() {
		s.broken = 0
	}
	repo := s.src.repo
	if s.broken++; s.broken >= maxTries {
		if errors.Is(cause, io.EOF) || errors.Is(cause, io.ErrUnexpectedEOF) {
			cause = fmt.Errorf("%w: %d of %d bytes", ErrTruncated, s.off, s.src.desc.Size)
		}
		return cause
	}
	repo.log.Warn("Blob connection broke, resuming", "layer", s.src.desc.Digest, "offset", s.off, "err", cause)
	_ = s.body.Close()
	if err := sleep(s.ctx, repo.wait(cause, s.broken)); err != nil {
		return err
	}
	return s.open()
}

// Close implements io.Closer.
func (s *span) Close() error {
	s.cancel()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.body.Close()
}
