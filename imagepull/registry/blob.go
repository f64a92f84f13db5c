package registry

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
)

// Blob opens a layer for reading. The reader returns exactly desc.Size bytes
// or an error; it verifies no digest, the caller does. A connection that
// breaks is taken up again where it broke, and a large blob that a slow network
// holds up comes over several connections. One that stays below 16 KiB/s for ten
// minutes of waiting is given up. Close may be called while a Read runs and ends
// it.
//
// A foreign layer that the registry does not have is taken from the https URLs
// of its descriptor, without credentials.
//
// Errors, also of Read: ErrUnauthorized, ErrNotFound, ErrUnavailable, ErrDigest
// (size), ErrTruncated.
func (r *Repository) Blob(ctx context.Context, desc Descriptor) (io.ReadCloser, error) {
	what := "layer " + desc.Digest + " of " + r.ref.Name()
	outer := ctx
	ctx, cancel := context.WithCancelCause(ctx)
	b, err := r.source(desc, r.http, r.base+"/blobs/"+desc.Digest).start(ctx)
	if errors.Is(err, ErrNotFound) && isForeign(desc.MediaType) {
		for _, u := range desc.URLs[:min(len(desc.URLs), maxURLs)] {
			if parsed, e := url.Parse(u); e != nil || parsed.Scheme != "https" || parsed.User != nil {
				continue
			}
			r.log.Info("Foreign layer is not in the registry, trying its URL", "layer", desc.Digest)
			if b, err = r.source(desc, r.anonymous, u).start(ctx); err == nil {
				break
			}
		}
	}
	if err != nil {
		cancel(nil)
		return nil, explain(outer, err, r.ref.Registry, what)
	}
	limit := maxSlow * r.opts.Stall
	b = newStallBody(b, limit, int(float64(r.client.minRate)*limit.Seconds()), cancel)
	return &explained{ReadCloser: b, ctx: outer, registry: r.ref.Registry, what: what}, nil
}

// maxURLs is how many URLs of a foreign layer are tried.
const maxURLs = 16

// isForeign tells layers that need not be in the registry.
// Source: OCI image-spec v1.1 layer.md, docker image manifest v2.2.
func isForeign(mediaType string) bool {
	return strings.Contains(mediaType, ".nondistributable.") || strings.Contains(mediaType, ".foreign.")
}

// explained adds to the errors of Read what users see.
type explained struct {
	io.ReadCloser
	ctx            context.Context
	registry, what string
}

// Read implements io.Reader.
func (e *explained) Read(p []byte) (int, error) {
	n, err := e.ReadCloser.Read(p)
	if err != nil && err != io.EOF { //nolint:errorlint // only a bare io.EOF is a clean end
		err = explain(e.ctx, err, e.registry, e.what)
	}
	return n, err
}

// source is where the bytes of a blob come from. Its spans share what they
// learn about it.
type source struct {
	repo   *Repository
	desc   Descriptor
	client *http.Client
	url    string
	home   string // origin of url

	mu       sync.Mutex
	noRanges bool   // asked for a range, it sent something else
	direct   string // where url redirects to; "" when not known
}

func (r *Repository) source(desc Descriptor, client *http.Client, from string) *source {
	s := &source{repo: r, desc: desc, client: client, url: from}
	if u, err := url.Parse(from); err == nil {
		s.home = origin(u)
	}
	return s
}

// start opens the blob at its beginning.
func (s *source) start(ctx context.Context) (io.ReadCloser, error) {
	if s.desc.Size > s.repo.client.ranging.above {
		return startRanged(ctx, s)
	}
	return s.span(ctx, 0, s.desc.Size)
}

func (s *source) rangesRefused() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.noRanges
}

func (s *source) refuseRanges() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.noRanges = true
}

// get requests the blob from where the registry redirected to the last time,
// which saves asking it for each part, or else from the registry.
func (s *source) get(ctx context.Context, header http.Header) (*http.Response, error) {
	s.mu.Lock()
	direct := s.direct
	s.mu.Unlock()
	if direct != "" {
		resp, err := s.repo.get(ctx, s.repo.anonymous, direct, header)
		if err == nil {
			return resp, nil
		}
		s.mu.Lock()
		if s.direct == direct { // such URLs expire, and another connection may have a new one
			s.direct = ""
		}
		s.mu.Unlock()
		var status *statusError
		if !errors.As(err, &status) {
			return nil, err
		}
	}
	resp, err := s.repo.get(ctx, s.client, s.url, header)
	if err != nil {
		return nil, err
	}
	// Elsewhere on the registry's own host the login would be needed.
	if final := resp.Request.URL; origin(final) != s.home {
		s.mu.Lock()
		s.direct = final.String()
		s.mu.Unlock()
	}
	return resp, nil
}
