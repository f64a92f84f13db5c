package layer

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"strings"
	"testing"

	"github.com/containers/ocicrypt/config"
	"github.com/containers/ocicrypt/keywrap/jwe"
	"github.com/go-jose/go-jose/v4"

	"github.com/sealpod/sealpod/podvm"
)

// keyPair is a key in a form ocicrypt reads.
type keyPair struct{ private, public []byte }

func keyPairs(t testing.TB) map[string]keyPair {
	t.Helper()
	r, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	e, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	der := func(private, public any) keyPair {
		a, err := x509.MarshalPKCS8PrivateKey(private)
		must(t, err)
		b, err := x509.MarshalPKIXPublicKey(public)
		must(t, err)
		return keyPair{a, b}
	}
	rsaDER, ecDER := der(r, &r.PublicKey), der(e, &e.PublicKey)
	armour := func(k keyPair) keyPair {
		return keyPair{
			pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: k.private}),
			pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: k.public}),
		}
	}
	jwk := jose.JSONWebKey{Key: e, KeyID: "k", Algorithm: string(jose.ECDH_ES_A256KW)}
	private, err := jwk.MarshalJSON()
	must(t, err)
	public := jwk.Public()
	pub, err := public.MarshalJSON()
	must(t, err)
	return map[string]keyPair{
		"RSA, PEM": armour(rsaDER), "RSA, DER": rsaDER, "EC, PEM": armour(ecDER), "EC, JWK": {private, pub},
	}
}

// wrapJWE wraps options for public keys as ocicrypt does.
func wrapJWE(t testing.TB, options string, public ...[]byte) []byte {
	t.Helper()
	packet, err := jwe.NewKeyWrapper().WrapKeys(&config.EncryptConfig{Parameters: map[string][][]byte{"pubkeys": public}}, []byte(options))
	must(t, err)
	return packet
}

func TestOpenJWE(t *testing.T) {
	pairs := keyPairs(t)
	all := [][]byte{}
	for _, k := range pairs {
		all = append(all, k.public)
	}
	for n, k := range pairs {
		for who, packet := range map[string][]byte{"alone": wrapJWE(t, goodPrivate, k.public), "one of several": wrapJWE(t, goodPrivate, all...)} {
			got, err := OpenJWE(packet, k.private)
			if err != nil || string(got) != goodPrivate {
				t.Errorf("%s, %s: %v", n, who, err)
			}
		}
	}
}

func TestOpenJWERefuses(t *testing.T) {
	k, other := keyPairs(t)["RSA, PEM"], keyPairs(t)["RSA, PEM"]
	good := wrapJWE(t, goodPrivate, k.public)
	block, _ := pem.Decode(k.public)
	public, err := x509.ParsePKIXPublicKey(block.Bytes)
	must(t, err)
	encrypter, err := jose.NewEncrypter(jose.A256GCM, jose.Recipient{Algorithm: jose.RSA1_5, Key: public}, nil)
	must(t, err)
	object, err := encrypter.Encrypt([]byte(goodPrivate))
	must(t, err)
	weak := []byte(object.FullSerialize())
	tests := map[string]struct{ packet, private []byte }{
		"another key":     {good, other.private},
		"a public key":    {good, k.public},
		"no key":          {good, nil},
		"not a key":       {good, []byte("x")},
		"not a JWE":       {[]byte("{}"), k.private},
		"nothing":         {nil, k.private},
		"changed":         {[]byte(strings.Replace(string(good), `"ciphertext":"`, `"ciphertext":"AAAA`, 1)), k.private},
		"weak encryption": {weak, k.private},
	}
	for n, tt := range tests {
		if got, err := OpenJWE(tt.packet, tt.private); !errors.Is(err, ErrJWE) || got != nil {
			t.Errorf("%s: %v", n, err)
		}
	}
}

// TestProvidersAreAskedBeforeJWE: an owner who wrapped the key for the key
// broker as well means it to be asked.
func TestProvidersAreAskedBeforeJWE(t *testing.T) {
	var asked []string
	ask := func(answer string) Unwrapper {
		return unwrapper(func(packet []byte) (podvm.Secret, error) {
			asked = append(asked, string(packet))
			if string(packet) == answer {
				return podvm.Secret(goodPrivate), nil
			}
			return nil, errors.New("not mine")
		})
	}
	spec := Spec{MediaType: oci + "+encrypted", Annotations: map[string]string{
		pubOptsAnnotation: b64(goodPub), keysPrefix + "jwe": b64("j1") + "," + b64("j2"), providerPrefix + "z": b64("p"),
	}}
	if _, err := UnwrapKey(t.Context(), spec, Unwrappers{Provider: ask(""), JWE: ask("j2")}); err != nil {
		t.Error(err)
	}
	if got := strings.Join(asked, " "); got != "p j1 j2" {
		t.Errorf("asked %q", got)
	}
	delete(spec.Annotations, providerPrefix+"z")
	if _, err := UnwrapKey(t.Context(), spec, Unwrappers{Provider: ask("")}); !errors.Is(err, ErrDecrypt) {
		t.Errorf("without decryption keys: %v", err)
	}
}

func FuzzOpenJWE(f *testing.F) {
	k := keyPairs(f)["EC, PEM"]
	f.Add(wrapJWE(f, goodPrivate, k.public))
	f.Add([]byte(base64.StdEncoding.EncodeToString([]byte("{}"))))
	f.Fuzz(func(t *testing.T, packet []byte) {
		if got, err := OpenJWE(packet, k.private); err == nil && string(got) != goodPrivate {
			t.Error("opened something else")
		}
	})
}
