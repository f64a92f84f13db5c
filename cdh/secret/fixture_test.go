package secret

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"github.com/sealpod/sealpod/cdh/kms"
	"github.com/sealpod/sealpod/podvm"
)

const keyURI = "kbs:///acme/keys/signing"

// world is what an Unsealer sees, with everything it gave out.
type world struct {
	key *ecdsa.PrivateKey // whose public half is at keyURI

	mu        sync.Mutex
	resources map[string][]byte
	asked     []string       // resources, and "open", "decrypt", "secret" of the KMS
	given     []podvm.Secret // keys, which have to be wiped
	dek       []byte         // what the KMS decrypts any key to; nil: refuse
	unsupport bool           // the KMS cannot do it
}

func newWorld(t testing.TB) *world {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{key: key, dek: bytes.Repeat([]byte{7}, 32)}
	w.resources = map[string][]byte{keyURI: jwkOf(t, key).json(t), "kbs:///acme/db/password": []byte("hunter2")}
	return w
}

func (w *world) Resource(ctx context.Context, uri string) (podvm.Secret, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked = append(w.asked, uri)
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("asking: %w", err) // without a sentence
	}
	b, ok := w.resources[uri]
	if !ok {
		return nil, podvm.Explain(errAbsent, "no such resource: x")
	}
	s := podvm.Secret(bytes.Clone(b))
	if uri == keyURI {
		w.given = append(w.given, s)
	}
	return s, nil
}

func (w *world) Open(_ context.Context, provider string, settings kms.Object) (kms.Provider, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked = append(w.asked, fmt.Sprintf("open %s %s", provider, settings["region"]))
	if provider != "aws" {
		return nil, podvm.Explain(kms.ErrUnknownProvider, "unknown KMS provider")
	}
	return w, nil
}

func (w *world) Decrypt(_ context.Context, keyID string, ciphertext []byte, annotations kms.Object) (podvm.Secret, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked = append(w.asked, fmt.Sprintf("decrypt %s %s %s", keyID, ciphertext, annotations["context"]))
	if w.unsupport {
		return nil, podvm.Explain(kms.ErrUnsupported, "that client cannot decrypt")
	}
	if w.dek == nil {
		return nil, podvm.Explain(kms.ErrService, "AWS KMS refused")
	}
	s := podvm.Secret(bytes.Clone(w.dek))
	w.given = append(w.given, s)
	return s, nil
}

func (w *world) Secret(_ context.Context, name string, annotations kms.Object) (podvm.Secret, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked = append(w.asked, fmt.Sprintf("secret %s %s", name, annotations["version_id"]))
	return podvm.Secret("from aws"), nil
}

// unsealer is one in this world, on a machine below root.
func (w *world) unsealer(root string, skip bool) *Unsealer {
	return New(Config{Resources: w, KMS: w, Host: podvm.Host{Root: root}, SkipVerification: skip, Log: slog.New(slog.DiscardHandler)})
}

// object is JSON in the making.
type object map[string]any

func (o object) with(name string, value any) object {
	out := object{name: value}
	for k, v := range o {
		if k != name {
			out[k] = v
		}
	}
	return out
}

func (o object) without(name string) object {
	out := o.with(name, nil)
	delete(out, name)
	return out
}

func (o object) json(t testing.TB) []byte {
	t.Helper()
	b, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func b64Decode(s string) ([]byte, error) { return base64.RawURLEncoding.DecodeString(s) }

// jwkOf is the public half of key.
func jwkOf(t testing.TB, key *ecdsa.PrivateKey) object {
	t.Helper()
	point, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return object{"kty": "EC", "crv": "P-256", "x": b64(point[1:33]), "y": b64(point[33:])}
}

var (
	header = object{"b64": true, "alg": "ES256", "kid": keyURI}
	vault  = object{
		"version": "0.1.0", "type": "vault", "name": "kbs:///acme/db/password",
		"provider": "kbs", "provider_settings": object{}, "annotations": object{},
	}
)

// sealedData is plain under the data key of newWorld.
func sealedData(t testing.TB, wrap string, iv []byte, plain string) string {
	t.Helper()
	block, err := aes.NewCipher(bytes.Repeat([]byte{7}, 32))
	if err != nil {
		t.Fatal(err)
	}
	if wrap == "A256CTR" {
		out := make([]byte, len(plain))
		cipher.NewCTR(block, iv).XORKeyStream(out, []byte(plain))
		return base64.StdEncoding.EncodeToString(out)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(gcm.Seal(nil, iv, []byte(plain), nil))
}

func envelope(t testing.TB, wrap string) object {
	iv := bytes.Repeat([]byte{9}, 12)
	if wrap == "A256CTR" {
		iv = bytes.Repeat([]byte{0xff}, 16)
	}
	return object{
		"version": "0.1.0", "type": "envelope", "key_id": "alias/acme",
		"encrypted_key":  base64.StdEncoding.EncodeToString([]byte("wrapped")),
		"encrypted_data": sealedData(t, wrap, iv, "in the envelope"),
		"wrap_type":      wrap, "iv": base64.StdEncoding.EncodeToString(iv),
		"provider": "aws", "provider_settings": object{"region": "eu-1"}, "annotations": object{"context": "c"},
	}
}

// signature signs header and payload as they are.
func (w *world) signature(t testing.TB, signed string) []byte {
	t.Helper()
	hash := sha256.Sum256([]byte(signed))
	r, s, err := ecdsa.Sign(rand.Reader, w.key, hash[:])
	if err != nil {
		t.Fatal(err)
	}
	return append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
}

// sealRaw is a sealed secret of any header and payload.
func (w *world) sealRaw(t testing.TB, header, payload []byte) string {
	t.Helper()
	signed := b64(header) + "." + b64(payload)
	return "sealed." + signed + "." + b64(w.signature(t, signed))
}

func (w *world) seal(t testing.TB, payload object) string {
	t.Helper()
	return w.sealRaw(t, header.json(t), payload.json(t))
}

// fake is a text that only skipping verification takes.
func fake(payload []byte) string {
	return strings.Join([]string{"sealed", "fakejwsheader", b64(payload), "fakesignature"}, ".")
}
