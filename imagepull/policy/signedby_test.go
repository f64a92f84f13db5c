package policy

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rsa"
	"encoding/base64"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/packet"

	"github.com/sealpod/sealpod/podvm"
)

func TestSignedBy(t *testing.T) {
	key := newPGP(t, time.Now().Add(-time.Hour), 0)
	good := key.vouch("quay.io/acme/app:1", testImage.PlatformDigest)
	for name, tt := range map[string]struct {
		extra string
		doc   Document
		want  string // "" when allowed
	}{
		"signed":                    {"", good, ""},
		"signed, compressed":        {"", Document{Raw: compressed(t, good.Raw)}, ""},
		"the index is signed":       {"", key.vouch("quay.io/acme/app:1", testImage.TopDigest), ""},
		"another tag":               {"", key.vouch("quay.io/acme/app:2", testImage.PlatformDigest), "signed for quay.io/acme/app:2, not for quay.io/acme/app:1"},
		"another tag, any will do":  {`,"signedIdentity":{"type":"matchRepository"}`, key.vouch("quay.io/acme/app:2", testImage.PlatformDigest), ""},
		"another repository":        {`,"signedIdentity":{"type":"matchRepository"}`, key.vouch("quay.io/acme/other:1", testImage.PlatformDigest), "signed for quay.io/acme/other, not for quay.io/acme/app"},
		"an optional part":          {"", key.sign([]byte(`{"critical":{"identity":{"docker-reference":"quay.io/acme/app:1"},"image":{"docker-manifest-digest":"`+testImage.PlatformDigest+`"},"type":"`+simpleType+`"},"optional":{"creator":"x","timestamp":1}}`), time.Now()), ""},
		"nothing signed":            {"", Document{}, "not a signed OpenPGP message"},
		"another key":               {"", newPGP(t, time.Now().Add(-time.Hour), 0).vouch("quay.io/acme/app:1", testImage.PlatformDigest), "is by a key the rule asks for"},
		"another image":             {"", key.vouch("quay.io/acme/app:1", "sha256:"+strings.Repeat("c", 64)), "is for another image"},
		"a payload of cosign":       {"", key.sign(payloadFor("quay.io/acme/app:1", testImage.PlatformDigest, cosignType), time.Now()), `type "cosign container image signature", not "atomic container signature"`},
		"a signed text":             {"", key.sign([]byte("hello"), time.Now()), "malformed"},
		"more that is critical":     {"", key.sign([]byte(`{"critical":{"identity":{"docker-reference":"quay.io/acme/app:1"},"image":{"docker-manifest-digest":"`+testImage.PlatformDigest+`"},"type":"`+simpleType+`","arch":"x"},"optional":{}}`), time.Now()), `unknown field "arch"`},
		"critical twice":            {"", key.sign([]byte(`{"critical":{},"critical":{}}`), time.Now()), `"critical" appears twice`},
		"a field in another case":   {"", key.sign([]byte(`{"critical":{"identity":{"docker-reference":"quay.io/acme/app:1"},"image":{"Docker-Manifest-Digest":"`+testImage.PlatformDigest+`"},"type":"`+simpleType+`"}}`), time.Now()), `unknown field "Docker-Manifest-Digest"`},
		"a digest that is none":     {"", key.vouch("quay.io/acme/app:1", "sha256:abc"), "malformed"},
		"signed before the key was": {"", Document{Raw: key.handMade(payloadFor("quay.io/acme/app:1", testImage.PlatformDigest, simpleType), packet.SigTypeBinary, crypto.SHA256, time.Now().Add(-2*time.Hour))}, "the key was not valid when the signature was made"},
		"a signature with a term":   {"", key.sign(payloadFor("quay.io/acme/app:1", testImage.PlatformDigest, simpleType), time.Now().Add(-time.Minute), func(c *packet.Config) { c.SigLifetimeSecs = 10 }), "made for a limited time"},
		"a term that has not ended": {"", key.sign(payloadFor("quay.io/acme/app:1", testImage.PlatformDigest, simpleType), time.Now().Add(-time.Minute), func(c *packet.Config) { c.SigLifetimeSecs = 10000 }), ""},
	} {
		t.Run(name, func(t *testing.T) {
			d, err := key.policy(t, tt.extra).Check(t.Context(), testImage, lookaside(tt.doc))
			if d.Allowed != (tt.want == "") || errors.Is(err, ErrRejected) == d.Allowed || !strings.Contains(podvm.Cause(err), tt.want) {
				t.Errorf("Check = %+v, %v", d, err)
			}
			if strings.Contains(tt.extra, "Identity") {
				return
			}
			if d, err := key.policy(t, tt.extra).Check(t.Context(), testImage, lookaside(tt.doc, good)); err != nil || !d.Allowed {
				t.Errorf("with a good one beside it: %+v, %v", d, err)
			}
		})
	}
}

// The default identity wants the very tag, or the digest that was asked for.
func TestSignedByImageAskedForByDigest(t *testing.T) {
	key := newPGP(t, time.Now().Add(-time.Hour), 0)
	img := testImage
	img.Tag, img.Digest = "", img.TopDigest
	if d, err := key.policy(t, "").Check(t.Context(), img, lookaside(key.vouch("quay.io/acme/app:7", img.TopDigest))); err != nil {
		t.Errorf("Check = %+v, %v", d, err)
	}
}

func TestSignedByKeyOverTime(t *testing.T) {
	now := time.Now()
	payload := payloadFor("quay.io/acme/app:1", testImage.PlatformDigest, simpleType)
	expired := newPGP(t, now.Add(-48*time.Hour), 24*time.Hour)
	d, err := expired.policy(t, "").Check(t.Context(), testImage, lookaside(expired.sign(payload, now.Add(-47*time.Hour))))
	if err != nil || len(d.Warnings) != 1 || !strings.Contains(d.Warnings[0], "has expired") {
		t.Errorf("expired since: %+v, %v", d, err)
	}
	_, err = expired.policy(t, "").Check(t.Context(), testImage, lookaside(Document{Raw: expired.handMade(payload, packet.SigTypeBinary, crypto.SHA256, now.Add(-time.Hour))}))
	if !errors.Is(err, ErrRejected) || !strings.Contains(podvm.Cause(err), "the key was not valid when the signature was made") {
		t.Errorf("expired before: %v", err)
	}
	for _, why := range []packet.ReasonForRevocation{packet.KeySuperseded, packet.KeyCompromised, packet.KeyRetired, packet.NoReason} {
		revoked := newPGP(t, now.Add(-48*time.Hour), 0)
		doc := revoked.sign(payload, now.Add(-47*time.Hour))
		late := *revoked.conf
		late.Time = func() time.Time { return now.Add(-time.Hour) }
		if err := revoked.RevokeKey(why, "", &late); err != nil {
			t.Fatal(err)
		}
		_, err = revoked.policy(t, "").Check(t.Context(), testImage, lookaside(doc))
		if !errors.Is(err, ErrRejected) || !strings.Contains(podvm.Cause(err), "the signing key is revoked") {
			t.Errorf("revoked for reason %d: %v", why, err)
		}
	}
}

func TestSignedBySubkey(t *testing.T) {
	now := time.Now()
	payload := payloadFor("quay.io/acme/app:1", testImage.PlatformDigest, simpleType)
	key := newPGP(t, now.Add(-48*time.Hour), 0)
	if err := key.AddSigningSubkey(key.conf); err != nil {
		t.Fatal(err)
	}
	doc := key.sign(payload, now.Add(-47*time.Hour))
	d, err := key.policy(t, "").Check(t.Context(), testImage, lookaside(doc))
	if err != nil || strings.HasSuffix(d.Key, "("+fingerprint(key.PrimaryKey)+")") {
		t.Errorf("Check = %+v, %v", d, err)
	}
	late := *key.conf
	late.Time = func() time.Time { return now.Add(-time.Hour) }
	for i := range key.Subkeys {
		if key.Subkeys[i].Sig.FlagSign {
			if err := key.RevokeSubkey(&key.Subkeys[i], packet.KeySuperseded, "", &late); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := key.policy(t, "").Check(t.Context(), testImage, lookaside(doc)); !errors.Is(err, ErrRejected) || !strings.Contains(podvm.Cause(err), "revoked") {
		t.Errorf("revoked: %v", err)
	}
}

// TestAttackMessageForms: whatever is not one one-pass signature, one literal
// and that one signature is refused before a key is looked at.
func TestAttackMessageForms(t *testing.T) {
	key, thief := newPGP(t, time.Now().Add(-time.Hour), 0), newPGP(t, time.Now().Add(-time.Hour), 0)
	good := key.vouch("quay.io/acme/app:1", testImage.PlatformDigest)
	other := key.vouch("quay.io/acme/app:1", "sha256:"+strings.Repeat("c", 64))
	p, q, s := packets(t, good.Raw), packets(t, other.Raw), packets(t, thief.vouch("quay.io/acme/app:1", testImage.PlatformDigest).Raw)
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	var encrypted bytes.Buffer
	w, err := openpgp.Encrypt(&encrypted, []*openpgp.Entity{key.Entity}, key.Entity, nil, key.conf)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = w.Write(payloadFor("quay.io/acme/app:1", testImage.PlatformDigest, simpleType))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(good.Raw)
	flipped[len(flipped)-5] ^= 1
	for name, tt := range map[string]struct {
		raw  []byte
		want string
	}{
		"the literal of another message":    {join(p[0], q[1], p[2]), "is not valid"},
		"the signature of another message":  {join(p[0], p[1], q[2]), "is not valid"},
		"the signature of another key":      {join(p[0], p[1], s[2]), "not the one announced"},
		"announced by another key":          {join(s[0], p[1], p[2]), "not the one announced"},
		"two literals":                      {join(p[0], p[1], q[1], p[2]), "want one one-pass"},
		"a literal first":                   {join(q[1], p[0], p[1], p[2]), "want one one-pass"},
		"a literal behind":                  {join(p[0], p[1], p[2], q[1]), "want one one-pass"},
		"a literal alone":                   {p[1], "want one one-pass"},
		"no signature":                      {join(p[0], p[1]), "want one one-pass"},
		"signature in front":                {join(p[2], p[1]), "want one one-pass"},
		"two signatures":                    {join(p[0], s[0], p[1], s[2], p[2]), "want one one-pass"},
		"a message behind":                  {join(good.Raw, other.Raw), "want one one-pass"},
		"compressed twice":                  {compressed(t, compressed(t, good.Raw)), "want one one-pass"},
		"half of it compressed":             {join(compressed(t, join(p[0], p[1])), p[2]), "want one one-pass"},
		"a compression bomb":                {compressed(t, make([]byte, 8<<20)), "too large"},
		"huge":                              {make([]byte, MaxPayload+1), "too large"},
		"cut":                               {good.Raw[:len(good.Raw)-7], "malformed"},
		"one bit flipped in the signature":  {flipped, "is not valid"},
		"encrypted":                         {encrypted.Bytes(), "not a signed OpenPGP message"},
		"armored":                           {[]byte("-----BEGIN PGP MESSAGE-----\n\n" + base64.StdEncoding.EncodeToString(good.Raw) + "\n-----END PGP MESSAGE-----\n"), "not a signed OpenPGP message"},
		"no packet at all":                  {[]byte("hello, world"), "not a signed OpenPGP message"},
		"lines instead of bytes are signed": {key.textSignature(payloadFor("quay.io/acme/app:1", testImage.PlatformDigest, simpleType)), "not a signature over binary data"},
	} {
		t.Run(name, func(t *testing.T) {
			d, err := key.policy(t, "").Check(t.Context(), testImage, lookaside(Document{Raw: tt.raw}))
			if d.Allowed || !errors.Is(err, ErrRejected) || !strings.Contains(podvm.Cause(err), tt.want) {
				t.Errorf("Check = %+v, %v; want %q", d, err, tt.want)
			}
		})
	}
}

// textSignature is a message whose signature is over text in canonical lines.
func (k pgpKey) textSignature(body []byte) []byte {
	return k.handMade(body, packet.SigTypeText, crypto.SHA256, k.conf.Now())
}

// handMade puts a message together as no tool would: of any type, over any
// hash and at any time.
func (k pgpKey) handMade(body []byte, kind packet.SignatureType, hash crypto.Hash, at time.Time) []byte {
	k.t.Helper()
	plain := false
	sig := &packet.Signature{
		Version: 4, SigType: kind, PubKeyAlgo: k.PrimaryKey.PubKeyAlgo, Hash: hash, CreationTime: at, IssuerKeyId: &k.PrimaryKey.KeyId,
	}
	h := hash.New()
	_, _ = h.Write(body)
	if err := sig.Sign(h, k.PrivateKey, &packet.Config{NonDeterministicSignaturesViaNotation: &plain}); err != nil {
		k.t.Fatal(err)
	}
	var b bytes.Buffer
	if err := sig.Serialize(&b); err != nil {
		k.t.Fatal(err)
	}
	return append(k.announced(body, kind, hash), b.Bytes()...)
}

// announced is a message up to its signature.
func (k pgpKey) announced(body []byte, kind packet.SignatureType, hash crypto.Hash) []byte {
	k.t.Helper()
	var b bytes.Buffer
	onePass := &packet.OnePassSignature{Version: 3, SigType: kind, Hash: hash, PubKeyAlgo: k.PrimaryKey.PubKeyAlgo, KeyId: k.PrimaryKey.KeyId, IsLast: true}
	if err := onePass.Serialize(&b); err != nil {
		k.t.Fatal(err)
	}
	w, err := packet.SerializeLiteral(nopCloser{&b}, true, "", 0)
	if err != nil {
		k.t.Fatal(err)
	}
	_, _ = w.Write(body)
	if err := w.Close(); err != nil {
		k.t.Fatal(err)
	}
	return b.Bytes()
}

func TestAttackWeakAlgorithms(t *testing.T) {
	payload := payloadFor("quay.io/acme/app:1", testImage.PlatformDigest, simpleType)
	key := newPGP(t, time.Now().Add(-time.Hour), 0)
	if d, err := key.policy(t, "").Check(t.Context(), testImage, lookaside(Document{Raw: key.handMade(payload, packet.SigTypeBinary, crypto.SHA256, time.Now())})); err != nil {
		t.Fatalf("the hand-made message is not good: %+v, %v", d, err)
	}
	sha1 := lookaside(Document{Raw: key.handMade(payload, packet.SigTypeBinary, crypto.SHA1, time.Now())})
	if _, err := key.policy(t, "").Check(t.Context(), testImage, sha1); !errors.Is(err, ErrRejected) || !strings.Contains(podvm.Cause(err), "weak algorithm: SHA-1") {
		t.Errorf("SHA-1: %v", err)
	}
	private, ok := newKey(t, "RSA-1024").private.(*rsa.PrivateKey)
	if !ok {
		t.Fatal("not an RSA key")
	}
	if err := strongKey(packet.NewRSAPublicKey(time.Now(), &private.PublicKey)); !errors.Is(err, errWeak) {
		t.Errorf("RSA of 1024 bits: %v", err)
	}
	if err := strongKey(&packet.PublicKey{PubKeyAlgo: packet.PubKeyAlgoDSA}); !errors.Is(err, errWeak) {
		t.Errorf("DSA: %v", err)
	}
}

// A signature that names no signer ends the process in go-crypto v1.4 when a
// message is read in one go.
func TestAttackSignatureWithoutIssuer(t *testing.T) {
	key := newPGP(t, time.Now().Add(-time.Hour), 0)
	payload := payloadFor("quay.io/acme/app:1", testImage.PlatformDigest, simpleType)
	// Version 4, binary, EdDSA, SHA-256; the time is all that is hashed; two
	// left bytes of the digest; two numbers of 255 bits.
	sig := append([]byte{4, 0, 22, 8, 0, 6, 5, 2}, 0x60, 0, 0, 0, 0, 0, 0, 0)
	for range 2 {
		sig = append(sig, 0, 255)
		sig = append(sig, bytes.Repeat([]byte{0x7f}, 32)...)
	}
	raw := append(key.announced(payload, packet.SigTypeBinary, crypto.SHA256), 0xC0|tagSignature, byte(len(sig)))
	raw = append(raw, sig...)
	_, err := key.policy(t, "").Check(t.Context(), testImage, lookaside(Document{Raw: raw}))
	if !errors.Is(err, ErrRejected) || !strings.Contains(podvm.Cause(err), "not the one announced") {
		t.Errorf("Check = %v", err)
	}
}

func TestSignedBySourcesFail(t *testing.T) {
	key := newPGP(t, time.Now().Add(-time.Hour), 0)
	down := errors.New("down")
	_, err := key.policy(t, "").Check(t.Context(), testImage, Sources{Lookaside: func(context.Context) ([]Document, error) {
		return nil, podvm.Explain(down, "no lookaside is configured")
	}})
	if !errors.Is(err, ErrRejected) || !errors.Is(err, down) || !strings.Contains(podvm.Cause(err), "no lookaside is configured") {
		t.Errorf("Check = %v", err)
	}
	_, err = key.policy(t, "").Check(t.Context(), testImage, lookaside())
	if !errors.Is(err, ErrRejected) || !strings.Contains(podvm.Cause(err), "no simple-signing signature found") {
		t.Errorf("none there: %v", err)
	}
	docs := make([]Document, 2*MaxLookaside+1)
	if _, err := key.policy(t, "").Check(t.Context(), testImage, lookaside(docs...)); !errors.Is(err, ErrRejected) {
		t.Errorf("a flood: %v", err)
	}
	_, err = parsed(t, signedByRing(`"keyPath":"/k"`)).Check(t.Context(), testImage, lookaside())
	if !errors.Is(err, ErrRejected) || !strings.Contains(podvm.Cause(err), "the public key /k is not available") {
		t.Errorf("no key: %v", err)
	}
}

// FuzzSimpleSigning signs any text with the right key: nothing but a claim for
// this image and name may pass. It also reads the text as a message.
func FuzzSimpleSigning(f *testing.F) {
	key := newPGP(f, time.Now().Add(-time.Hour), 0)
	p := key.policy(f, "")
	f.Add(payloadFor("quay.io/acme/app:1", testImage.PlatformDigest, simpleType))
	f.Add(payloadFor("quay.io/acme/app:1", testImage.PlatformDigest, cosignType))
	f.Add(key.vouch("quay.io/acme/app:1", digestA).Raw)
	f.Add(compressed(f, key.vouch("quay.io/acme/app:1", digestA).Raw))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if len(raw) < MaxPayload/2 {
			key := key
			key.t = t
			d, err := p.Check(t.Context(), testImage, lookaside(key.sign(raw, time.Now())))
			if err != nil && !errors.Is(err, ErrRejected) {
				t.Fatal(err)
			}
			c, bad := parseClaim(raw)
			if d.Allowed && (bad != nil || c.digest != testImage.PlatformDigest && c.digest != testImage.TopDigest) {
				t.Fatalf("accepted %q", raw)
			}
		}
		if _, err := p.Check(t.Context(), testImage, lookaside(Document{Raw: raw})); err != nil && !errors.Is(err, ErrRejected) {
			t.Fatal(err)
		}
	})
}

// FuzzKeyRing reads any bytes as a key ring and verifies with what is in it.
func FuzzKeyRing(f *testing.F) {
	key := newPGP(f, time.Now().Add(-time.Hour), 0)
	f.Add(key.ring())
	f.Add([]byte(key.armored()))
	msg, err := parsePGP(key.vouch("quay.io/acme/app:1", digestA).Raw)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		ring, name, err := parseKeyRing(raw)
		if err == nil && (len(ring) == 0 || name == "") {
			t.Fatalf("%d keys, %q", len(ring), name)
		}
		if by, _, err := msg.verify(ring, time.Now()); err == nil && by != fingerprint(key.PrimaryKey) {
			t.Fatalf("signed by %s", by)
		}
	})
}
