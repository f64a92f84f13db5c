package kbs

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"
)

var algorithms = []KeyAlgorithm{ECDHP256, ECDHP521, RSAOAEP}

func newKey(t testing.TB, alg KeyAlgorithm) *TEEKey {
	t.Helper()
	k, err := GenerateTEEKey(alg)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// joseKey returns the private key as an independent library reads it.
func joseKey(t testing.TB, k *TEEKey) any {
	t.Helper()
	if k.rsa != nil {
		return k.rsa
	}
	key, err := ecdsa.ParseRawPrivateKey(map[string]elliptic.Curve{"P-256": elliptic.P256(), "P-521": elliptic.P521()}[k.Public().CRV], k.ec.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestEncryptIsReadByGoJOSE(t *testing.T) {
	for _, alg := range algorithms {
		t.Run(string(alg), func(t *testing.T) {
			k := newKey(t, alg)
			for _, plain := range []string{"", "secret", strings.Repeat("x", 100_000)} {
				out, err := Encrypt(k.Public(), []byte(plain))
				if err != nil {
					t.Fatal(err)
				}
				parsed, err := jose.ParseEncryptedJSON(string(out),
					[]jose.KeyAlgorithm{jose.ECDH_ES_A256KW, jose.RSA_OAEP_256}, []jose.ContentEncryption{jose.A256GCM})
				if err != nil {
					t.Fatal(err)
				}
				got, err := parsed.Decrypt(joseKey(t, k))
				if err != nil || string(got) != plain {
					t.Fatalf("%d bytes: %v", len(got), err)
				}
				ours, err := k.Decrypt(out)
				if err != nil || !bytes.Equal(ours, []byte(plain)) {
					t.Fatalf("own decryption: %v", err)
				}
			}
		})
	}
}

func TestDecryptReadsGoJOSE(t *testing.T) {
	for _, alg := range algorithms {
		t.Run(string(alg), func(t *testing.T) {
			k := newKey(t, alg)
			rcpt := jose.Recipient{Algorithm: jose.ECDH_ES_A256KW, Key: &joseKey(t, newKey(t, ECDHP256)).(*ecdsa.PrivateKey).PublicKey}
			switch key := joseKey(t, k).(type) {
			case *ecdsa.PrivateKey:
				rcpt.Key = &key.PublicKey
			case *rsa.PrivateKey:
				rcpt = jose.Recipient{Algorithm: jose.RSA_OAEP_256, Key: &key.PublicKey}
			}
			enc, err := jose.NewEncrypter(jose.A256GCM, rcpt, nil)
			if err != nil {
				t.Fatal(err)
			}
			sealed, err := enc.Encrypt([]byte("from elsewhere"))
			if err != nil {
				t.Fatal(err)
			}
			got, err := k.Decrypt([]byte(sealed.FullSerialize()))
			if err != nil || string([]byte(got)) != "from elsewhere" {
				t.Fatalf("got %v", err)
			}
		})
	}
}

// Rust clients re-serialise the header for the AAD, so order and spacing of
// the protected header are part of the wire format.
func TestProtectedHeaderIsExact(t *testing.T) {
	const num32, num66 = `[A-Za-z0-9_-]{43}`, `[A-Za-z0-9_-]{88}`
	for alg, want := range map[KeyAlgorithm]string{
		ECDHP256: `{"alg":"ECDH-ES+A256KW","enc":"A256GCM","epk":{"crv":"P-256","kty":"EC","x":"` + num32 + `","y":"` + num32 + `"}}`,
		ECDHP521: `{"alg":"ECDH-ES+A256KW","enc":"A256GCM","epk":{"crv":"P-521","kty":"EC","x":"` + num66 + `","y":"` + num66 + `"}}`,
		RSAOAEP:  `{"alg":"RSA-OAEP-256","enc":"A256GCM"}`,
	} {
		out, err := Encrypt(newKey(t, alg).Public(), []byte("x"))
		if err != nil {
			t.Fatal(err)
		}
		var f map[string]string
		if err := json.Unmarshal(out, &f); err != nil {
			t.Fatal(err)
		}
		head, err := base64.RawURLEncoding.DecodeString(f["protected"])
		if err != nil {
			t.Fatal(err)
		}
		quoted := strings.NewReplacer("+", `\+`, "{\"", `\{"`, "}}", `\}\}`).Replace(want)
		if !regexp.MustCompile("^" + quoted + "$").Match(head) {
			t.Errorf("%s: %s", alg, head)
		}
		if len(f) != 5 {
			t.Errorf("%s: members %v", alg, f)
		}
	}
}

func TestEncryptRefusesBadKeys(t *testing.T) {
	good := newKey(t, ECDHP256).Public()
	zero := base64.RawURLEncoding.EncodeToString(make([]byte, 32))
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	n := func(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }
	odd := bytes.Repeat([]byte{0xff}, 256)
	for name, k := range map[string]PublicKey{
		"empty":                {},
		"not on the curve":     {KTY: "EC", CRV: "P-256", ALG: algECDH, X: good.X, Y: good.X},
		"point at infinity":    {KTY: "EC", CRV: "P-256", ALG: algECDH, X: zero, Y: zero},
		"short coordinate":     {KTY: "EC", CRV: "P-256", ALG: algECDH, X: good.X[:42], Y: good.Y},
		"padded coordinate":    {KTY: "EC", CRV: "P-256", ALG: algECDH, X: good.X + "=", Y: good.Y},
		"curve of other width": {KTY: "EC", CRV: "P-521", ALG: algECDH, X: good.X, Y: good.Y},
		"1024-bit RSA":         {KTY: "RSA", ALG: algRSAOAEP, N: n(weak.N.Bytes()), E: "AQAB"},
		"enormous RSA":         {KTY: "RSA", ALG: algRSAOAEP, N: n(bytes.Repeat([]byte{0xff}, 1025)), E: "AQAB"},
		"even RSA modulus":     {KTY: "RSA", ALG: algRSAOAEP, N: n(append(odd[:255:255], 0xfe)), E: "AQAB"},
		"RSA exponent one":     {KTY: "RSA", ALG: algRSAOAEP, N: n(odd), E: "AQ"},
		"RSA exponent even":    {KTY: "RSA", ALG: algRSAOAEP, N: n(odd), E: "Ag"},
		"RSA exponent huge":    {KTY: "RSA", ALG: algRSAOAEP, N: n(odd), E: "_____w"},
	} {
		t.Run(name, func(t *testing.T) {
			if out, err := Encrypt(k, []byte("x")); err == nil {
				t.Errorf("encrypted to it: %s", out)
			}
		})
	}
}

// Everything that differs from what was encrypted is refused, and failures
// that depend on the key all look the same.
func TestDecryptRefuses(t *testing.T) {
	k := newKey(t, ECDHP256)
	sealed, err := Encrypt(k.Public(), []byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	edit := func(change func(f map[string]any, head map[string]any)) []byte {
		var f, head map[string]any
		if err := json.Unmarshal(sealed, &f); err != nil {
			t.Fatal(err)
		}
		text, err := base64.RawURLEncoding.DecodeString(f["protected"].(string))
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(text, &head); err != nil {
			t.Fatal(err)
		}
		change(f, head)
		text, err = json.Marshal(head)
		if err != nil {
			t.Fatal(err)
		}
		f["protected"] = base64.RawURLEncoding.EncodeToString(text)
		out, err := json.Marshal(f)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	flip := func(v any) string {
		b, err := base64.RawURLEncoding.DecodeString(v.(string))
		if err != nil {
			t.Fatal(err)
		}
		b[0] ^= 1
		return base64.RawURLEncoding.EncodeToString(b)
	}
	const uniform = "not encrypted to this TEE key or was altered"
	tests := map[string]struct {
		jwe  []byte
		text string
	}{
		"ciphertext altered":    {edit(func(f, _ map[string]any) { f["ciphertext"] = flip(f["ciphertext"]) }), uniform},
		"tag altered":           {edit(func(f, _ map[string]any) { f["tag"] = flip(f["tag"]) }), uniform},
		"iv altered":            {edit(func(f, _ map[string]any) { f["iv"] = flip(f["iv"]) }), uniform},
		"wrapped key altered":   {edit(func(f, _ map[string]any) { f["encrypted_key"] = flip(f["encrypted_key"]) }), uniform},
		"wrapped key cut":       {edit(func(f, _ map[string]any) { f["encrypted_key"] = "AAAA" }), uniform},
		"ephemeral point bad":   {edit(func(_, h map[string]any) { e := h["epk"].(map[string]any); e["x"] = e["y"] }), uniform},
		"ephemeral curve other": {edit(func(_, h map[string]any) { h["epk"].(map[string]any)["crv"] = "P-521" }), uniform},
		"header extended":       {edit(func(_, h map[string]any) { h["kid"] = "1" }), uniform},
		"algorithm for RSA":     {edit(func(_, h map[string]any) { h["alg"] = "RSA-OAEP-256" }), uniform},
		"RSA1_5":                {edit(func(_, h map[string]any) { h["alg"] = "RSA1_5" }), "not supported"},
		"dir":                   {edit(func(_, h map[string]any) { h["alg"] = "dir" }), "not supported"},
		"CBC content":           {edit(func(_, h map[string]any) { h["enc"] = "A256CBC-HS512" }), "not supported"},
		"compressed":            {edit(func(_, h map[string]any) { h["zip"] = "DEF" }), "not supported"},
		"critical extension":    {edit(func(_, h map[string]any) { h["crit"] = []string{"x"} }), "not supported"},
		"party info":            {edit(func(_, h map[string]any) { h["apu"] = "eA" }), "not supported"},
		"no ephemeral key":      {edit(func(_, h map[string]any) { delete(h, "epk") }), "ephemeral key"},
		"additional aad":        {edit(func(f, _ map[string]any) { f["aad"] = "eA" }), "not supported"},
		"several recipients":    {edit(func(f, _ map[string]any) { f["recipients"] = []string{} }), "not supported"},
		"no tag":                {edit(func(f, _ map[string]any) { delete(f, "tag") }), "missing"},
		"short tag":             {edit(func(f, _ map[string]any) { f["tag"] = "AAAA" }), "want 12 and 16"},
		"long iv":               {edit(func(f, _ map[string]any) { f["iv"] = "AAAAAAAAAAAAAAAAAAAAAA" }), "want 12 and 16"},
		"padded base64":         {edit(func(f, _ map[string]any) { f["ciphertext"] = "eA==" }), "base64url"},
		"compact form":          {[]byte("a.b.c.d.e"), "JSON value"},
		"nothing":               {nil, "JSON value"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := k.Decrypt(tt.jwe)
			if !errors.Is(err, ErrDecrypt) || got != nil || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("got %q, %v", []byte(got), err)
			}
		})
	}
	t.Run("other key", func(t *testing.T) {
		for _, alg := range algorithms {
			if _, err := newKey(t, alg).Decrypt(sealed); !errors.Is(err, ErrDecrypt) || !strings.Contains(err.Error(), uniform) {
				t.Errorf("%s: %v", alg, err)
			}
		}
	})
	if _, err := k.Decrypt(sealed); err != nil {
		t.Errorf("the unaltered one: %v", err)
	}
}

func TestTEEKeyPEM(t *testing.T) {
	for alg, head := range map[KeyAlgorithm]string{
		ECDHP256: "-----BEGIN PRIVATE KEY-----\n", ECDHP521: "-----BEGIN PRIVATE KEY-----\n", RSAOAEP: "-----BEGIN RSA PRIVATE KEY-----\n",
	} {
		k := newKey(t, alg)
		text, err := k.MarshalPEM()
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.HasPrefix(text, []byte(head)) {
			t.Errorf("%s: not %q", alg, head)
		}
		again, err := ParseTEEKeyPEM(text)
		if err != nil {
			t.Fatal(err)
		}
		if again.Public() != k.Public() {
			t.Errorf("%s: another key came back", alg)
		}
		if err := k.Public().Validate(); err != nil {
			t.Error(err)
		}
		if _, err := ParseTEEKeyPEM(append(text, "more"...)); err == nil {
			t.Error("text after the block accepted")
		}
	}
	for _, bad := range []string{"", "x", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "-----BEGIN X-----\nAAAA\n-----END X-----\n"} {
		if _, err := ParseTEEKeyPEM([]byte(bad)); err == nil {
			t.Errorf("%q accepted", bad)
		}
	}
	if _, err := GenerateTEEKey("ML-KEM-768+A192KW"); err == nil {
		t.Error("unknown algorithm accepted")
	}
}

func TestTEEKeyNeverPrints(t *testing.T) {
	k := newKey(t, ECDHP256)
	for _, s := range []string{fmt.Sprintf("%v", k), fmt.Sprintf("%+v", k), fmt.Sprintf("%#v", k), fmt.Sprint(Token{Key: k})} {
		if strings.Contains(s, "ecdh") || strings.Contains(s, "PrivateKey") {
			t.Errorf("printed %s", s)
		}
	}
}

func FuzzDecrypt(f *testing.F) {
	k := newKey(f, ECDHP256)
	good, err := Encrypt(k.Public(), []byte("secret"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"protected":"e30","encrypted_key":"","iv":"AAAAAAAAAAAAAAAA","ciphertext":"","tag":"AAAAAAAAAAAAAAAAAAAAAA"}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		got, err := k.Decrypt(raw)
		if err == nil && string([]byte(got)) != "secret" {
			t.Fatalf("a forgery opened to %q", []byte(got))
		}
		if err != nil && !errors.Is(err, ErrDecrypt) {
			t.Fatalf("untyped error %v", err)
		}
	})
}

func FuzzPublicKey(f *testing.F) {
	for _, alg := range algorithms {
		text, err := json.Marshal(newKey(f, alg).Public())
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		var k PublicKey
		if k.UnmarshalJSON(raw) != nil || k.Validate() != nil {
			return
		}
		if _, err := Encrypt(k, []byte("x")); err != nil {
			t.Fatalf("a valid key cannot be encrypted to: %v", err)
		}
		text, err := json.Marshal(k)
		if err != nil {
			t.Fatal(err)
		}
		var again PublicKey
		if err := again.UnmarshalJSON(text); err != nil || again != k {
			t.Fatalf("%s reads as %+v, %v", text, again, err)
		}
	})
}

func BenchmarkDecrypt(b *testing.B) {
	for _, alg := range algorithms {
		for _, size := range []int{32, 1 << 20} {
			b.Run(fmt.Sprintf("%s/%d", alg, size), func(b *testing.B) {
				k := newKey(b, alg)
				sealed, err := Encrypt(k.Public(), make([]byte, size))
				if err != nil {
					b.Fatal(err)
				}
				b.ReportAllocs()
				b.SetBytes(int64(size))
				for b.Loop() {
					if _, err := k.Decrypt(sealed); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
