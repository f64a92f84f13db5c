package policy

import (
	"bytes"
	"context"
	"crypto"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

// pgpKey is an OpenPGP key pair.
type pgpKey struct {
	t testing.TB
	*openpgp.Entity
	conf *packet.Config
}

// newPGP makes a key that was created at a time and lives for so long, 0 for
// ever.
func newPGP(t testing.TB, created time.Time, life time.Duration) pgpKey {
	t.Helper()
	conf := &packet.Config{
		Algorithm: packet.PubKeyAlgoEdDSA, Time: func() time.Time { return created },
		KeyLifetimeSecs: uint32(life / time.Second), DefaultHash: crypto.SHA256,
	}
	e, err := openpgp.NewEntity("acme", "", "acme@example.com", conf)
	if err != nil {
		t.Fatal(err)
	}
	return pgpKey{t, e, conf}
}

// ring is the public key, binary.
func (k pgpKey) ring() []byte {
	k.t.Helper()
	var b bytes.Buffer
	if err := k.Serialize(&b); err != nil {
		k.t.Fatal(err)
	}
	return b.Bytes()
}

// armored is the public key as text.
func (k pgpKey) armored() string {
	k.t.Helper()
	var b strings.Builder
	w, err := armor.Encode(&b, openpgp.PublicKeyType, nil)
	if err != nil {
		k.t.Fatal(err)
	}
	if _, err := w.Write(k.ring()); err != nil {
		k.t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		k.t.Fatal(err)
	}
	return b.String() + "\n"
}

// sign makes what gpg --sign makes, at a time.
func (k pgpKey) sign(body []byte, at time.Time, change ...func(*packet.Config)) Document {
	k.t.Helper()
	conf := *k.conf
	conf.Time = func() time.Time { return at }
	for _, c := range change {
		c(&conf)
	}
	var b bytes.Buffer
	w, err := openpgp.Sign(&b, k.Entity, nil, &conf)
	if err != nil {
		k.t.Fatal(err)
	}
	if _, err := w.Write(body); err != nil {
		k.t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		k.t.Fatal(err)
	}
	return Document{Raw: b.Bytes(), Origin: "file:///sigs/signature-1"}
}

// vouch signs the claim that containers/image would make.
func (k pgpKey) vouch(ref, digest string) Document {
	return k.sign(payloadFor(ref, digest, simpleType), k.conf.Now().Add(time.Second))
}

// signedByRing is a policy whose default is one signedBy requirement.
func signedByRing(extra string) string {
	return `{"default":[{"type":"signedBy","keyType":"GPGKeys",` + extra + `}],"transports":{}}`
}

func (k pgpKey) policy(t testing.TB, extra string) *Policy {
	t.Helper()
	return parsed(t, signedByRing(`"keyData":`+j(base64.StdEncoding.EncodeToString(k.ring()))+extra))
}

func lookaside(docs ...Document) Sources {
	return Sources{Lookaside: func(context.Context) ([]Document, error) { return docs, nil }}
}

func packets(t testing.TB, raw []byte) [][]byte {
	t.Helper()
	list, err := splitPackets(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	var out [][]byte
	for _, p := range list {
		var b bytes.Buffer
		if err := p.Serialize(&b); err != nil {
			t.Fatal(err)
		}
		out = append(out, b.Bytes())
	}
	return out
}

func compressed(t testing.TB, raw []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := packet.SerializeCompressed(nopCloser{&b}, packet.CompressionZLIB, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(raw); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

type nopCloser struct{ *bytes.Buffer }

func (nopCloser) Close() error { return nil }

func TestKeyRingForms(t *testing.T) {
	a, b := newPGP(t, time.Now().Add(-time.Hour), 0), newPGP(t, time.Now().Add(-time.Hour), 0)
	b64 := base64.StdEncoding.EncodeToString
	doc := b.vouch("quay.io/acme/app:1", testImage.PlatformDigest)
	for name, text := range map[string]string{
		"base64 of binary":        `"keyData":` + j(b64(append(a.ring(), b.ring()...))),
		"base64 of armored":       `"keyData":` + j(b64([]byte(a.armored()+b.armored()))),
		"armored, several blocks": `"keyData":` + j(a.armored()+b.armored()),
		"a list":                  `"keyDatas":` + j([]string{a.armored(), b64(b.ring())}),
		"paths":                   `"keyPaths":["/a","/b"]`,
	} {
		t.Run(name, func(t *testing.T) {
			src := lookaside(doc)
			src.Key = func(_ context.Context, uri string) ([]byte, error) {
				return map[string][]byte{"/a": []byte(a.armored()), "/b": b.ring()}[uri], nil
			}
			d, err := parsed(t, signedByRing(text)).Check(t.Context(), testImage, src)
			if err != nil || !d.Allowed || !strings.Contains(d.Key, fmt.Sprintf("%X", b.PrimaryKey.Fingerprint)) {
				t.Errorf("Check = %+v, %v", d, err)
			}
		})
	}
	var private bytes.Buffer
	if err := a.SerializePrivate(&private, nil); err != nil {
		t.Fatal(err)
	}
	var ring []byte
	for range maxRing + 1 {
		ring = append(ring, a.ring()...)
	}
	for name, raw := range map[string][]byte{
		"a private key": private.Bytes(), "too many keys": ring, "a huge ring": make([]byte, MaxKey+1), "nothing": {},
		"a message for a key": doc.Raw, "an armored message": []byte("-----BEGIN PGP MESSAGE-----\n\nAA==\n-----END PGP MESSAGE-----\n"),
		"half a key": a.ring()[:40],
	} {
		if ring, _, err := parseKeyRing(raw); err == nil {
			t.Errorf("%s: %d keys", name, len(ring))
		}
	}
}
