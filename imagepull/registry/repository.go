package registry

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"runtime"
	"strings"

	"github.com/sealpod/sealpod/podvm"
)

// Repository is one repository of a registry, logged in. It is safe for
// concurrent use.
type Repository struct {
	ref       Reference
	base      string // scheme://host/v2/path
	client    *Client
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
	what := "manifest of "
	img, err := bounded(ctx, r, func(ctx context.Context) (*Image, error) {
		img, m, err := r.instance(ctx)
		if err != nil {
			return nil, err
		}
		what = "configuration of "
		return img, r.config(ctx, img, m)
	})
	if err != nil {
		return nil, explain(ctx, err, r.ref.Registry, what+r.ref.String())
	}
	return img, nil
}

// instance fetches what the reference leads to, down to the manifest of this
// machine.
func (r *Repository) instance(ctx context.Context) (*Image, *Manifest, error) {
	raw, top, err := r.manifest(ctx, r.ref.target())
	if err != nil {
		return nil, nil, err
	}
	img := &Image{Reference: r.ref, TopDigest: top, Digest: top}
	doc, isIndex, err := parseDocument(raw)
	if err == nil && isIndex {
		doc, img.Digest, err = r.platform(ctx, doc)
	}
	if err != nil {
		return nil, nil, err
	}
	m, err := doc.manifest()
	return img, m, err
}

// platform follows an index to the manifest of this machine.
func (r *Repository) platform(ctx context.Context, index *document) (*document, string, error) {
	desc, err := index.instance(runtime.GOARCH)
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

// artifact fetches the manifest of something that belongs to an image, which
// is no index. target is a tag or a digest.
func (r *Repository) artifact(ctx context.Context, target string) (*Manifest, error) {
	raw, _, err := r.manifest(ctx, target)
	if err != nil {
		return nil, err
	}
	doc, isIndex, err := parseDocument(raw)
	if err != nil {
		return nil, err
	}
	if isIndex {
		return nil, fmt.Errorf("%w: an index where signatures are expected", ErrManifest)
	}
	return doc.manifest()
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
	raw, answer, err := r.document(ctx, "/manifests/"+target, http.Header{"Accept": {acceptManifest}}, maxManifest)
	if err != nil {
		return nil, "", err
	}
	// The header binds nothing, but a mismatch shows a broken cache early.
	digest := digestOf("sha256", raw)
	for _, want := range []string{answer.Get("Docker-Content-Digest"), target} {
		if checkDigest(want) != nil { // a tag has no colon
			continue
		}
		if err := verify(raw, want); err != nil {
			return nil, "", encoded(err, answer)
		}
		if want == target {
			digest = target
		}
	}
	return raw, digest, nil
}

// encoded adds to a mismatch of digests that the bytes came encoded, which
// nobody asked for.
func encoded(err error, answer http.Header) error {
	if how := answer.Get("Content-Encoding"); err != nil && how != "" {
		return fmt.Errorf("%w (sent with Content-Encoding %s)", err, podvm.Printable(how, 32))
	}
	return err
}

// small fetches a whole blob of at most limit bytes and verifies it.
func (r *Repository) small(ctx context.Context, desc Descriptor, limit int64) (raw []byte, err error) {
	if desc.Size > limit {
		return nil, fmt.Errorf("%w: blob %s: %d bytes, at most %d are read", podvm.ErrTooLarge, desc.Digest, desc.Size, limit)
	}
	err = r.retry(ctx, "blob "+desc.Digest, func() error {
		var answer http.Header
		raw, answer, err = r.document(ctx, "/blobs/"+desc.Digest, nil, desc.Size)
		if err != nil {
			return err
		}
		if int64(len(raw)) < desc.Size {
			return fmt.Errorf("%w: %d of %d bytes", ErrTruncated, len(raw), desc.Size)
		}
		return encoded(verify(raw, desc.Digest), answer)
	})
	return raw, err
}

// document fetches a whole answer of at most limit bytes from below r.base, in
// bounded time.
func (r *Repository) document(ctx context.Context, path string, header http.Header, limit int64) ([]byte, http.Header, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, maxStalls*r.opts.Stall, errStalled)
	defer cancel()
	resp, err := r.get(ctx, r.http, r.base+path, header)
	if err != nil {
		return nil, nil, stalled(ctx, err)
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end or given up
	if resp.ContentLength > limit {
		return nil, nil, fmt.Errorf("%w: %d bytes, at most %d are read", podvm.ErrTooLarge, resp.ContentLength, limit)
	}
	raw, err := podvm.ReadMax(resp.Body, limit)
	return raw, resp.Header, stalled(ctx, err)
}

// signatureTag is where cosign keeps the signatures of a digest.
// Source: sigstore/cosign v2.6.5 pkg/oci/remote SignatureTag.
func signatureTag(digest string) string {
	return strings.Replace(digest, ":", "-", 1) + ".sig"
}
