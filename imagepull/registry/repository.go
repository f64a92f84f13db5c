package registry

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/sealpod/sealpod/podvm"
)

// Repository is one repository of a registry, logged in. It is safe for
// concurrent use.
type Repository struct {
	ref       Reference
	base      string // scheme://host/v2/path
	opts      Options
	log       *slog.Logger
	http      *http.Client // sends credentials to the registry
	anonymous *http.Client
}

// Image is a resolved image: every part is bound by digest to the reference.
type Image struct {
	Reference Reference
	TopDigest string // of the bytes the reference led to, manifest or index
	Digest    string // of the manifest for this platform
	Config    Config
	Layers    []Layer // base first
}

// Layer is one layer of an Image.
type Layer struct {
	Descriptor
	DiffID string // digest of the uncompressed tar
}

const acceptManifest = typeOCIManifest + ", " + typeOCIIndex + ", " + typeDockerManifest + ", " + typeDockerList

// Resolve fetches the manifest, through an index if the reference names one,
// and the image configuration.
//
// Errors: ErrUnauthorized, ErrNotFound, ErrUnavailable, ErrDigest, ErrManifest,
// ErrPlatform, podvm.ErrTooLarge.
func (r *Repository) Resolve(ctx context.Context) (*Image, error) {
	what := "manifest of " + r.ref.String()
	raw, top, err := r.manifest(ctx, r.ref.target())
	if err != nil {
		return nil, explain(ctx, err, r.ref.Registry, what)
	}
	img := &Image{Reference: r.ref, TopDigest: top, Digest: top}
	doc, isIndex, err := parseDocument(raw)
	if err == nil && isIndex {
		doc, img.Digest, err = r.platform(ctx, doc)
	}
	var m *Manifest
	if err == nil {
		m, err = doc.manifest()
	}
	if err != nil {
		return nil, explain(ctx, err, r.ref.Registry, what)
	}
	if err := r.config(ctx, img, m); err != nil {
		return nil, explain(ctx, err, r.ref.Registry, "configuration of "+r.ref.String())
	}
	return img, nil
}

// platform follows an index to the manifest of this machine.
func (r *Repository) platform(ctx context.Context, index *document) (*document, string, error) {
	desc, err := index.instance()
	if err != nil {
		return nil, "", err
	}
	raw, digest, err := r.manifest(ctx, desc.Digest)
	if err != nil {
		return nil, "", err
	}
	if int64(len(raw)) != desc.Size {
		return nil, "", fmt.Errorf("%w: manifest %s has %d bytes, the index says %d", ErrDigest, digest, len(raw), desc.Size)
	}
	doc, isIndex, err := parseDocument(raw)
	if err == nil && isIndex {
		err = fmt.Errorf("%w: an index inside an index", ErrManifest)
	}
	return doc, digest, err
}

// config fetches the configuration and pairs layers with diffIDs.
func (r *Repository) config(ctx context.Context, img *Image, m *Manifest) error {
	raw, err := r.small(ctx, m.Config, maxConfig)
	if err != nil {
		return err
	}
	conf, err := parseConfig(raw, len(m.Layers))
	if err != nil {
		return err
	}
	img.Config = *conf
	for i, l := range m.Layers {
		img.Layers = append(img.Layers, Layer{Descriptor: l, DiffID: conf.RootFS.DiffIDs[i]})
	}
	return nil
}

// manifest fetches a manifest or index by tag or digest and returns its bytes
// with their digest: the one asked for, or else sha256 of what came.
func (r *Repository) manifest(ctx context.Context, target string) (raw []byte, digest string, err error) {
	err = r.retry(ctx, "manifest "+target, func() error {
		raw, digest, err = r.manifestOnce(ctx, target)
		return err
	})
	return raw, digest, err
}

func (r *Repository) manifestOnce(ctx context.Context, target string) ([]byte, string, error) {
	resp, err := r.get(ctx, r.http, r.base+"/manifests/"+target, http.Header{"Accept": {acceptManifest}})
	if err != nil {
		return nil, "", err
	}
	raw, err := readBody(resp, maxManifest)
	if err != nil {
		return nil, "", err
	}
	if checkDigest(target) == nil { // a tag has no colon
		return raw, target, verify(raw, target)
	}
	// The header binds nothing, but a mismatch shows a broken cache early.
	if sent := resp.Header.Get("Docker-Content-Digest"); checkDigest(sent) == nil {
		if err := verify(raw, sent); err != nil {
			return nil, "", err
		}
	}
	return raw, digestOf("sha256", raw), nil
}

// small fetches a whole blob of at most limit bytes and verifies it.
func (r *Repository) small(ctx context.Context, desc Descriptor, limit int64) (raw []byte, err error) {
	if desc.Size > limit {
		return nil, fmt.Errorf("%w: blob %s: %d bytes, at most %d are read", podvm.ErrTooLarge, desc.Digest, desc.Size, limit)
	}
	err = r.retry(ctx, "blob "+desc.Digest, func() error {
		resp, err := r.get(ctx, r.http, r.base+"/blobs/"+desc.Digest, nil)
		if err != nil {
			return err
		}
		if raw, err = readBody(resp, desc.Size); err != nil {
			return err
		}
		if int64(len(raw)) < desc.Size {
			return fmt.Errorf("%w: %d of %d bytes", ErrTruncated, len(raw), desc.Size)
		}
		return verify(raw, desc.Digest)
	})
	return raw, err
}

// readBody reads and closes the body of resp.
func readBody(resp *http.Response, limit int64) ([]byte, error) {
	defer resp.Body.Close() //nolint:errcheck // read to its end or given up
	if resp.ContentLength > limit {
		return nil, fmt.Errorf("%w: %d bytes, at most %d are read", podvm.ErrTooLarge, resp.ContentLength, limit)
	}
	return podvm.ReadMax(resp.Body, limit)
}

// get sends one GET and returns the answer if its status is 200, or 206 when
// header asks for a range. The body fails when it stalls.
func (r *Repository) get(ctx context.Context, client *http.Client, url string, header http.Header) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		cancel(nil)
		return nil, fmt.Errorf("preparing the request: %w", err)
	}
	for k, v := range header {
		req.Header[k] = v
	}
	// The limits of the transport hold for one request; here may be several.
	timer := time.AfterFunc(maxStalls*r.opts.Stall, func() { cancel(errStalled) })
	resp, err := client.Do(req)
	timer.Stop()
	if err != nil {
		err = stalled(ctx, err)
		cancel(nil)
		return nil, normalize(err, 0)
	}
	resp.Body = newStallBody(resp.Body, r.opts.Stall, cancel)
	want := []int{http.StatusOK}
	if req.Header.Get("Range") != "" {
		want = append(want, http.StatusPartialContent)
	}
	if err := checkStatus(resp, want...); err != nil {
		_ = resp.Body.Close()
		return nil, withRetryAfter(err, resp)
	}
	return resp, nil
}

// signatureTag is where cosign keeps the signatures of a digest.
// Source: sigstore/cosign v2.6.5 pkg/oci/remote SignatureTag.
func signatureTag(digest string) string {
	return strings.Replace(digest, ":", "-", 1) + ".sig"
}
