package registry

import (
	"context"
	"errors"
	"fmt"

	"github.com/sealpod/sealpod/imagepull/policy"
	"github.com/sealpod/sealpod/podvm"
)

// Source: sigstore/cosign v2.6.5 pkg/types and pkg/oci/static.
const (
	simpleSigning       = "application/vnd.dev.cosign.simplesigning.v1+json"
	signatureAnnotation = "dev.cosignproject.cosign/signature"
)

// Signatures returns what cosign stored as signatures of the manifest or index
// with that digest, none when there is no signature tag. Each payload has the
// digest its descriptor names; entries of other kinds, without a signature, or
// with another payload are left out with a warning. Nothing is verified beyond
// that.
//
// Errors: ErrUnauthorized, ErrUnavailable, ErrManifest, podvm.ErrTooLarge.
func (r *Repository) Signatures(ctx context.Context, digest string) ([]policy.Signature, error) {
	sigs, err := bounded(ctx, r, func(ctx context.Context) ([]policy.Signature, error) { return r.signatures(ctx, digest) })
	return sigs, explain(ctx, err, r.ref.Registry, "signatures of "+r.ref.Name()+"@"+digest)
}

func (r *Repository) signatures(ctx context.Context, digest string) ([]policy.Signature, error) {
	if err := checkDigest(digest); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrManifest, err)
	}
	m, err := r.artifact(ctx, signatureTag(digest))
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if len(m.Layers) > policy.MaxSignatures {
		return nil, fmt.Errorf("%w: %d signatures, at most %d are read", podvm.ErrTooLarge, len(m.Layers), policy.MaxSignatures)
	}
	var sigs []policy.Signature
	for _, l := range m.Layers {
		sig := l.Annotations[signatureAnnotation]
		if l.MediaType != simpleSigning || sig == "" {
			r.log.Warn("Entry of a signature manifest ignored", "image", r.ref.String(), "digest", l.Digest,
				"type", podvm.Printable(l.MediaType, 128))
			continue
		}
		payload, err := r.small(ctx, l, policy.MaxPayload)
		if unusable(err) {
			r.log.Warn("Signature payload ignored", "image", r.ref.String(), "digest", l.Digest, "err", err)
			continue
		}
		if err != nil {
			return nil, err
		}
		sigs = append(sigs, policy.Signature{Payload: payload, Base64Sig: sig, Annotations: l.Annotations})
	}
	return sigs, nil
}
