package token

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/sealpod/sealpod/kbs"
	"github.com/sealpod/sealpod/relyingparty/store"
)

var b64 = base64.RawURLEncoding

type clock struct{ t time.Time }

func (c *clock) now() time.Time { return c.t }

func newIssuer(t testing.TB) (*Issuer, *ecdsa.PrivateKey, *clock) {
	t.Helper()
	key, err := LoadKey(context.Background(), store.NewMemory())
	must(t, err)
	c := &clock{time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	i, err := NewIssuer(key, 5*time.Minute, c.now)
	must(t, err)
	return i, key, c
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func submods(t testing.TB) (map[string]any, kbs.PublicKey) {
	t.Helper()
	key, err := kbs.GenerateTEEKey("")
	must(t, err)
	return map[string]any{"cpu0": map[string]any{
		"ear.veraison.annotated-evidence": map[string]any{
			"runtime_data_claims": map[string]any{"nonce": "n", "tee-pubkey": key.Public()},
		},
	}}, key.Public()
}

func TestTokenHasTheWireForm(t *testing.T) {
	i, key, c := newIssuer(t)
	mods, pub := submods(t)
	text, err := i.Issue(mods)
	must(t, err)
	parts := strings.Split(text, ".")
	head := map[string]any{}
	raw, err := b64.DecodeString(parts[0])
	must(t, err)
	must(t, json.Unmarshal(raw, &head))
	jwk, _ := head["jwk"].(map[string]any)
	x, err := b64.DecodeString(jwk["x"].(string))
	must(t, err)
	point, err := key.PublicKey.Bytes()
	must(t, err)
	if head["alg"] != "ES256" || head["typ"] != "JWT" || jwk["kty"] != "EC" || jwk["crv"] != "P-256" || jwk["alg"] != "ES256" ||
		len(head) != 3 || len(jwk) != 5 || string(x) != string(point[1:33]) {
		t.Errorf("header %s", raw)
	}
	claims, err := i.Verify(text)
	must(t, err)
	if claims["eat_profile"] != "tag:github.com,2024:confidential-containers/Trustee" || claims["iss"] != "CoCo-Attestation-Service" ||
		claims["iat"] != json.Number("1767323045") || claims["exp"] != json.Number("1767323345") || c.t.Unix() != 1767323045 {
		t.Errorf("claims %v", claims)
	}
	if got, err := claims.TEEKey(); err != nil || got != pub {
		t.Errorf("TEE key %+v, %v", got, err)
	}
}

func TestTokenExpiresAfterItsLifeAndTheLeeway(t *testing.T) {
	i, _, c := newIssuer(t)
	text, err := i.Issue(nil)
	must(t, err)
	c.t = c.t.Add(5*time.Minute + Leeway)
	if _, err := i.Verify(text); err != nil {
		t.Errorf("at the end of the leeway: %v", err)
	}
	c.t = c.t.Add(time.Second)
	if _, err := i.Verify(text); !errors.Is(err, ErrExpired) || !errors.Is(err, ErrToken) {
		t.Errorf("after it: %v", err)
	}
}

// TestForgeries has one case for each way to make a token without the key.
func TestForgeries(t *testing.T) {
	i, key, _ := newIssuer(t)
	stranger, strangerKey, _ := newIssuer(t)
	mods, _ := submods(t)
	good, err := i.Issue(mods)
	must(t, err)
	if _, err := i.Verify(good); err != nil {
		t.Fatal(err)
	}
	foreign, err := stranger.Issue(mods)
	must(t, err)
	head, payload, sig := split(good)
	spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	must(t, err)
	header := func(text string) string { return b64.EncodeToString([]byte(text)) }
	mac := func(headText string, secret []byte) string {
		h := hmac.New(sha256.New, secret)
		h.Write([]byte(header(headText) + "." + payload))
		return header(headText) + "." + payload + "." + b64.EncodeToString(h.Sum(nil))
	}
	noJWK := signWith(t, jose.SigningKey{Algorithm: jose.ES256, Key: key}, false, payload)
	noExp := signWith(t, jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, Algorithm: "ES256"}}, true, b64.EncodeToString([]byte(`{"submods":{}}`)))
	textExp := signWith(t, jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, Algorithm: "ES256"}}, true, b64.EncodeToString([]byte(`{"exp":"99999999999"}`)))
	noAlg := signWith(t, jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key}}, true, payload)
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	must(t, err)
	es384 := signWith(t, jose.SigningKey{Algorithm: jose.ES384, Key: jose.JSONWebKey{Key: p384, Algorithm: "ES384"}}, true, payload)
	// The stranger's signature under the right key's header.
	ownHeadStrangerSig := resign(t, head+"."+payload, strangerKey)
	for name, text := range map[string]string{
		"empty": "", "no dots": "token", "two parts": head + "." + payload, "four parts": good + ".x",
		"alg none, no signature":          header(`{"alg":"none","typ":"JWT"}`) + "." + payload + ".",
		"alg None in odd case":            header(`{"alg":"nOnE","typ":"JWT"}`) + "." + payload + ".",
		"HS256 keyed with the public key": mac(`{"alg":"HS256","typ":"JWT"}`, spki),
		"HS256 with a key in the header":  mac(`{"alg":"HS256","jwk":{"kty":"oct","k":"AA"}}`, []byte{0}),
		"ES384":                           es384,
		"stranger's key in the header":    foreign,
		"stranger's signature":            ownHeadStrangerSig,
		"no jwk":                          noJWK,
		"jwk without alg":                 noAlg,
		"no exp":                          noExp,
		"exp as text":                     textExp,
		"payload changed":                 head + "." + b64.EncodeToString([]byte(`{"exp":99999999999}`)) + "." + sig,
		"signature cut":                   head + "." + payload + "." + sig[:len(sig)-4],
		"signature changed":               head + "." + payload + "." + flip(sig),
		"signature of zeros":              head + "." + payload + "." + b64.EncodeToString(make([]byte, 64)),
		"JSON form":                       `{"protected":"` + head + `","payload":"` + payload + `","signature":"` + sig + `"}`,
		"oversized":                       good + strings.Repeat("A", MaxBytes),
		"padding":                         good + "=",
	} {
		if c, err := i.Verify(text); !errors.Is(err, ErrToken) {
			t.Errorf("%s: claims %v, %v", name, c, err)
		}
	}
}

func split(text string) (head, payload, sig string) {
	p := strings.Split(text, ".")
	return p[0], p[1], p[2]
}

func flip(sig string) string {
	if sig[0] == 'A' {
		return "B" + sig[1:]
	}
	return "A" + sig[1:]
}

func signWith(t *testing.T, key jose.SigningKey, embed bool, payload string) string {
	t.Helper()
	s, err := jose.NewSigner(key, &jose.SignerOptions{EmbedJWK: embed})
	must(t, err)
	raw, err := b64.DecodeString(payload)
	must(t, err)
	signed, err := s.Sign(raw)
	must(t, err)
	text, err := signed.CompactSerialize()
	must(t, err)
	return text
}

func resign(t *testing.T, input string, key *ecdsa.PrivateKey) string {
	t.Helper()
	digest := sha256.Sum256([]byte(input))
	r, s, err := ecdsa.Sign(rand.Reader, key, digest[:])
	must(t, err)
	sig := make([]byte, 64)
	r.FillBytes(sig[:32])
	s.FillBytes(sig[32:])
	return input + "." + b64.EncodeToString(sig)
}

func TestTokenWithoutUsableTEEKey(t *testing.T) {
	for name, mods := range map[string]any{
		"no submods": nil, "device only": map[string]any{"gpu0": map[string]any{}},
		"submods is text": "x", "key is text": annotated("key"), "key off the curve": annotated(map[string]any{
			"kty": "EC", "crv": "P-256", "alg": "ECDH-ES+A256KW", "x": b64.EncodeToString(make([]byte, 32)), "y": b64.EncodeToString(make([]byte, 32))}),
	} {
		if k, err := (Claims{"submods": mods}).TEEKey(); err == nil {
			t.Errorf("%s: %+v", name, k)
		}
	}
}

func annotated(key any) any {
	return map[string]any{"cpu0": map[string]any{"ear.veraison.annotated-evidence": map[string]any{
		"runtime_data_claims": map[string]any{"tee-pubkey": key}}}}
}

func TestIssueRefusesATokenNobodyCouldSend(t *testing.T) {
	i, _, _ := newIssuer(t)
	if _, err := i.Issue(map[string]any{"cpu0": strings.Repeat("x", MaxBytes)}); !errors.Is(err, ErrTooLarge) {
		t.Error(err)
	}
}

func TestKeyIsMadeOnceAndChecked(t *testing.T) {
	s := store.NewMemory()
	a, err := LoadKey(t.Context(), s)
	must(t, err)
	b, err := LoadKey(t.Context(), s)
	must(t, err)
	if !a.Equal(b) {
		t.Error("two loads, two keys")
	}
	if text, err := createKey(t.Context(), s); err != nil {
		t.Error(err)
	} else if c, err := parseKey(text); err != nil || !c.Equal(a) {
		t.Errorf("a racing creation replaced the key: %v", err)
	}
	for _, bad := range []string{"", "no PEM", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"} {
		must(t, s.Put(t.Context(), store.RelyingParty, keyName, []byte(bad)))
		if _, err := LoadKey(t.Context(), s); err == nil {
			t.Errorf("loaded %q", bad)
		}
	}
}

func FuzzVerify(f *testing.F) {
	i, _, _ := newIssuer(f)
	mods, _ := submods(f)
	good, err := i.Issue(mods)
	must(f, err)
	f.Add(good)
	f.Add("a.b.c")
	f.Fuzz(func(t *testing.T, text string) {
		if _, err := i.Verify(text); err == nil && text != good {
			// ES256 signatures are malleable (s and n-s), but not their text.
			t.Errorf("accepted %q", text)
		}
	})
}

func BenchmarkIssueAndVerify(b *testing.B) {
	i, _, _ := newIssuer(b)
	mods, _ := submods(b)
	b.ReportAllocs()
	for b.Loop() {
		text, err := i.Issue(mods)
		must(b, err)
		_, err = i.Verify(text)
		must(b, err)
	}
}
