package policy

import (
	"context"
	"errors"
	"fmt"
	"time"

	pgperrors "github.com/ProtonMail/go-crypto/openpgp/errors"

	"github.com/sealpod/sealpod/podvm"
)

// MaxLookaside caps the simple-signing messages looked at per manifest digest.
// Source: containers/image docker/lookaside.go, which has the same limit.
const MaxLookaside = 128

// gpgKeys is the one keyType there is.
const gpgKeys = "GPGKeys"

// signedBy wants a simple-signing message by a key of any of its key rings.
// Source: containers/image docs/containers-signature.5.md.
type signedBy struct {
	rings    []key[keyRing]
	identity identity
}

func (*signedBy) kind() string { return typeGPG }

func (p *Policy) parseSignedBy(where string, f fields) (requirement, error) {
	if err := refuseUnenforced(f); err != nil {
		return nil, fmt.Errorf("signedBy: %w", err)
	}
	keyType, err := f.need("keyType")
	if err != nil {
		return nil, fmt.Errorf("signedBy: %w", err)
	}
	if keyType != gpgKeys {
		return nil, fmt.Errorf("signedBy: keyType %q is not available, want %s", podvm.Printable(keyType, 64), gpgKeys)
	}
	p.warnUnknown(where, f, "type", "keyType", "keyPath", "keyPaths", "keyData", "keyDatas", "signedIdentity")
	req := &signedBy{identity: identity{kind: idMatchRepoDigestOrExact}}
	if req.rings, err = parseKeys(f, parseInlineRing); err != nil {
		return nil, fmt.Errorf("signedBy: %w", err)
	}
	if raw, ok := f["signedIdentity"]; ok {
		if req.identity, err = p.parseIdentity(where+".signedIdentity", raw); err != nil {
			return nil, fmt.Errorf("signedBy: signedIdentity: %w", err)
		}
	}
	return req, nil
}

func (r *signedBy) allows(ctx context.Context, img Image, src Sources, step *Step) error {
	for _, d := range []string{img.TopDigest, img.PlatformDigest} {
		if _, err := parseDigest(d); err != nil {
			return err
		}
	}
	why := &verdict{step: step}
	loaded := 0
	for _, k := range r.rings {
		ring, err := k.load(ctx, src, parseKeyRing)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			why.keyMissing(k.name, err)
			continue
		}
		loaded++
		if ok, err := r.found(ctx, usable[keyRing]{k.name, ring}, img, src, step, why); ok || err != nil {
			return err
		}
	}
	if loaded == 0 {
		return why.denial("")
	}
	return why.denial(fmt.Sprintf("no simple-signing signature found for %s; make one with `skopeo copy --sign-by KEY` and publish it where sigstore_config points", img.PlatformDigest))
}

// found looks among the messages of the lookaside store.
func (r *signedBy) found(ctx context.Context, ring usable[keyRing], img Image, src Sources, step *Step, why *verdict) (bool, error) {
	docs, err := src.Lookaside(ctx)
	if err != nil {
		return false, because(err, "the signatures of %s could not be fetched", img.PlatformDigest)
	}
	if len(docs) > 2*MaxLookaside {
		return false, denied("%d signatures of %s, at most %d are looked at", len(docs), img.PlatformDigest, 2*MaxLookaside)
	}
	for _, doc := range docs {
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
		at := podvm.Printable(doc.Origin, 200)
		msg, err := parsePGP(doc.Raw)
		if err != nil {
			why.refuse(stageForm, at, ring.name, err, "%s", podvm.Printable(err.Error(), 300))
			continue
		}
		if r.signed(ring, at, msg, img, step, why) {
			return true, nil
		}
	}
	return false, nil
}

// signed reports whether this one message satisfies everything: the key, the
// form, the identity and the digest.
func (r *signedBy) signed(ring usable[keyRing], at string, msg pgpMessage, img Image, step *Step, why *verdict) bool {
	key, warning, err := msg.verify(ring.with, time.Now())
	switch {
	case errors.Is(err, errRevoked), errors.Is(err, errExpired), errors.Is(err, errWeak):
		why.refuse(stageClaim, at, ring.name, err, "a signature cannot be relied on: %v", err)
		return false
	case errors.Is(err, pgperrors.ErrUnknownIssuer):
		why.refuse(stageSignature, at, ring.name, err, "no signature of %s is by a key the rule asks for", img.PlatformDigest)
		return false
	case err != nil:
		why.refuse(stageSignature, at, ring.name, err, "a signature of %s that names a key of the rule is not valid", img.PlatformDigest)
		return false
	}
	by := fmt.Sprintf("%s (%s)", ring.name, key)
	claim, err := parseClaim(msg.body)
	if err != nil {
		why.refuse(stageClaim, at, by, err, "a payload signed by the right key is malformed: %s", podvm.Printable(err.Error(), 300))
		return false
	}
	if claim.digest != img.PlatformDigest && claim.digest != img.TopDigest {
		why.refuse(stageClaim, at, by, nil, "a signature by the right key is for another image, not for %s", img.PlatformDigest)
		return false
	}
	if err := r.identity.check(img, claim.reference); err != nil {
		why.refuse(stageIdentity, at, by, err, "%s", podvm.Printable(err.Error(), 400))
		return false
	}
	step.accept(at, by, warning)
	return true
}
