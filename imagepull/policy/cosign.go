package policy

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/hex"
	"errors"
	"fmt"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/sigstore/cosign/v2/pkg/cosign"
	"github.com/sigstore/cosign/v2/pkg/oci"
	"github.com/sigstore/cosign/v2/pkg/oci/static"
	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	protocommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	protodsse "github.com/sigstore/protobuf-specs/gen/pb-go/dsse"
	sgbundle "github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/verify"
	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/sigstore/sigstore/pkg/signature/options"
)

// signatureVerifier decides whether a signature over a payload is by one key
// and claims one image digest. It is all this package asks of cosign, so that
// moving to another major version of it changes this file alone.
type signatureVerifier interface {
	// verify returns nil, errClaim when only the digest claimed is another
	// one, or any other error when the signature is not by the key.
	verify(ctx context.Context, sig Signature, digest v1.Hash) error
	// verifyBundle does the same for a bundle whose statement must have
	// digest among its subjects, and returns the statement's predicate type.
	verifyBundle(ctx context.Context, b bundle, digest v1.Hash) (predicate string, err error)
}

// errClaim says that a payload is authentic but claims another image.
var errClaim = errors.New("the payload claims another digest")

// minRSA is the least length of an RSA modulus in bits (NIST SP 800-57 part 1).
const minRSA = 2048

// newVerifier returns the verifier for a public key: P-256, P-384, RSA (PKCS #1
// v1.5, 2048 bits or more) or Ed25519. P-384 signatures are accepted over SHA-384, which upstream
// reads and cosign 2.6 makes, and over SHA-256, which older releases made;
// Ed25519 in its plain form and in the pre-hashed one that cosign 2.6 makes.
// Source: guest-components image-rs/src/signature/policy/cosign at 8246e5e;
// cosign pkg/cosign/keys.go GetDefaultLoadOptions at v2.6.5.
func newVerifier(pub crypto.PublicKey) (signatureVerifier, error) {
	forms := []signature.LoadOption{options.WithHash(crypto.SHA256)}
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256():
		case elliptic.P384():
			forms = append(forms, options.WithHash(crypto.SHA384))
		default:
			return nil, fmt.Errorf("unsupported curve %s", k.Curve.Params().Name)
		}
	case *rsa.PublicKey:
		if k.N.BitLen() < minRSA {
			return nil, fmt.Errorf("an RSA key of %d bits is too weak, want %d", k.N.BitLen(), minRSA)
		}
	case ed25519.PublicKey:
		forms = append(forms, options.WithED25519ph())
	default:
		return nil, fmt.Errorf("unsupported key type %T", pub)
	}
	var out cosignVerifier
	for _, form := range forms {
		v, err := signature.LoadVerifierWithOpts(pub, form)
		if err != nil {
			return nil, fmt.Errorf("loading the key: %w", err)
		}
		out = append(out, v)
	}
	return out, nil
}

// cosignVerifier is one key in each form it may have been used in.
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

func (vs cosignVerifier) verifyBundle(ctx context.Context, b bundle, digest v1.Hash) (string, error) {
	subject, err := hex.DecodeString(digest.Hex)
	if err != nil {
		return "", fmt.Errorf("reading the digest: %w", err)
	}
	entity, err := sgbundle.NewBundle(&protobundle.Bundle{
		MediaType: "application/vnd.dev.sigstore.bundle.v0.3+json",
		VerificationMaterial: &protobundle.VerificationMaterial{
			Content: &protobundle.VerificationMaterial_PublicKey{PublicKey: &protocommon.PublicKeyIdentifier{}},
		},
		Content: &protobundle.Bundle_DsseEnvelope{DsseEnvelope: &protodsse.Envelope{
			Payload: b.payload, PayloadType: statementType,
			Signatures: []*protodsse.Signature{{Sig: b.signature}},
		}},
	})
	if err != nil {
		return "", fmt.Errorf("wrapping the bundle: %w", err)
	}
	var errs []error
	for _, v := range vs {
		opts := &cosign.CheckOpts{
			SigVerifier: v, IgnoreTlog: true, IgnoreSCT: true, Offline: true,
			NewBundleFormat: true, TrustedMaterial: &root.BaseTrustedMaterial{},
		}
		res, err := cosign.VerifyNewBundle(ctx, opts, verify.WithArtifactDigest(digest.Algorithm, subject), entity)
		if err == nil {
			return res.Statement.GetPredicateType(), nil
		}
		errs = append(errs, err)
		// The library does not say which of the two was wrong.
		if _, err := cosign.VerifyNewBundle(ctx, opts, verify.WithoutArtifactUnsafe(), entity); err == nil {
			return "", fmt.Errorf("%w: %w", errClaim, errors.Join(errs...))
		}
	}
	return "", errors.Join(errs...)
}

// claim marks the verdict of cosign's own check of the digest in the payload.
func claim(sig oci.Signature, digest v1.Hash, annotations map[string]any) error {
	if err := cosign.SimpleClaimVerifier(sig, digest, annotations); err != nil {
		return fmt.Errorf("%w: %w", errClaim, err)
	}
	return nil
}
