package policy

import (
	"crypto"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/sigstore/sigstore/pkg/signature/options"

	"github.com/sealpod/sealpod/podvm"
)

// TestAttacks holds what a registry, or whoever writes to it, may try. Each
// attack is refused, and the same image with the good signature beside the
// hostile one is not.
func TestAttacks(t *testing.T) {
	key, thief := newKey(t, "P-256"), newKey(t, "P-256")
	sha256 := options.WithHash(crypto.SHA256)
	good := key.claim("quay.io/acme/app", digestA)
	signed := func(body string) Signature { return key.sign([]byte(body), sha256) }
	tests := map[string]struct {
		sigs []Signature
		want string
	}{
		"a signature copied from another repository": {[]Signature{key.claim("quay.io/acme/other", digestA)}, "signed for quay.io/acme/other, not for quay.io/acme/app"},
		"a signature from another registry":          {[]Signature{key.claim("evil.io/acme/app", digestA)}, "signed for evil.io/acme/app"},
		"a signature for another digest":             {[]Signature{key.claim("quay.io/acme/app", digestB)}, "is for another image"},
		"a signature by another key":                 {[]Signature{thief.claim("quay.io/acme/app", digestA)}, "no signature of " + digestA + " is by the key"},
		"a payload changed after signing":            {[]Signature{{Payload: payloadFor("quay.io/acme/app", digestA, cosignType), Base64Sig: key.claim("quay.io/acme/app", digestB).Base64Sig}}, "no signature of"},
		// The digest is right in one signature and the name in another: neither
		// is enough, and together they are not either.
		"digest and name from two signatures": {[]Signature{key.claim("quay.io/acme/other", digestA), key.claim("quay.io/acme/app", digestB)}, "signed for quay.io/acme/other"},
		"key and name from two signatures":    {[]Signature{thief.claim("quay.io/acme/app", digestA), key.claim("quay.io/acme/app", digestB)}, "is for another image"},
		"a payload of another type":           {[]Signature{key.sign(payloadFor("quay.io/acme/app", digestA, "atomic container signature"), sha256)}, `has type "atomic container signature"`},
		"a payload without a type":            {[]Signature{key.sign(payloadFor("quay.io/acme/app", digestA, ""), sha256)}, `has type ""`},
		"a signed text that is not JSON":      {[]Signature{signed("hello")}, "is for another image"},
		"a signed list":                       {[]Signature{signed("[]")}, "is for another image"},
		"a signed null":                       {[]Signature{signed("null")}, "is for another image"},
		"an empty payload":                    {[]Signature{signed("")}, "is for another image"},
		"a payload without a name":            {[]Signature{key.sign(payloadFor("", digestA, cosignType), sha256)}, "malformed"},
		"a name that is no name":              {[]Signature{key.sign(payloadFor("quay.io/acme/app\x00\n", digestA, cosignType), sha256)}, "malformed"},
		"a huge payload":                      {[]Signature{key.sign(append(payloadFor("quay.io/acme/app", digestA, cosignType), strings.Repeat(" ", MaxPayload)...), sha256)}, "too large to look at"},
		"a huge signature":                    {[]Signature{{Payload: good.Payload, Base64Sig: strings.Repeat("A", maxBase64Sig+1)}}, "too large to look at"},
		"a signature not in base64":           {[]Signature{{Payload: good.Payload, Base64Sig: "!!"}}, "no signature of"},
		"an empty signature":                  {[]Signature{{Payload: good.Payload}}, "no signature of"},
		"a digest in another case":            {[]Signature{key.claim("quay.io/acme/app", strings.ToUpper(digestA))}, "is for another image"},
		"a digest of another length":          {[]Signature{key.claim("quay.io/acme/app", digestA+"00")}, "is for another image"},
	}
	p := parsed(t, sigstore(`"keyData":`+j(key.pub)+`,"signedIdentity":{"type":"matchRepository"}`))
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			d, err := p.Check(t.Context(), testImage, given(tt.sigs...))
			if !errors.Is(err, ErrRejected) || d.Allowed {
				t.Fatalf("Check = %+v, %v", d, err)
			}
			if cause := podvm.Cause(err); !strings.Contains(cause, tt.want) || strings.ContainsAny(cause, "\x00\n") {
				t.Errorf("cause = %q, want %q", cause, tt.want)
			}
			if d, err := p.Check(t.Context(), testImage, given(append(tt.sigs, good)...)); err != nil || !d.Allowed {
				t.Errorf("with a good one beside it: %+v, %v", d, err)
			}
		})
	}
}

// The tag was moved to another image after it was signed. The decision is
// about the bytes parsed, so the signature of the old image does not help.
func TestAttackTagMoved(t *testing.T) {
	key := newKey(t, "P-256")
	moved := testImage
	moved.TopDigest = digestB
	_, err := parsed(t, sigstore(`"keyData":`+j(key.pub))).Check(t.Context(), moved, given(key.claim("quay.io/acme/app", digestA)))
	if !errors.Is(err, ErrRejected) {
		t.Errorf("Check = %v", err)
	}
}

// A signature of one platform's manifest says nothing of the index.
func TestAttackPlatformSignatureForIndex(t *testing.T) {
	key := newKey(t, "P-256")
	_, err := parsed(t, sigstore(`"keyData":`+j(key.pub))).Check(t.Context(), testImage, given(key.claim("quay.io/acme/app", testImage.PlatformDigest)))
	if !errors.Is(err, ErrRejected) {
		t.Errorf("Check = %v", err)
	}
}

// A transparency-log bundle whose body is a number ends the process when
// cosign v2.6.5 checks the log. Nothing of it may be looked at.
func TestAttackBundleAnnotation(t *testing.T) {
	key := newKey(t, "P-256")
	sig := key.claim("quay.io/acme/app", digestA)
	sig.Annotations = map[string]string{
		"dev.sigstore.cosign/bundle":           `{"SignedEntryTimestamp":"AA==","Payload":{"body":7,"integratedTime":1,"logIndex":1,"logID":"00"}}`,
		"dev.sigstore.cosign/certificate":      "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----",
		"dev.sigstore.cosign/chain":            strings.Repeat("x", 1<<16),
		"dev.sigstore.cosign/rfc3161timestamp": "{",
		"dev.cosignproject.cosign/signature":   "something else",
	}
	d, err := parsed(t, sigstore(`"keyData":`+j(key.pub))).Check(t.Context(), testImage, given(sig))
	if err != nil || !d.Allowed {
		t.Errorf("Check = %+v, %v", d, err)
	}
}

func TestAttackFloodOfSignatures(t *testing.T) {
	key, thief := newKey(t, "P-256"), newKey(t, "P-256")
	p := parsed(t, sigstore(`"keyData":`+j(key.pub)))
	foreign := thief.claim("quay.io/acme/app", digestA)
	var flood []Signature
	for range MaxSignatures - 1 {
		flood = append(flood, foreign)
	}
	flood = append(flood, key.claim("quay.io/acme/app", digestA))
	if d, err := p.Check(t.Context(), testImage, given(flood...)); err != nil || !d.Allowed {
		t.Errorf("the last of %d: %+v, %v", MaxSignatures, d, err)
	}
	_, err := p.Check(t.Context(), testImage, given(append(flood, foreign)...))
	if !errors.Is(err, ErrRejected) || !strings.Contains(podvm.Cause(err), "257 signatures") {
		t.Errorf("one more: %v", err)
	}
}

// A key of one kind never accepts what a key of another kind signed.
func TestAttackKeyMixUp(t *testing.T) {
	kinds := []string{"P-256", "P-384", "RSA", "Ed25519"}
	for _, signer := range kinds {
		sig := newKey(t, signer).claim("quay.io/acme/app", digestA)
		for _, wanted := range kinds {
			p := parsed(t, sigstore(`"keyData":`+j(newKey(t, wanted).pub)))
			if _, err := p.Check(t.Context(), testImage, given(sig)); !errors.Is(err, ErrRejected) {
				t.Errorf("signed with %s, checked with another %s: %v", signer, wanted, err)
			}
		}
	}
}

// An image whose digest is not in canonical form is never matched.
func TestAttackMalformedDigest(t *testing.T) {
	key := newKey(t, "P-256")
	p := parsed(t, sigstore(`"keyData":`+j(key.pub)))
	for _, digest := range []string{"", "sha256:", "sha256:abc", "sha1:" + strings.Repeat("a", 40), "sha256:" + strings.Repeat("A", 64), digestA + "\n", strings.Repeat("a", 64)} {
		img := testImage
		img.TopDigest = digest
		if _, err := p.Check(t.Context(), img, given(key.claim("quay.io/acme/app", digest))); !errors.Is(err, ErrRejected) {
			t.Errorf("%q: %v", digest, err)
		}
	}
	for _, algo := range []string{"sha384", "sha512"} {
		img := testImage
		img.TopDigest = algo + ":" + strings.Repeat("a", map[string]int{"sha384": 96, "sha512": 128}[algo])
		if _, err := p.Check(t.Context(), img, given(key.claim("quay.io/acme/app", img.TopDigest))); err != nil {
			t.Errorf("%s: %v", algo, err)
		}
	}
}

// FuzzPayload signs whatever it is given with the right key: nothing but a
// payload for this digest, type and repository may pass.
func FuzzPayload(f *testing.F) {
	key := newKey(f, "Ed25519")
	p := parsed(f, sigstore(`"keyData":`+j(key.pub)+`,"signedIdentity":{"type":"matchRepository"}`))
	f.Add(payloadFor("quay.io/acme/app", digestA, cosignType))
	f.Add(payloadFor("quay.io/acme/app", digestA, "x"))
	f.Add([]byte(`{"critical":{"image":{"Docker-manifest-Digest":"` + digestA + `"},"TYPE":"` + cosignType + `"}}`))
	f.Add([]byte(fmt.Sprintf(`{"critical":{"identity":{"docker-reference":"quay.io/acme/app"},"image":{"docker-manifest-digest":"%s"}},"critical":{"type":"%s"}}`, digestA, cosignType)))
	f.Fuzz(func(t *testing.T, body []byte) {
		key := testKey{t: t, private: key.private}
		d, err := p.Check(t.Context(), testImage, given(key.sign(body)))
		if err != nil && !errors.Is(err, ErrRejected) {
			t.Fatal(err)
		}
		text := string(body)
		if d.Allowed && (!strings.Contains(text, strings.Repeat("a", 64)) || !strings.Contains(text, "acme") || !strings.Contains(text, "container image signature")) && !strings.Contains(text, `\u`) {
			t.Fatalf("accepted %q", text)
		}
	})
}
