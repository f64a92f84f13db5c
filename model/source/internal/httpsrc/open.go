package httpsrc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/sealpod/sealpod/model/source"
	"github.com/sealpod/sealpod/podvm"
)

// progress is how many bytes a connection must bring for earlier failures to be
// forgotten, so that a slow, flaky link finishes and a hostile one does not.
const progress = 1 << 20

// Open is source.Source's Open for an object of size bytes, -1 when that is not
// known. The reader is for one goroutine at a time and must be closed. It returns
// exactly the bytes asked for, as far as the object has them, or an error: those
// of package source, or the context's.
func (c *Client) Open(ctx context.Context, r Request, off, n, size int64) (io.ReadCloser, error) {
	end := size
	if n >= 0 && (size < 0 || off+n < size) {
		end = off + n
	}
	if off < 0 || size >= 0 && off > size {
		return nil, fmt.Errorf("%w: range from %d of %d bytes", source.ErrChanged, off, size)
	}
	if end == off {
		return http.NoBody, nil
	}
	b := &body{ctx: ctx, client: c, request: r, off: off, end: end, size: size, whole: off == 0 && end == size}
	if err := c.retry(ctx, b.open); err != nil {
		return nil, err
	}
	return b, nil
}

// body reads the bytes [off, end) of an object over as many connections as it
// takes.
type body struct {
	ctx     context.Context //nolint:containedctx // of one Open, whose Read may make requests
	client  *Client
	request Request
	off     int64 // next byte to hand out
	end     int64 // -1: to the end, wherever that is
	size    int64 // of the object, -1 until it is known
	whole   bool  // no range was asked for

	resp    io.ReadCloser
	chunked bool  // the answer did not say how long it is
	last    int64 // off when the connection was opened
	broken  int   // connections that broke since the last progress
}

// open makes one try to continue at off.
func (b *body) open() error {
	extra := http.Header{}
	conditions(b.request.Version, extra)
	if !b.whole || b.off > 0 {
		text := fmt.Sprintf("bytes=%d-", b.off)
		if b.end >= 0 {
			text += strconv.FormatInt(b.end-1, 10)
		}
		extra.Set("Range", text)
	}
	resp, err := b.client.get(b.ctx, &b.request, extra, http.StatusOK, http.StatusPartialContent)
	if err != nil {
		return err
	}
	if err := b.position(resp, extra.Get("Range") != ""); err != nil {
		_ = resp.Body.Close()
		return err
	}
	// Whatever else comes of this object has to be of this version.
	if v := VersionOf(resp.Header); b.request.Version == "" {
		b.request.Version = v
	}
	b.resp, b.last, b.chunked = resp.Body, b.off, resp.ContentLength < 0
	return nil
}

// position makes sure that the body of resp continues at off.
func (b *body) position(resp *http.Response, ranged bool) error {
	length := resp.ContentLength
	if resp.StatusCode == http.StatusOK {
		if ranged && !b.whole {
			return podvm.Explain(source.ErrNoRanges, b.client.cfg.Name+" sends no parts of objects")
		}
		if err := b.sized(length); err != nil {
			return err
		}
		if b.end < 0 && len(resp.TransferEncoding) == 0 {
			return b.wrong("an end that looks like a broken connection")
		}
		// Without ranges a broken connection begins anew.
		if _, err := io.CopyN(io.Discard, resp.Body, b.off); err != nil {
			return b.client.broken(b.ctx, err)
		}
		return nil
	}
	first, last, total, ok := contentRange(resp.Header.Get("Content-Range"))
	switch {
	case !ranged, !ok, first != b.off, length >= 0 && length != last-first+1:
		return b.wrong("a range that was not asked for: " + podvm.Printable(resp.Header.Get("Content-Range"), 64))
	case b.end >= 0 && last >= b.end:
		return b.wrong("more than was asked for")
	}
	if err := b.sized(total); err != nil {
		return err
	}
	// A range that ends early is one that will be continued, except at the end.
	if b.end < 0 && total < 0 {
		b.end = last + 1
	}
	return nil
}

// sized holds the object to one size, n, -1 if an answer does not say it.
func (b *body) sized(n int64) error {
	if n < 0 {
		return nil
	}
	if b.size >= 0 && n != b.size {
		return podvm.Explain(fmt.Errorf("%w: it has %d bytes, had %d", source.ErrChanged, n, b.size), "an object changed after it was listed: start again")
	}
	b.size = n
	if b.end < 0 || b.end > n {
		b.end = n
	}
	return nil
}

func (b *body) wrong(why string) error {
	return podvm.Explain(fmt.Errorf("%w: it answers with %s", source.ErrUnreachable, why), b.client.cfg.Name+" does not answer as it must")
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	for {
		if b.off == b.end {
			return 0, io.EOF
		}
		if b.resp == nil { // an earlier call could not resume
			return 0, fmt.Errorf("%w: connections keep breaking", source.ErrUnreachable)
		}
		if b.end >= 0 {
			p = p[:min(int64(len(p)), b.end-b.off)]
		}
		n, err := b.resp.Read(p)
		b.off += int64(n)
		switch {
		case b.off == b.end:
			return n, b.finish(err)
		case err == nil || n > 0:
			return n, nil // an error comes back with the next call
		case errors.Is(err, io.EOF) && b.end < 0:
			b.end, b.size = b.off, b.off
			return 0, io.EOF
		}
		if err := b.resume(err); err != nil {
			return 0, err
		}
	}
}

// finish makes sure that an answer of no announced length ends where it must,
// which also lets its connection be used again.
func (b *body) finish(err error) error {
	if !b.chunked || err != nil {
		return nil
	}
	var one [1]byte
	if n, _ := io.ReadFull(b.resp, one[:]); n > 0 {
		return b.wrong("more than was asked for")
	}
	return nil
}

// resume continues after a connection ended early with cause.
func (b *body) resume(cause error) error {
	_ = b.resp.Close()
	b.resp = nil
	if b.ctx.Err() != nil {
		return context.Cause(b.ctx)
	}
	if b.off-b.last >= progress {
		b.broken = 0
	}
	if errors.Is(cause, io.EOF) {
		cause = io.ErrUnexpectedEOF
	}
	err := b.client.broken(b.ctx, cause)
	if b.broken++; b.broken >= b.client.cfg.Attempts {
		return err
	}
	if err := b.client.pause(b.ctx, err, b.broken); err != nil {
		return err
	}
	return b.client.retry(b.ctx, b.open)
}

// Close implements io.Closer.
func (b *body) Close() error {
	if b.resp == nil {
		return nil
	}
	return b.resp.Close()
}

// contentRange reads "bytes first-last/total"; a total of * is -1.
// Source: RFC 9110 section 14.4.
func contentRange(s string) (first, last, total int64, ok bool) {
	s, ok = strings.CutPrefix(s, "bytes ")
	span, size, ok2 := strings.Cut(s, "/")
	from, to, ok3 := strings.Cut(span, "-")
	total = -1
	for _, f := range []struct {
		text string
		to   *int64
	}{{from, &first}, {to, &last}, {size, &total}} {
		if f.text == "*" && f.to == &total {
			continue
		}
		n, err := strconv.ParseUint(f.text, 10, 63)
		ok = ok && err == nil
		*f.to = int64(n)
	}
	return first, last, total, ok && ok2 && ok3 && first <= last && (total < 0 || last < total)
}
