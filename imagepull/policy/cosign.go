package policy

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"errors"
	"fmt"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/sigstore/cosign/v2/pkg/cosign"
	"github.com/sigstore/cosign/v2/pkg/oci"
	"github.com/sigstore/cosign/v2/pkg/oci/static"
	"github.com/sigstore/sigstore/pkg/signature"
)

// signatureVerifier decides whether a signature over a payload is by one key
// and claims one image digest. It is all this package asks of cosign, so that
// moving to another major version of it changes this file alone.
type signatureVerifier interface {
	// verify returns nil, errClaim when only the digest claimed is another
	// one, or any other error when the signature is not by the key.
	verify(ctx context.Context, sig Signature, digest v1.Hash) error
}

// errClaim says that a payload is authentic but claims another image.
var errClaim = errors.New("the payload claims another digest")

// newVerifier returns the verifier for a public key: P-256, P-384, RSA (PKCS #1
// v1.5) or Ed25519. P-384 signatures are accepted over SHA-384, which upstream
// uses, and over SHA-256, which the cosign command makes.
// Source: guest-components image-rs/src/signature/policy/cosign at 8246e5e.
func newVerifier(pub crypto.PublicKey) (signatureVerifier, error) {
	hashes := []crypto.Hash{crypto.SHA256}
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256():
		case elliptic.P384():
			hashes = []crypto.Hash{crypto.SHA384, crypto.SHA256}
		default:
			return nil, fmt.Errorf("unsupported curve %s", k.Curve.Params().Name)
		}
	case *rsa.PublicKey, ed25519.PublicKey:
	default:
		return nil, fmt.Errorf("unsupported key type %T", pub)
	}
	var out cosignVerifier
	for _, h := range hashes {
		v, err := signature.LoadVerifier(pub, h)
		if err != nil {
			return nil, fmt.Errorf("loading the key for %v: %w", h, err)
		}
		out = append(out, v)
	}
	return out, nil
}

// cosignVerifier is one key under each hash it may have been used with.
type cosignVerifier []signature.Verifier

func (vs cosignVerifier) verify(ctx context.Context, sig Signature, digest v1.Hash) error {
	// No annotation goes in but the signature: the log bundle and certificate
	// parsers of the library never see what the registry wrote. A bundle can
	// crash the process when the log is checked (cosign v2.6.5).
	s, err := static.NewSignature(sig.Payload, sig.Base64Sig)
	if err != nil {
		return fmt.Errorf("reading the signature: %w", err)
	}
	var errs []error
	for _, v := range vs {
		_, err := cosign.VerifyImageSignature(ctx, s, digest, &cosign.CheckOpts{
			SigVerifier:   v,
			ClaimVerifier: claim,
			IgnoreTlog:    true,
			IgnoreSCT:     true,
			Offline:       true,
		})
		if err == nil || errors.Is(err, errClaim) {
			return err
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// claim marks the verdict of cosign's own check of the digest in the payload.
func claim(sig oci.Signature, digest v1.Hash, annotations map[string]any) error {
	if err := cosign.SimpleClaimVerifier(sig, digest, annotations); err != nil {
		return fmt.Errorf("%w: %w", errClaim, err)
	}
	return nil
}
