package secret_test

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"log/slog"
	"math/big"
	"os"
	"strings"
	"testing"

	"github.com/sealpod/sealpod/cdh/kms"
	"github.com/sealpod/sealpod/cdh/secret"
	"github.com/sealpod/sealpod/podvm"
)

const envelopeText = "an envelope's secret\n"

// p256 is the curve as FIPS 186-5 and SP 800-186 section 3.2.1.3 have it, on
// numbers of any size and in no constant time.
var p256 = struct{ p, n, b, gx, gy *big.Int }{
	p:  number("ffffffff00000001000000000000000000000000ffffffffffffffffffffffff"),
	n:  number("ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551"),
	b:  number("5ac635d8aa3a93e7b3ebbd55769886bc651d06b0cc53b0f63bce3c3e27d2604b"),
	gx: number("6b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296"),
	gy: number("4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5"),
}

func number(hex string) *big.Int {
	n, ok := new(big.Int).SetString(hex, 16)
	if !ok {
		panic(hex)
	}
	return n
}

type point struct{ x, y *big.Int } // x nil: infinity

func add(a, b point) point {
	if a.x == nil {
		return b
	}
	if b.x == nil {
		return a
	}
	p := p256.p
	num, den := new(big.Int).Sub(b.y, a.y), new(big.Int).Sub(b.x, a.x)
	if a.x.Cmp(b.x) == 0 {
		if a.y.Cmp(b.y) != 0 {
			return point{}
		}
		num = new(big.Int).Mul(a.x, a.x)
		num.Mul(num, big.NewInt(3)).Sub(num, big.NewInt(3))
		den = new(big.Int).Lsh(a.y, 1)
	}
	slope := num.Mul(num, den.ModInverse(den.Mod(den, p), p))
	x := new(big.Int).Mul(slope, slope)
	x.Sub(x, a.x).Sub(x, b.x).Mod(x, p)
	y := new(big.Int).Sub(a.x, x)
	y.Mul(y, slope).Sub(y, a.y).Mod(y, p)
	return point{x, y}
}

func mul(k *big.Int, a point) point {
	var out point
	for i := k.BitLen() - 1; i >= 0; i-- {
		if out = add(out, out); k.Bit(i) == 1 {
			out = add(out, a)
		}
	}
	return out
}

// es256 verifies a signature by the book (FIPS 186-5 section 6.4.2).
func es256(pub point, signed string, signature []byte) bool {
	if len(signature) != 64 {
		return false
	}
	r, s := new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:])
	if r.Sign() == 0 || s.Sign() == 0 || r.Cmp(p256.n) >= 0 || s.Cmp(p256.n) >= 0 {
		return false
	}
	hash := sha256.Sum256([]byte(signed))
	w := new(big.Int).ModInverse(s, p256.n)
	u := new(big.Int).Mul(new(big.Int).SetBytes(hash[:]), w)
	v := new(big.Int).Mul(r, w)
	at := add(mul(u.Mod(u, p256.n), point{p256.gx, p256.gy}), mul(v.Mod(v, p256.n), pub))
	return at.x != nil && at.x.Mod(at.x, p256.n).Cmp(r) == 0
}

func golden(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// goldenText is a sealed secret without the line end of its file.
func goldenText(t testing.TB, name string) string {
	return strings.TrimSuffix(string(golden(t, name)), "\n")
}

func part(t testing.TB, text string) []byte {
	t.Helper()
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestTheCommittedKeyIsOnTheCurve(t *testing.T) {
	pub := goldenKey(t)
	left := new(big.Int).Mul(pub.y, pub.y)
	right := new(big.Int).Mul(pub.x, pub.x)
	right.Sub(right, big.NewInt(3)).Mul(right, pub.x).Add(right, p256.b)
	if left.Sub(left, right).Mod(left, p256.p).Sign() != 0 {
		t.Error("it is not")
	}
	var private struct{ D string }
	if err := json.Unmarshal(golden(t, "signing-private.json"), &private); err != nil {
		t.Fatal(err)
	}
	if at := mul(new(big.Int).SetBytes(part(t, private.D)), point{p256.gx, p256.gy}); at.x.Cmp(pub.x) != 0 || at.y.Cmp(pub.y) != 0 {
		t.Error("the halves do not belong together")
	}
}

func goldenKey(t testing.TB) point {
	t.Helper()
	var k struct{ KTY, CRV, X, Y string }
	if err := json.Unmarshal(golden(t, "signing-public.json"), &k); err != nil || k.KTY != "EC" || k.CRV != "P-256" {
		t.Fatal(err, k)
	}
	return point{new(big.Int).SetBytes(part(t, k.X)), new(big.Int).SetBytes(part(t, k.Y))}
}

func TestCommittedSecretsByTheBook(t *testing.T) {
	const header = `{"b64":true,"alg":"ES256","kid":"kbs:///acme/keys/signing"}`
	for name, want := range map[string]string{
		"vault.sealed":    `{"version":"0.1.0","type":"vault","name":"kbs:///acme/db/password","provider":"kbs","provider_settings":{},"annotations":{}}`,
		"envelope.sealed": `{"version":"0.1.0","type":"envelope","key_id":"alias/acme","encrypted_key":"`,
	} {
		parts := strings.Split(goldenText(t, name), ".")
		if len(parts) != 4 || parts[0] != "sealed" {
			t.Fatalf("%s: %q", name, parts)
		}
		if got := part(t, parts[1]); string(got) != header {
			t.Errorf("%s: header %s", name, got)
		}
		if got := part(t, parts[2]); !strings.HasPrefix(string(got), want) {
			t.Errorf("%s: payload %s", name, got)
		}
		signature := part(t, parts[3])
		if !es256(goldenKey(t), parts[1]+"."+parts[2], signature) {
			t.Errorf("%s: the signature does not hold", name)
		}
		if es256(goldenKey(t), parts[1]+"."+parts[1], signature) {
			t.Errorf("%s: the signature holds for anything", name)
		}
	}
	var e struct {
		Key  []byte `json:"encrypted_key"`
		Data []byte `json:"encrypted_data"`
		IV   []byte `json:"iv"`
		Wrap string `json:"wrap_type"`
	}
	if err := json.Unmarshal(part(t, strings.Split(goldenText(t, "envelope.sealed"), ".")[2]), &e); err != nil {
		t.Fatal(err)
	}
	block, err := aes.NewCipher(flip(e.Key))
	if err != nil {
		t.Fatal(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := gcm.Open(nil, e.IV, e.Data, nil); err != nil || string(got) != envelopeText || e.Wrap != "A256GCM" {
		t.Errorf("%q, %v, %s", got, err, e.Wrap)
	}
}

func TestCommittedSecretsUnseal(t *testing.T) {
	u := secret.New(secret.Config{Log: slog.New(slog.DiscardHandler), KMS: flipper{}, Resources: broker{
		"kbs:///acme/keys/signing":  golden(t, "signing-public.json"),
		"kbs:///acme/keys/upstream": golden(t, "upstream-public.json"),
		"kbs:///acme/db/password":   []byte("hunter2"),
	}})
	for name, want := range map[string]string{"vault.sealed": "hunter2", "envelope.sealed": envelopeText, "upstream.sealed": "hunter2"} {
		if got, err := u.Unseal(t.Context(), []byte(goldenText(t, name))); string(got) != want || err != nil {
			t.Errorf("%s: %q, %v", name, []byte(got), err)
		}
		// With the line end of the file it is another text than was signed.
		if got, err := u.Unseal(t.Context(), golden(t, name)); err == nil {
			t.Errorf("%s with a line end: %q", name, []byte(got))
		}
	}
}

type broker map[string][]byte

func (b broker) Resource(_ context.Context, uri string) (podvm.Secret, error) {
	return bytes.Clone(b[uri]), nil
}

// flipper is the service of the committed envelope.
type flipper struct{}

func flip(b []byte) []byte {
	out := make([]byte, len(b))
	for i := range b {
		out[i] = b[i] ^ 0x55
	}
	return out
}

func (f flipper) Open(context.Context, string, kms.Object) (kms.Provider, error) { return f, nil }

func (flipper) Decrypt(_ context.Context, _ string, ciphertext []byte, _ kms.Object) (podvm.Secret, error) {
	return flip(ciphertext), nil
}

func (flipper) Secret(context.Context, string, kms.Object) (podvm.Secret, error) {
	return podvm.Secret("from the vault"), nil
}
