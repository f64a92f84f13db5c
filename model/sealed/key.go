package sealed

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/sealpod/sealpod/podvm"
)

// KeySize is the length of a model's key, and of those derived from it, in
// bytes.
const KeySize = 32

// MaxKey caps the text of a key, in bytes.
const MaxKey = 4096

// ManifestObject is the name of the manifest among a model's objects.
const ManifestObject = "sealed-model"

// What keys are derived for, and what the manifest is bound to.
const (
	contentInfo  = "sealed-model/v1 content"
	manifestInfo = "sealed-model/v1 manifest"
	manifestAD   = "sealed-model/v1"
)

// Key is the key of one model, or of the models one owner may exchange for one
// another.
type Key struct {
	root podvm.Secret
	pin  []byte // SHA-256 of the stored manifest, or nil
}

// jwk is a key as JSON: RFC 7517, kty "oct", and the pin.
type jwk struct {
	Kty      string `json:"kty"`
	K        string `json:"k"`
	Manifest string `json:"manifest"`
}

// ParseKey reads a key: 32 raw bytes, their base64url with or without padding,
// or a JSON Web Key of type "oct", which may pin one version of the model as
// "manifest":"sha256:HEX". White space around text is ignored. Errors: ErrKey.
func ParseKey(raw []byte) (*Key, error) {
	if len(raw) > MaxKey {
		return nil, fmt.Errorf("%w: longer than %d bytes", ErrKey, MaxKey)
	}
	if len(raw) == KeySize {
		return &Key{root: bytes.Clone(raw)}, nil
	}
	text := bytes.TrimSpace(raw)
	if len(text) == 0 || text[0] != '{' {
		root, err := decodeKey(text)
		if err != nil {
			return nil, err
		}
		return &Key{root: root}, nil
	}
	var j jwk
	if err := json.Unmarshal(text, &j); err != nil {
		// The decoder's own words may repeat a piece of the key.
		return nil, fmt.Errorf("%w: not valid JSON", ErrKey)
	}
	if j.Kty != "oct" {
		return nil, fmt.Errorf("%w: a JSON Web Key of a type other than oct", ErrKey)
	}
	root, err := decodeKey([]byte(j.K))
	if err != nil {
		return nil, err
	}
	k := &Key{root: root}
	if j.Manifest == "" {
		return k, nil
	}
	digest, ok := strings.CutPrefix(j.Manifest, "sha256:")
	if k.pin, err = hex.DecodeString(digest); !ok || err != nil || len(k.pin) != sha256.Size {
		k.Wipe()
		return nil, fmt.Errorf("%w: its manifest is not sha256: and 64 hexadecimal digits", ErrKey)
	}
	return k, nil
}

func decodeKey(text []byte) (podvm.Secret, error) {
	text = bytes.TrimRight(text, "=")
	root := make(podvm.Secret, base64.RawURLEncoding.DecodedLen(len(text)))
	n, err := base64.RawURLEncoding.Strict().Decode(root, text)
	if err != nil || n != KeySize {
		root.Wipe()
		return nil, fmt.Errorf("%w: want %d bytes, raw or as base64url, or a JSON Web Key", ErrKey, KeySize)
	}
	return root, nil
}

// MeansPin tells whether raw is a JSON Web Key that would name a manifest, also when
// ParseKey does not take it.
func MeansPin(raw []byte) bool {
	var j struct {
		Manifest json.RawMessage `json:"manifest"`
	}
	return json.Unmarshal(raw, &j) == nil && j.Manifest != nil
}

// Pinned tells whether the key names the one manifest it goes with.
func (k *Key) Pinned() bool { return k.pin != nil }

// JWK returns the key as a JSON Web Key that names the manifest whose pin is
// "sha256:HEX", or none for "". The caller wipes it.
func (k *Key) JWK(pin string) podvm.Secret {
	out := podvm.Secret(`{"kty":"oct","k":"`)
	out = base64.RawURLEncoding.AppendEncode(slices.Grow(out, 256), k.root)
	out = append(out, '"')
	if pin != "" {
		out = append(out, `,"manifest":"`+pin+`"`...)
	}
	return append(out, '}')
}

// CheckPin compares the stored bytes of a manifest with the pin, if there is
// one. Errors: ErrPin.
func (k *Key) CheckPin(stored []byte) error {
	if k.pin == nil {
		return nil
	}
	if sum := sha256.Sum256(stored); subtle.ConstantTimeCompare(sum[:], k.pin) != 1 {
		return ErrPin
	}
	return nil
}

// Wipe overwrites the key.
func (k *Key) Wipe() { k.root.Wipe() }

// Manifest returns the cipher of the manifest with this header.
func (k *Key) Manifest(h Header) (*Cipher, error) {
	return k.cipher(manifestInfo, h, []byte(manifestAD))
}

// Content returns the cipher of the file path in the model id with this header.
func (k *Key) Content(h Header, id, path string) (*Cipher, error) {
	return k.cipher(contentInfo, h, []byte(manifestAD+"\x00"+id+"\x00"+path))
}

// cipher derives the key of one object, as Tink's AES-GCM-HKDF streaming AEAD
// does from its key and associated data.
func (k *Key) cipher(use string, h Header, ad []byte) (*Cipher, error) {
	shared, err := hkdf.Key(sha256.New, k.root, nil, use, KeySize)
	if err != nil {
		return nil, fmt.Errorf("deriving a key: %w", err)
	}
	defer clear(shared)
	key, err := hkdf.Key(sha256.New, shared, h.salt(), string(ad), KeySize)
	if err != nil {
		return nil, fmt.Errorf("deriving a key: %w", err)
	}
	defer clear(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("preparing AES: %w", err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("preparing AES-GCM: %w", err)
	}
	c := &Cipher{aead: aead}
	copy(c.prefix[:], h[1+saltSize:])
	return c, nil
}
