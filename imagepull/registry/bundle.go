package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/sealpod/sealpod/imagepull/policy"
	"github.com/sealpod/sealpod/podvm"
)

// bundleType is how the media types of Sigstore bundles begin; a version
// follows. Source: sigstore/protobuf-specs sigstore_bundle.proto.
const bundleType = "application/vnd.dev.sigstore.bundle"

// Bundles returns the Sigstore bundles attached to the manifest or index with
// that digest, none when there are none: those the referrers API lists, or, in
// a registry without it, the referrers tag. A bundle that cannot be read is
// left out with a warning. Nothing is verified beyond digests.
//
// Errors: ErrUnauthorized, ErrUnavailable, podvm.ErrTooLarge.
// Source: OCI distribution-spec v1.1, "Listing Referrers" and "Referrers Tag
// Schema".
func (r *Repository) Bundles(ctx context.Context, digest string) ([]policy.Document, error) {
	docs, err := bounded(ctx, r, func(ctx context.Context) ([]policy.Document, error) { return r.bundles(ctx, digest) })
	return docs, explain(ctx, err, r.ref.Registry, "bundles of "+r.ref.Name()+"@"+digest)
}

func (r *Repository) bundles(ctx context.Context, digest string) ([]policy.Document, error) {
	if err := checkDigest(digest); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrManifest, err)
	}
	list, err := r.referrers(ctx, digest)
	if err != nil {
		return nil, err
	}
	if len(list) > policy.MaxBundles {
		return nil, fmt.Errorf("%w: %d bundles, at most %d are read", podvm.ErrTooLarge, len(list), policy.MaxBundles)
	}
	var docs []policy.Document
	for _, d := range list {
		raw, err := r.bundle(ctx, d)
		if unusable(err) {
			r.log.Warn("Sigstore bundle ignored", "image", r.ref.String(), "digest", podvm.Printable(d.Digest, 140), "err", err)
			continue
		}
		if err != nil {
			return nil, err
		}
		docs = append(docs, policy.Document{Raw: raw, Origin: "Sigstore bundle " + d.Digest})
	}
	return docs, nil
}

// unusable says that one piece is missing or wrong, which does not speak
// against the others.
func unusable(err error) bool {
	for _, e := range []error{ErrManifest, ErrNotFound, ErrDigest, ErrTruncated, podvm.ErrTooLarge} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// bundle fetches one bundle: the only layer of a manifest.
func (r *Repository) bundle(ctx context.Context, d Descriptor) ([]byte, error) {
	if err := d.check(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrManifest, err)
	}
	m, err := r.artifact(ctx, d.Digest)
	if err != nil {
		return nil, err
	}
	if len(m.Layers) != 1 || !strings.HasPrefix(m.Layers[0].MediaType, bundleType) {
		return nil, fmt.Errorf("%w: not one bundle", ErrManifest)
	}
	return r.small(ctx, m.Layers[0], policy.MaxBundle)
}

// Fetch gets a document of at most limit bytes that is in no registry, over
// https or http and without credentials, with the proxies, extra roots, limits
// and retries of registries.
//
// Errors: ErrUnauthorized, ErrNotFound, ErrUnavailable, podvm.ErrTooLarge.
func (c *Client) Fetch(ctx context.Context, at *url.URL, limit int64) ([]byte, error) {
	plain := &http.Client{
		Transport:     &guard{own: c.own, others: c.others, host: at.Host, plain: at.Scheme == "http"},
		CheckRedirect: checkRedirect,
	}
	r := &Repository{ref: Reference{Registry: at.Host}, base: at.String(), client: c, opts: c.opts, log: c.opts.Log, http: plain}
	var raw []byte
	err := r.retry(ctx, at.Path, func() (err error) {
		raw, _, err = r.document(ctx, "", nil, limit)
		return err
	})
	return raw, explain(ctx, err, at.Host, podvm.Printable(at.String(), 300))
}
