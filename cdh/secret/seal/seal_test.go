package seal

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"strings"
	"testing"

	"github.com/sealpod/sealpod/cdh/kms"
	"github.com/sealpod/sealpod/cdh/secret"
	"github.com/sealpod/sealpod/podvm"
)

const keyURI = "kbs:///acme/keys/signing"

// guest is what a guest has: the signing key, a vault secret, and a service
// that inverts the bits of keys.
type guest struct {
	public []byte
	asked  []string
}

func (g *guest) Resource(_ context.Context, uri string) (podvm.Secret, error) {
	if uri == keyURI {
		return bytes.Clone(g.public), nil
	}
	return podvm.Secret("content of " + uri), nil
}

func (g *guest) Open(_ context.Context, provider string, settings kms.Object) (kms.Provider, error) {
	g.asked = append(g.asked, fmt.Sprintf("open %s %s", provider, settings["region"]))
	return g, nil
}

func invert(b []byte) []byte {
	out := make([]byte, len(b))
	for i := range b {
		out[i] = ^b[i]
	}
	return out
}

func (g *guest) Decrypt(_ context.Context, keyID string, ciphertext []byte, annotations kms.Object) (podvm.Secret, error) {
	g.asked = append(g.asked, fmt.Sprintf("decrypt %s %s", keyID, annotations["iv"]))
	return invert(ciphertext), nil
}

func (g *guest) Secret(_ context.Context, name string, _ kms.Object) (podvm.Secret, error) {
	return podvm.Secret("content of " + name), nil
}

// newSigner returns a fresh signer and a guest that knows it.
func newSigner(t testing.TB) (Signer, *guest) {
	t.Helper()
	private, public, err := NewKey("signing")
	if err != nil {
		t.Fatal(err)
	}
	key, err := ParseKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return Signer{Key: key, KeyID: keyURI}, &guest{public: public}
}

func (g *guest) unseal(t testing.TB, text string) string {
	t.Helper()
	plain, err := secret.New(secret.Config{Resources: g, KMS: g, Log: slog.New(slog.DiscardHandler)}).Unseal(t.Context(), []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return string(plain)
}

// payload returns the decoded header and payload of a sealed secret.
func payload(t testing.TB, text string) (header, payload string) {
	t.Helper()
	parts := strings.Split(text, ".")
	if len(parts) != 4 || parts[0] != "sealed" || strings.ContainsAny(text, "=\r\n ") {
		t.Fatalf("not a sealed secret: %q", text)
	}
	var out [2]string
	for i, p := range parts[1:3] {
		b, err := base64.RawURLEncoding.Strict().DecodeString(p)
		if err != nil {
			t.Fatal(err)
		}
		out[i] = string(b)
	}
	return out[0], out[1]
}

func TestVault(t *testing.T) {
	s, g := newSigner(t)
	text, err := Vault{
		Name: "kbs:///a/b?c=<&>", Provider: "kbs",
		Settings: json.RawMessage(` {"z": 1, "a": {"<": "é"} } `), Annotations: json.RawMessage(`{}`),
	}.Seal(s)
	if err != nil {
		t.Fatal(err)
	}
	head, body := payload(t, text)
	if want := `{"b64":true,"alg":"ES256","kid":"kbs:///acme/keys/signing"}`; head != want {
		t.Errorf("header %s, want %s", head, want)
	}
	if want := `{"version":"0.1.0","type":"vault","name":"kbs:///a/b?c=<&>","provider":"kbs","provider_settings":{"z":1,"a":{"<":"é"}},"annotations":{}}`; body != want {
		t.Errorf("payload\n%s, want\n%s", body, want)
	}
	if got := g.unseal(t, text); got != "content of kbs:///a/b?c=<&>" {
		t.Errorf("unsealed %q", got)
	}
}

func TestEnvelope(t *testing.T) {
	s, g := newSigner(t)
	var seen []podvm.Secret
	e := Envelope{KeyID: "alias/acme", Provider: "aliyun", Encrypt: func(_ context.Context, keyID string, key podvm.Secret) ([]byte, json.RawMessage, json.RawMessage, error) {
		seen = append(seen, bytes.Clone(key))
		defer func() { seen = append(seen, key) }()
		return invert(key), json.RawMessage(`{"region":"r"}`), json.RawMessage(`{"iv":"x"}`), nil
	}}
	texts := map[string]bool{}
	for _, plain := range []string{"", "a", strings.Repeat("secret", 1000), "a"} {
		text, err := e.Seal(t.Context(), s, podvm.Secret(plain))
		if err != nil {
			t.Fatal(err)
		}
		if got := g.unseal(t, text); got != plain {
			t.Errorf("unsealed %q, want %q", got, plain)
		}
		_, body := payload(t, text)
		var names []string
		for d := json.NewDecoder(strings.NewReader(body)); ; {
			tok, err := d.Token()
			if err != nil {
				break
			}
			if name, ok := tok.(string); ok && d.More() {
				names = append(names, name)
			}
		}
		if got := strings.Join(names, " "); !strings.HasPrefix(got, "version 0.1.0 type envelope key_id alias/acme encrypted_key ") || !strings.Contains(got, " wrap_type A256GCM iv ") {
			t.Errorf("members %s", got)
		}
		if !strings.HasSuffix(body, `","provider":"aliyun","provider_settings":{"region":"r"},"annotations":{"iv":"x"}}`) {
			t.Errorf("payload %s", body)
		}
		texts[body] = true
	}
	if len(texts) != 4 || bytes.Equal(seen[2], seen[6]) {
		t.Error("a data key or IV was used twice")
	}
	for i := 1; i < len(seen); i += 2 {
		if !bytes.Equal(seen[i], make([]byte, 32)) || len(seen[i-1]) != 32 {
			t.Error("a data key was not wiped, or is not of 32 bytes")
		}
	}
	if g.asked[1] != `decrypt alias/acme "x"` {
		t.Errorf("asked %q", g.asked)
	}
}

func TestSealRefuses(t *testing.T) {
	s, _ := newSigner(t)
	gone := errors.New("gone")
	encrypt := func(settings, annotations string, err error) Envelope {
		return Envelope{Encrypt: func(context.Context, string, podvm.Secret) ([]byte, json.RawMessage, json.RawMessage, error) {
			return nil, json.RawMessage(settings), json.RawMessage(annotations), err
		}}
	}
	for name, tt := range map[string]struct {
		seal func() (string, error)
		is   error
	}{
		"settings that are a list": {func() (string, error) { return Vault{Settings: json.RawMessage("[]")}.Seal(s) }, ErrObject},
		"annotations null":         {func() (string, error) { return Vault{Annotations: json.RawMessage("null")}.Seal(s) }, ErrObject},
		"a setting twice":          {func() (string, error) { return Vault{Settings: json.RawMessage(`{"a":1,"a":2}`)}.Seal(s) }, ErrObject},
		"no JSON":                  {func() (string, error) { return Vault{Settings: json.RawMessage(`{"a":1`)}.Seal(s) }, ErrObject},
		"empty text as settings":   {func() (string, error) { return Vault{Settings: json.RawMessage("")}.Seal(s) }, ErrObject},
		"a service's bad settings": {func() (string, error) { return encrypt("1", "{}", nil).Seal(t.Context(), s, nil) }, ErrObject},
		"a service that fails":     {func() (string, error) { return encrypt("{}", "{}", gone).Seal(t.Context(), s, nil) }, gone},
		"a secret too large": {func() (string, error) {
			return encrypt("{}", "{}", nil).Seal(t.Context(), s, make(podvm.Secret, MaxEnvelope+1))
		}, ErrTooLarge},
		"a name too large": {func() (string, error) { return Vault{Name: strings.Repeat("x", 4<<20)}.Seal(s) }, ErrTooLarge},
		"a key id too large": {func() (string, error) {
			return Vault{}.Seal(Signer{Key: s.Key, KeyID: strings.Repeat("x", 16<<10)})
		}, ErrTooLarge},
	} {
		if text, err := tt.seal(); !errors.Is(err, tt.is) || text != "" {
			t.Errorf("%s: %.40q, %v, want %v", name, text, err, tt.is)
		}
	}
}

func TestTheLargestEnvelopeFits(t *testing.T) {
	s, g := newSigner(t)
	e := Envelope{Provider: "x", Encrypt: func(_ context.Context, _ string, key podvm.Secret) ([]byte, json.RawMessage, json.RawMessage, error) {
		return invert(key), nil, nil, nil
	}}
	plain := bytes.Repeat([]byte("x"), MaxEnvelope)
	text, err := e.Seal(t.Context(), s, plain)
	if err != nil {
		t.Fatal(err)
	}
	if got := g.unseal(t, text); got != string(plain) {
		t.Errorf("%d bytes came out", len(got))
	}
}

func TestKeys(t *testing.T) {
	private, public, err := NewKey("a<b>")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.HasPrefix(private, []byte("{\n  \"kty\": \"EC\",\n  \"crv\": \"P-256\",\n  \"alg\": \"ES256\",\n  \"use\": \"sig\",\n  \"kid\": \"a<b>\",\n  \"d\": \"")) {
		t.Errorf("private key %s", private)
	}
	if !bytes.HasPrefix(public, []byte("{\n  \"kty\": \"EC\",\n  \"crv\": \"P-256\",\n  \"alg\": \"ES256\",\n  \"use\": \"sig\",\n  \"kid\": \"a<b>\",\n  \"x\": \"")) ||
		!bytes.HasSuffix(public, []byte("\"\n}\n")) || bytes.Contains(public, []byte(`"d"`)) {
		t.Errorf("public key %s", public)
	}
	var k struct{ D, X, Y string }
	if err := json.Unmarshal(private, &k); err != nil {
		t.Fatal(err)
	}
	num := func(s string) *big.Int {
		b, err := base64.RawURLEncoding.DecodeString(s)
		if err != nil || len(b) != 32 {
			t.Fatalf("%q: %d bytes, %v", s, len(b), err)
		}
		return new(big.Int).SetBytes(b)
	}
	x, y := elliptic.P256().ScalarBaseMult(num(k.D).Bytes()) //nolint:staticcheck // an implementation of its own is the point
	if x.Cmp(num(k.X)) != 0 || y.Cmp(num(k.Y)) != 0 {
		t.Error("the halves do not belong together")
	}
	edit := func(old, with string) string {
		out := strings.Replace(string(private), old, with, 1)
		if out == string(private) {
			t.Fatalf("%q is not in it", old)
		}
		return out
	}
	_, other, err := NewKey("other")
	if err != nil {
		t.Fatal(err)
	}
	var o struct{ X string }
	if err := json.Unmarshal(other, &o); err != nil {
		t.Fatal(err)
	}
	for name, raw := range map[string]string{
		"the public half":       string(public),
		"PEM":                   "-----BEGIN EC PRIVATE KEY-----",
		"another curve":         edit("P-256", "P-384"),
		"another type":          edit(`"EC"`, `"RSA"`),
		"d padded":              edit(k.D, k.D+"="),
		"d cut short":           edit(k.D, k.D[:40]),
		"d zero":                edit(k.D, strings.Repeat("A", 43)),
		"d beyond the order":    edit(k.D, strings.Repeat("_", 42)+"8"),
		"x of another key":      edit(k.X, o.X),
		"no y":                  edit(`"y"`, `"yy"`),
		"bytes after it":        string(private) + "x",
		"d twice":               edit(`"d"`, `"d": "AAAA", "d"`),
		"an encrypted key file": `{"ciphertext":"x"}`,
	} {
		if _, err := ParseKey([]byte(raw)); !errors.Is(err, ErrKey) || strings.Contains(err.Error(), k.D[:8]) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAKeyOfAnotherTypeIsNamedByIt(t *testing.T) {
	for range 20 {
		if _, err := ParseKey([]byte(`{"kty":"RSA","n":"AQAB","e":"AQAB"}`)); err == nil || !strings.Contains(err.Error(), `kty "RSA": want EC`) {
			t.Fatal(err)
		}
	}
}

func FuzzParseKey(f *testing.F) {
	private, public, err := NewKey("k")
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(private))
	f.Add(public)
	f.Fuzz(func(t *testing.T, raw []byte) {
		key, err := ParseKey(raw)
		if err == nil && !ecdsa.VerifyASN1(&key.PublicKey, make([]byte, 32), sign(t, key)) {
			t.Fatal("the key does not sign")
		}
	})
}

func sign(t *testing.T, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	der, err := key.Sign(nil, make([]byte, 32), crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	return der
}
