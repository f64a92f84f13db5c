package policy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/sealpod/sealpod/podvm"
)

// What a bundle of `cosign sign` holds. Any attestation by the same key looks
// alike but for the predicate type, which therefore is compared.
// Source: sigstore/cosign v3.1.3 cmd/cosign/cli/sign and pkg/types.
const (
	statementType = "application/vnd.in-toto+json"
	signPredicate = "https://sigstore.dev/cosign/sign/v1"
)

// bundle is the part of a Sigstore bundle that a decision by key needs: a DSSE
// envelope with one signature. Log entries, timestamps and certificates are
// dropped unread, so that no parser of theirs sees what a registry wrote.
// Source: sigstore/protobuf-specs sigstore_bundle.proto at v0.5.
type bundle struct {
	payload, signature []byte
}

var errBundle = errors.New("not a bundle with a signature by key")

func parseBundle(raw []byte) (bundle, error) {
	if len(raw) > MaxBundle {
		return bundle{}, fmt.Errorf("%w: %w: %d bytes", errBundle, podvm.ErrTooLarge, len(raw))
	}
	var doc struct {
		VerificationMaterial struct {
			PublicKey            json.RawMessage `json:"publicKey"`
			Certificate          json.RawMessage `json:"certificate"`
			X509CertificateChain json.RawMessage `json:"x509CertificateChain"`
		} `json:"verificationMaterial"`
		DSSEEnvelope *struct {
			Payload     []byte `json:"payload"`
			PayloadType string `json:"payloadType"`
			Signatures  []struct {
				Sig []byte `json:"sig"`
			} `json:"signatures"`
		} `json:"dsseEnvelope"`
	}
	if err := json.Unmarshal(raw, &doc); err != nil {
		return bundle{}, fmt.Errorf("%w: malformed JSON", errBundle)
	}
	env := doc.DSSEEnvelope
	switch {
	case doc.VerificationMaterial.PublicKey == nil || doc.VerificationMaterial.Certificate != nil || doc.VerificationMaterial.X509CertificateChain != nil:
		return bundle{}, fmt.Errorf("%w: made with a certificate (keyless)", errBundle)
	case env == nil:
		return bundle{}, fmt.Errorf("%w: no envelope", errBundle)
	case env.PayloadType != statementType:
		return bundle{}, fmt.Errorf("%w: payload type %q", errBundle, podvm.Printable(env.PayloadType, 64))
	case len(env.Signatures) != 1:
		return bundle{}, fmt.Errorf("%w: %d signatures, want one", errBundle, len(env.Signatures))
	case len(env.Payload) > MaxPayload || len(env.Signatures[0].Sig) > maxBase64Sig:
		return bundle{}, fmt.Errorf("%w: %w", errBundle, podvm.ErrTooLarge)
	}
	return bundle{payload: env.Payload, signature: env.Signatures[0].Sig}, nil
}

// bundled looks among the Sigstore bundles of the image, which is what cosign 3
// makes unless told otherwise.
func (r *sigstoreSigned) bundled(ctx context.Context, keys []usable[signatureVerifier], digest v1.Hash, img Image, src Sources, step *Step, why *verdict) error {
	docs, err := src.Bundles(ctx)
	if err != nil {
		return because(err, "the Sigstore bundles of %s could not be fetched", img.TopDigest)
	}
	if len(docs) > MaxBundles {
		return denied("%d Sigstore bundles on %s, at most %d are looked at", len(docs), img.TopDigest, MaxBundles)
	}
	for _, doc := range docs {
		at := podvm.Printable(doc.Origin, 200)
		b, err := parseBundle(doc.Raw)
		if err != nil {
			why.refuse(stageForm, at, "any key", err, "%s", podvm.Printable(err.Error(), 300))
			continue
		}
		for _, k := range keys {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if r.inBundle(ctx, k, at, b, digest, img, why) {
				step.accept(at, k.name, "")
				return nil
			}
		}
	}
	how := "cosign sign --key KEY IMAGE"
	if r.identity.kind != "" {
		how = classicCosign
	}
	return why.denial(fmt.Sprintf("no signature found for %s; make one with `sealctl image sign` or `%s`", img.TopDigest, how))
}

// classicCosign makes cosign 3 sign as version 2 does, name included.
const classicCosign = "cosign sign --new-bundle-format=false --use-signing-config=false --tlog-upload=false --key KEY IMAGE"

func (r *sigstoreSigned) inBundle(ctx context.Context, k usable[signatureVerifier], at string, b bundle, digest v1.Hash, img Image, why *verdict) bool {
	predicate, err := k.with.verifyBundle(ctx, b, digest)
	switch {
	case errors.Is(err, errClaim):
		why.refuse(stageClaim, at, k.name, err, "a bundle by the right key is for another image, not for %s", img.TopDigest)
	case err != nil:
		why.refuse(stageSignature, at, k.name, err, "no signature of %s is by the key the rule asks for", img.TopDigest)
	case predicate != signPredicate:
		why.refuse(stageClaim, at, k.name, nil, "a bundle by the right key is no signature but an attestation of type %q", podvm.Printable(predicate, 128))
	case r.identity.kind != "":
		why.refuse(stageIdentity, at, k.name, nil, "a Sigstore bundle names no repository, so signedIdentity cannot be checked on it; "+
			"sign with `sealctl image sign` or `%s`, or drop signedIdentity", classicCosign)
	default:
		return true
	}
	return false
}
