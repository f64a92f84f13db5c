package httpsrc

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/sealpod/sealpod/model/source"
	"github.com/sealpod/sealpod/podvm"
)

// Document fetches an answer as a whole, at most limit bytes of it, with the
// status 200. Errors: those of package source, of r's functions, and the
// context's.
func (c *Client) Document(ctx context.Context, r Request, limit int64) (http.Header, []byte, error) {
	var header http.Header
	var raw []byte
	extra := http.Header{}
	conditions(r.Version, extra)
	err := c.retry(ctx, func() error {
		resp, err := c.get(ctx, &r, extra, http.StatusOK)
		if err != nil {
			return err
		}
		defer resp.Body.Close() //nolint:errcheck // read-only
		header = resp.Header
		raw, err = podvm.ReadMax(resp.Body, limit)
		if errors.Is(err, podvm.ErrTooLarge) {
			return podvm.Explain(fmt.Errorf("%w: %w", source.ErrListing, err), c.cfg.Name+" sends a longer answer than is accepted")
		}
		if err != nil {
			return c.broken(ctx, err)
		}
		return nil
	})
	return header, raw, err
}

// Info is what is known of an object.
type Info struct {
	Size    int64  // -1: not known
	Version string // see VersionOf
	Header  http.Header
}

// Stat asks for the first byte of an object, to learn of the others: fewer
// servers answer HEAD.
func (c *Client) Stat(ctx context.Context, r Request) (Info, error) {
	info := Info{Size: -1}
	err := c.retry(ctx, func() error {
		resp, err := c.get(ctx, &r, http.Header{"Range": {"bytes=0-0"}}, http.StatusOK, http.StatusPartialContent, http.StatusRequestedRangeNotSatisfiable)
		if err != nil {
			return err
		}
		defer resp.Body.Close() //nolint:errcheck // read-only
		info.Version, info.Header = VersionOf(resp.Header), resp.Header
		text := resp.Header.Get("Content-Range")
		_, _, total, ok := contentRange(text)
		switch {
		case resp.StatusCode == http.StatusOK:
			info.Size = resp.ContentLength
		case resp.StatusCode == http.StatusRequestedRangeNotSatisfiable && text == "bytes */0":
			info.Size = 0
		case resp.StatusCode == http.StatusPartialContent && ok:
			info.Size = total
			drain(resp)
		default:
			return podvm.Explain(source.ErrUnreachable, c.cfg.Name+" does not answer ranges as it must")
		}
		return nil
	})
	return info, err
}
