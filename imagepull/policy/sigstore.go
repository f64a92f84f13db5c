package policy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/sigstore/sigstore/pkg/signature/payload"

	"github.com/sealpod/sealpod/podvm"
)

// Caps on what a registry may make us look at, also for those who fetch or make
// signatures. A cosign payload is about 250 bytes plus the signer's own
// annotations, a signature at most 512, a bundle with a log entry 10 KiB.
const (
	MaxSignatures = 256       // entries of one signature manifest, of any kind
	MaxPayload    = 64 << 10  // bytes of one payload
	MaxBundles    = 64        // entries of one list of referrers, of any kind
	MaxBundle     = 256 << 10 // bytes of one bundle

	maxBase64Sig = 8 << 10
)

// refuseUnenforced returns an error for a constraint that this build does not
// know how to enforce, and says why: an owner who writes it down relies on it,
// so it is not ignored like other unknown fields.
// Source: containers/image docs/containers-policy.json.5.md, sigstoreSigned.
func refuseUnenforced(f fields) error {
	for _, name := range sortedKeys(f) {
		why := ""
		switch {
		case name == "fulcio":
			why = "keyless signatures with certificates of Fulcio are not verified here"
		case name == "pki":
			why = "signatures with certificates are not verified here"
		case strings.HasPrefix(name, "rekor"):
			why = "entries of a transparency log are not verified here"
		default:
			continue
		}
		return fmt.Errorf("%q is a constraint this build does not enforce: %s; use keyPath or keyData alone", podvm.Printable(name, 64), why)
	}
	return nil
}

// sigstoreSigned wants a signature by any one of its keys.
type sigstoreSigned struct {
	keys     []key[signatureVerifier]
	identity identity
}

func (*sigstoreSigned) kind() string { return typeSigstore }

func (p *Policy) parseSigstore(where string, f fields) (requirement, error) {
	if err := refuseUnenforced(f); err != nil {
		return nil, fmt.Errorf("sigstoreSigned: %w", err)
	}
	p.warnUnknown(where, f, "type", "keyPath", "keyPaths", "keyData", "keyDatas", "signedIdentity")
	req := &sigstoreSigned{}
	var err error
	if req.keys, err = parseKeys(f, parseInlinePEM); err != nil {
		return nil, fmt.Errorf("sigstoreSigned: %w", err)
	}
	if raw, ok := f["signedIdentity"]; ok {
		if req.identity, err = p.parseIdentity(where+".signedIdentity", raw); err != nil {
			return nil, fmt.Errorf("sigstoreSigned: signedIdentity: %w", err)
		}
		if req.identity.onCosign() != nil {
			p.warn("%s.signedIdentity: %s cannot be checked on a cosign signature, the rule rejects every image; use matchRepository or exactRepository", where, req.identity.kind)
		}
	}
	return req, nil
}

// usable is a key that could be had.
type usable[V any] struct {
	name string
	with V
}

func (r *sigstoreSigned) allows(ctx context.Context, img Image, src Sources, step *Step) error {
	if err := r.identity.onCosign(); err != nil {
		return err
	}
	digest, err := parseDigest(img.TopDigest)
	if err != nil {
		return err
	}
	why := &verdict{step: step}
	var keys []usable[signatureVerifier]
	for _, k := range r.keys {
		v, err := k.load(ctx, src, parsePEM)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			why.keyMissing(k.name, err)
			continue
		}
		keys = append(keys, usable[signatureVerifier]{k.name, v})
		if ok, err := r.tagged(ctx, keys[len(keys)-1], digest, img, src, step, why); ok || err != nil {
			return err
		}
	}
	if len(keys) == 0 {
		return why.denial("")
	}
	return r.bundled(ctx, keys, digest, img, src, step, why)
}

// tagged looks among the signatures of the `.sig` tag.
func (r *sigstoreSigned) tagged(ctx context.Context, k usable[signatureVerifier], digest v1.Hash, img Image, src Sources, step *Step, why *verdict) (bool, error) {
	sigs, err := src.Signatures(ctx)
	if err != nil {
		return false, because(err, "the signatures of %s could not be fetched", img.TopDigest)
	}
	if len(sigs) > MaxSignatures {
		return false, denied("%d signatures on %s, at most %d are looked at", len(sigs), img.TopDigest, MaxSignatures)
	}
	for i, sig := range sigs {
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
		at := fmt.Sprintf("signature %d of the .sig tag", i+1)
		if r.signed(ctx, k, at, sig, digest, img, why) {
			step.accept(at, k.name, "")
			return true, nil
		}
	}
	return false, nil
}

// signed reports whether this one signature satisfies everything: the key,
// the digest, the type and the identity. No part may come from another one.
func (r *sigstoreSigned) signed(ctx context.Context, k usable[signatureVerifier], at string, sig Signature, digest v1.Hash, img Image, why *verdict) bool {
	if len(sig.Payload) > MaxPayload || len(sig.Base64Sig) > maxBase64Sig {
		why.refuse(stageForm, at, k.name, nil, "a signature of %s is too large to look at", img.TopDigest)
		return false
	}
	switch err := k.with.verify(ctx, sig, digest); {
	case errors.Is(err, errClaim):
		why.refuse(stageClaim, at, k.name, err, "a signature by the right key is for another image, not for %s", img.TopDigest)
		return false
	case err != nil:
		why.refuse(stageSignature, at, k.name, err, "no signature of %s is by the key the rule asks for", img.TopDigest)
		return false
	}
	// The payload is the signer's word from here on. The type is the one the
	// digest was read with, so both readers see the same fields.
	var p payload.SimpleContainerImage
	if err := json.Unmarshal(sig.Payload, &p); err != nil {
		why.refuse(stageClaim, at, k.name, err, "a payload signed by the right key is malformed")
		return false
	}
	if p.Critical.Type != payload.CosignSignatureType {
		why.refuse(stageClaim, at, k.name, nil, "a payload signed by the right key has type %q, not %q",
			podvm.Printable(p.Critical.Type, 64), payload.CosignSignatureType)
		return false
	}
	if err := r.identity.check(img, p.Critical.Identity.DockerReference); err != nil {
		why.refuse(stageIdentity, at, k.name, err, "%s", podvm.Printable(err.Error(), 400))
		return false
	}
	return true
}

// parseDigest checks the form "algo:hex" of a manifest digest.
func parseDigest(s string) (v1.Hash, error) {
	algo, hex, _ := strings.Cut(s, ":")
	sizes := map[string]int{"sha256": 64, "sha384": 96, "sha512": 128}
	if len(hex) == 0 || len(hex) != sizes[algo] || strings.Trim(hex, "0123456789abcdef") != "" {
		return v1.Hash{}, fmt.Errorf("manifest digest %q is malformed", podvm.Printable(s, 160))
	}
	return v1.Hash{Algorithm: algo, Hex: hex}, nil
}
