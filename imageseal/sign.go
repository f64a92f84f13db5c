package imageseal

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/sigstore/cosign/v2/pkg/oci/empty"
	"github.com/sigstore/cosign/v2/pkg/oci/static"
	"github.com/sigstore/sigstore/pkg/signature/payload"

	"github.com/sealpod/sealpod/imagepull/policy"
	"github.com/sealpod/sealpod/podvm"
)

// signatureType is the media type of a cosign payload.
// Source: cosign specs/SIGNATURE_SPEC.md at v2.6.5.
const signatureType = types.MediaType("application/vnd.dev.cosign.simplesigning.v1+json")

// ErrTooMany says that an image has as many signatures as guests look at.
var ErrTooMany = errors.New("too many signatures")

// SignOptions says what Sign does. Image and Signer are mandatory.
type SignOptions struct {
	// Image is a registry reference or "oci:DIR[:TAG]".
	Image  string
	Access Access
	Signer *Signer
	// Identity is the host/repository the signature vouches for; "" is the
	// image's own, so an OCI layout needs one. A policy with signedIdentity
	// compares it with the name a pod uses.
	Identity string
	// Annotations are put into the signed payload.
	Annotations map[string]string
}

// SignResult is what Sign made.
type SignResult struct {
	Digest    string `json:"digest"`    // what was signed: the image or index
	Tag       string `json:"tag"`       // where the signature is, "sha256-….sig"
	Identity  string `json:"identity"`  // host/repository in the payload
	Appended  bool   `json:"appended"`  // false: this very signature was there before
	PublicKey string `json:"publicKey"` // PEM
}

// Sign signs the digest that Image leads to now, whole index or image, and
// appends the signature to those in its `.sig` tag. The signature is checked
// with the guest's own rules before it is published.
//
// Errors: ErrReference, ErrNotFound, ErrTooMany.
func Sign(ctx context.Context, o SignOptions) (SignResult, error) {
	p, err := parsePlace(o.Image, o.Access)
	if err != nil {
		return SignResult{}, err
	}
	res, err := sign(ctx, p, o)
	if err != nil {
		return SignResult{}, fmt.Errorf("signing %s: %w", o.Image, err)
	}
	return res, nil
}

func sign(ctx context.Context, p place, o SignOptions) (SignResult, error) {
	e, err := p.open(ctx)
	if err != nil {
		return SignResult{}, err
	}
	digest, err := e.digest()
	if err != nil {
		return SignResult{}, fmt.Errorf("naming the image: %w", err)
	}
	body, identity, err := makePayload(p, digest, o)
	if err != nil {
		return SignResult{}, err
	}
	res := SignResult{Digest: digest.String(), Tag: signatureTag(digest), Identity: identity, PublicKey: string(o.Signer.publicPEM)}
	base, err := p.openTag(ctx, res.Tag)
	if err != nil {
		return SignResult{}, err
	}
	var have []policy.Signature
	if base == nil {
		base = empty.Signatures()
	} else if have, err = readSignatures(base); err != nil {
		return SignResult{}, err
	}
	for _, s := range have {
		if bytes.Equal(s.Payload, body) && verifyAs(ctx, o.Signer.publicPEM, digest, identity, s) == nil {
			return res, nil
		}
	}
	m, err := base.Manifest()
	if err != nil {
		return SignResult{}, fmt.Errorf("reading the signatures: %w", err)
	}
	if n := len(m.Layers); n >= policy.MaxSignatures {
		return SignResult{}, fmt.Errorf("%w: %s has %d entries, guests look at no more; remove old ones", ErrTooMany, res.Tag, n)
	}
	raw, err := o.Signer.key.SignMessage(bytes.NewReader(body))
	if err != nil {
		return SignResult{}, fmt.Errorf("making the signature: %w", err)
	}
	b64 := base64.StdEncoding.EncodeToString(raw)
	if err := verifyAs(ctx, o.Signer.publicPEM, digest, identity, policy.Signature{Payload: body, Base64Sig: b64}); err != nil {
		return SignResult{}, fmt.Errorf("checking the new signature: %w", err)
	}
	layer, err := static.NewSignature(body, b64, static.WithLayerMediaType(signatureType))
	if err != nil {
		return SignResult{}, fmt.Errorf("wrapping the signature: %w", err)
	}
	img, err := mutate.Append(base, mutate.Addendum{
		Layer: layer, MediaType: signatureType,
		Annotations: map[string]string{static.SignatureAnnotationKey: b64},
	})
	if err != nil {
		return SignResult{}, fmt.Errorf("appending the signature: %w", err)
	}
	if err := p.writeTag(ctx, res.Tag, img); err != nil {
		return SignResult{}, err
	}
	res.Appended = true
	return res, nil
}

// makePayload returns the simple-signing text for digest and the identity it
// claims.
func makePayload(p place, digest v1.Hash, o SignOptions) ([]byte, string, error) {
	repo := p.repository()
	if o.Identity != "" {
		r, err := name.NewRepository(o.Identity, name.WeakValidation)
		if err != nil {
			return nil, "", fmt.Errorf("%w: identity %q: %w", ErrReference, o.Identity, err)
		}
		repo = r.Name()
	}
	if repo == "" {
		return nil, "", fmt.Errorf("%w: an OCI layout has no name to sign for, give an identity", ErrReference)
	}
	r, err := name.NewRepository(repo)
	if err != nil {
		return nil, "", fmt.Errorf("%w: identity %q: %w", ErrReference, repo, err)
	}
	var optional map[string]any
	for k, v := range o.Annotations {
		if optional == nil {
			optional = map[string]any{}
		}
		optional[k] = v
	}
	body, err := json.Marshal(payload.Cosign{Image: r.Digest(digest.String()), Annotations: optional})
	if err != nil {
		return nil, "", fmt.Errorf("encoding the payload: %w", err)
	}
	if len(body) > policy.MaxPayload {
		return nil, "", fmt.Errorf("the payload with its annotations: %w: %d bytes", podvm.ErrTooLarge, len(body))
	}
	return body, repo, nil
}

// signatureTag is the tag that holds the signatures of digest.
func signatureTag(digest v1.Hash) string { return digest.Algorithm + "-" + digest.Hex + ".sig" }
