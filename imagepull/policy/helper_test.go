package policy

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/sigstore/sigstore/pkg/cryptoutils"
	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/sigstore/sigstore/pkg/signature/options"
)

const cosignType = "cosign container image signature"

var (
	digestA = "sha256:" + strings.Repeat("a", 64)
	digestB = "sha256:" + strings.Repeat("b", 64)
)

// testKey is a private key with its public half as PEM.
type testKey struct {
	t       testing.TB
	private crypto.Signer
	pub     string
}

func newKey(t testing.TB, kind string) testKey {
	t.Helper()
	var k crypto.Signer
	var err error
	switch kind {
	case "P-256":
		k, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "P-384":
		k, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "P-521":
		k, err = ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	case "RSA":
		k, err = rsa.GenerateKey(rand.Reader, 2048)
	case "RSA-1024":
		k, err = rsa.GenerateKey(rand.Reader, 1024) //nolint:gosec // must be refused
	case "Ed25519":
		_, k, err = ed25519.GenerateKey(rand.Reader)
	}
	if err != nil {
		t.Fatal(err)
	}
	pub, err := cryptoutils.MarshalPublicKeyToPEM(k.Public())
	if err != nil {
		t.Fatal(err)
	}
	return testKey{t: t, private: k, pub: string(pub)}
}

// sign signs any bytes, in the form opts say.
func (k testKey) sign(payload []byte, opts ...signature.LoadOption) Signature {
	k.t.Helper()
	s, err := signature.LoadSignerWithOpts(k.private, opts...)
	if err != nil {
		k.t.Fatal(err)
	}
	raw, err := s.SignMessage(bytes.NewReader(payload))
	if err != nil {
		k.t.Fatal(err)
	}
	return Signature{Payload: payload, Base64Sig: base64.StdEncoding.EncodeToString(raw)}
}

// claim signs a well-formed payload for ref and digest.
func (k testKey) claim(ref, digest string) Signature {
	return k.sign(payloadFor(ref, digest, cosignType), options.WithHash(crypto.SHA256))
}

func payloadFor(ref, digest, kind string) []byte {
	return fmt.Appendf(nil, `{"critical":{"identity":{"docker-reference":%s},"image":{"docker-manifest-digest":%s},"type":%s},"optional":null}`, j(ref), j(digest), j(kind))
}

// j renders a JSON value.
func j(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// sigstore is a policy whose default is one sigstoreSigned requirement.
func sigstore(extra string) string {
	return fmt.Sprintf(`{"default":[{"type":"sigstoreSigned",%s}],"transports":{}}`, extra)
}

func parsed(t testing.TB, text string) *Policy {
	t.Helper()
	p, err := Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

var testImage = Image{Registry: "quay.io", Repository: "acme/app", Tag: "1", TopDigest: digestA, PlatformDigest: digestB}

// given returns sources with these signatures and no key that can be fetched.
func given(sigs ...Signature) Sources {
	return Sources{
		Signatures: func(context.Context) ([]Signature, error) { return sigs, nil },
		Key:        func(context.Context, string) ([]byte, error) { return nil, errors.New("no key expected") },
	}
}

// untouchable fails the test when anything is fetched.
func untouchable(t testing.TB) Sources {
	return Sources{
		Signatures: func(context.Context) ([]Signature, error) { t.Error("signatures fetched"); return nil, nil },
		Key:        func(context.Context, string) ([]byte, error) { t.Error("key fetched"); return nil, nil },
	}
}
