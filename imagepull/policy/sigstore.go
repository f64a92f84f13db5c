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
// annotations, a signature at most 512.
const (
	MaxSignatures = 256      // entries of one signature manifest, of any kind
	MaxPayload    = 64 << 10 // bytes of one payload

	maxKeys      = 32
	maxBase64Sig = 8 << 10
)

// sigstoreSigned wants a signature by any one of its keys.
type sigstoreSigned struct {
	keys     []publicKey
	identity identity
}

func (*sigstoreSigned) kind() string { return typeSigstore }

func (p *Policy) parseSigstore(where string, f fields) (requirement, error) {
	for _, name := range sortedKeys(f) {
		if name == "fulcio" || name == "pki" || strings.HasPrefix(name, "rekorPublicKey") {
			return nil, fmt.Errorf("sigstoreSigned: %q is a constraint this build does not enforce; use keyPath or keyData alone", name)
		}
	}
	p.warnUnknown(where, f, "type", "keyPath", "keyPaths", "keyData", "keyDatas", "signedIdentity")
	req := &sigstoreSigned{}
	var err error
	if req.keys, err = parseKeys(f); err != nil {
		return nil, fmt.Errorf("sigstoreSigned: %w", err)
	}
	if raw, ok := f["signedIdentity"]; ok {
		if req.identity, err = p.parseIdentity(where+".signedIdentity", raw); err != nil {
			return nil, fmt.Errorf("sigstoreSigned: signedIdentity: %w", err)
		}
	}
	return req, nil
}

// parseKeys reads the one of keyPath, keyPaths, keyData, keyDatas present.
func parseKeys(f fields) ([]publicKey, error) {
	var uris, inline []string
	present := 0
	for field, dst := range map[string]*[]string{"keyPath": &uris, "keyData": &inline} {
		s, ok, err := f.text(field)
		if err != nil {
			return nil, err
		}
		if ok {
			present++
			*dst = []string{s}
		}
		l, ok, err := f.texts(field + "s")
		if err != nil {
			return nil, err
		}
		if ok {
			present++
			*dst = l
		}
	}
	if present != 1 {
		return nil, fmt.Errorf("want exactly one of keyPath, keyPaths, keyData, keyDatas, have %d", present)
	}
	if n := len(uris) + len(inline); n > maxKeys {
		return nil, fmt.Errorf("%w: %d keys", podvm.ErrTooLarge, n)
	}
	var keys []publicKey
	for _, u := range uris {
		if len(u) > 4096 {
			return nil, fmt.Errorf("key path: %w", podvm.ErrTooLarge)
		}
		keys = append(keys, publicKey{name: podvm.Printable(u, 200), uri: u})
	}
	for i, data := range inline {
		v, fingerprint, err := parseInlineKey(data)
		if err != nil {
			return nil, fmt.Errorf("inline key %d: %w", i, err)
		}
		keys = append(keys, publicKey{name: fmt.Sprintf("inline key %d (%s)", i, fingerprint), verifier: v})
	}
	return keys, nil
}

func (r *sigstoreSigned) allows(ctx context.Context, img Image, src Sources) (string, error) {
	if err := r.identity.usable(); err != nil {
		return "", err
	}
	digest, err := parseDigest(img.TopDigest)
	if err != nil {
		return "", err
	}
	why := &verdict{digest: img.TopDigest}
	for _, key := range r.keys {
		v, err := key.load(ctx, src)
		if err != nil {
			if ctx.Err() != nil {
				return "", ctx.Err()
			}
			why.add(stageKey, err, "the public key %s is not available", key.name)
			continue
		}
		sigs, err := src.Signatures(ctx)
		if err != nil {
			return "", because(err, "the signatures of %s could not be fetched", img.TopDigest)
		}
		if len(sigs) > MaxSignatures {
			return "", denied("%d signatures on %s, at most %d are looked at", len(sigs), img.TopDigest, MaxSignatures)
		}
		for _, sig := range sigs {
			if err := ctx.Err(); err != nil {
				return "", err
			}
			if r.signedBy(ctx, v, sig, digest, img, why) {
				return key.name, nil
			}
		}
	}
	return "", why.denial()
}

// signedBy reports whether this one signature satisfies everything: the key,
// the digest, the type and the identity. No part may come from another one.
func (r *sigstoreSigned) signedBy(ctx context.Context, v signatureVerifier, sig Signature, digest v1.Hash, img Image, why *verdict) bool {
	if len(sig.Payload) > MaxPayload || len(sig.Base64Sig) > maxBase64Sig {
		why.add(stageForm, nil, "a signature of %s is too large to look at", img.TopDigest)
		return false
	}
	switch err := v.verify(ctx, sig, digest); {
	case errors.Is(err, errClaim):
		why.add(stageClaim, err, "a signature by the right key is for another image, not for %s", img.TopDigest)
		return false
	case err != nil:
		why.add(stageSignature, err, "no signature of %s is by the key the rule asks for", img.TopDigest)
		return false
	}
	// The payload is the signer's word from here on. The type is the one the
	// digest was read with, so both readers see the same fields.
	var p payload.SimpleContainerImage
	if err := json.Unmarshal(sig.Payload, &p); err != nil {
		why.add(stageClaim, err, "a payload signed by the right key is malformed")
		return false
	}
	if p.Critical.Type != payload.CosignSignatureType {
		why.add(stageClaim, nil, "a payload signed by the right key has type %q, not %q",
			podvm.Printable(p.Critical.Type, 64), payload.CosignSignatureType)
		return false
	}
	if err := r.identity.check(img, p.Critical.Identity.DockerReference); err != nil {
		why.add(stageIdentity, err, "%s", podvm.Printable(err.Error(), 400))
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
