package seal

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/sealpod/sealpod/cdh/internal/datakey"
	"github.com/sealpod/sealpod/cdh/internal/strict"
	"github.com/sealpod/sealpod/podvm"
)

var (
	// ErrTooLarge says that a secret does not fit into what a guest takes.
	ErrTooLarge = errors.New("the sealed secret would be too large")
	// ErrObject says that settings or annotations are no JSON object whose
	// names all differ.
	ErrObject = errors.New("unusable JSON object")
)

// Limits in bytes.
const (
	// MaxEnvelope caps the content of an envelope, so that the text stays below
	// the 4 MiB of one message to the data hub after base64 twice.
	MaxEnvelope = 2 << 20
	maxSealed   = 4<<20 - 1<<10 // of the text, with room for the rest of a message
	maxHeader   = 16 << 10      // of the encoded header, which guests cap
	ivSize      = 12
)

// Signer signs sealed secrets.
type Signer struct {
	Key *ecdsa.PrivateKey // P-256
	// KeyID is where guests find the public half: a resource URI, or the name
	// of a file below /run/confidential-containers/cdh/sealed-secret.
	KeyID string
}

// Vault names a secret that a vault holds and that must be put there
// separately.
type Vault struct {
	Name     string // a resource URI for kbs, else the service's own name
	Provider string // kbs, aliyun, aws, …
	// Settings and Annotations are JSON objects; nil means {}.
	Settings, Annotations json.RawMessage
}

// Envelope says which key of which service a secret is sealed under.
type Envelope struct {
	KeyID    string
	Provider string
	// Encrypt has the service encrypt a data key of 32 bytes and returns the
	// ciphertext and what the guest needs to have it decrypted, JSON objects;
	// nil means {}. It must not keep the data key.
	Encrypt func(ctx context.Context, keyID string, dataKey podvm.Secret) (ciphertext []byte, settings, annotations json.RawMessage, err error)
}

// Seal returns the sealed secret, a text without a line end. Errors:
// ErrTooLarge, ErrObject.
func (v Vault) Seal(s Signer) (string, error) {
	settings, annotations, err := objects(v.Settings, v.Annotations)
	if err != nil {
		return "", err
	}
	return s.sign(struct {
		Version     string          `json:"version"`
		Type        string          `json:"type"`
		Name        string          `json:"name"`
		Provider    string          `json:"provider"`
		Settings    json.RawMessage `json:"provider_settings"`
		Annotations json.RawMessage `json:"annotations"`
	}{"0.1.0", "vault", v.Name, v.Provider, settings, annotations})
}

// Seal encrypts secret with AES-256-GCM under a fresh data key and IV, has the
// service encrypt the data key, and returns the sealed secret, a text without a
// line end. Errors: ErrTooLarge, ErrObject, and those of Encrypt.
func (e Envelope) Seal(ctx context.Context, s Signer, secret podvm.Secret) (string, error) {
	if len(secret) > MaxEnvelope {
		return "", fmt.Errorf("%w: %d bytes, at most %d fit", ErrTooLarge, len(secret), MaxEnvelope)
	}
	key := make(podvm.Secret, datakey.Size)
	defer key.Wipe()
	iv := make([]byte, ivSize)
	_, _ = rand.Read(key) // ends the program rather than fail
	_, _ = rand.Read(iv)
	block, err := aes.NewCipher(key)
	if err != nil {
		return "", fmt.Errorf("preparing AES: %w", err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		return "", fmt.Errorf("preparing AES-GCM: %w", err)
	}
	data := gcm.Seal(nil, iv, secret, nil)
	wrapped, settings, annotations, err := e.Encrypt(ctx, e.KeyID, key)
	if err != nil {
		return "", fmt.Errorf("encrypting the data key: %w", err)
	}
	if settings, annotations, err = objects(settings, annotations); err != nil {
		return "", err
	}
	return s.sign(struct {
		Version       string          `json:"version"`
		Type          string          `json:"type"`
		KeyID         string          `json:"key_id"`
		EncryptedKey  []byte          `json:"encrypted_key"` // as standard base64
		EncryptedData []byte          `json:"encrypted_data"`
		WrapType      string          `json:"wrap_type"`
		IV            []byte          `json:"iv"`
		Provider      string          `json:"provider"`
		Settings      json.RawMessage `json:"provider_settings"`
		Annotations   json.RawMessage `json:"annotations"`
	}{"0.1.0", "envelope", e.KeyID, notNil(wrapped), data, datakey.GCM, iv, e.Provider, settings, annotations})
}

// sign writes payload as a signed text.
func (s Signer) sign(payload any) (string, error) {
	header, err := compact(struct {
		B64 bool   `json:"b64"`
		ALG string `json:"alg"`
		KID string `json:"kid"`
	}{true, "ES256", s.KeyID})
	if err != nil {
		return "", err
	}
	body, err := compact(payload)
	if err != nil {
		return "", err
	}
	head := b64u.EncodeToString(header)
	if len(head) > maxHeader {
		return "", fmt.Errorf("%w: the key id has %d bytes", ErrTooLarge, len(s.KeyID))
	}
	signed := head + "." + b64u.EncodeToString(body)
	hash := sha256.Sum256([]byte(signed))
	a, b, err := ecdsa.Sign(rand.Reader, s.Key, hash[:])
	if err != nil {
		return "", fmt.Errorf("signing: %w", err)
	}
	signature := make([]byte, 2*scalarSize)
	a.FillBytes(signature[:scalarSize])
	b.FillBytes(signature[scalarSize:])
	text := "sealed." + signed + "." + b64u.EncodeToString(signature)
	if len(text) > maxSealed {
		return "", fmt.Errorf("%w: %d bytes, at most %d fit", ErrTooLarge, len(text), maxSealed)
	}
	return text, nil
}

// compact writes JSON without white space and without escapes for HTML.
func compact(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, fmt.Errorf("encoding the secret: %w", err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// objects checks provider settings and annotations as strictly as guests do, so
// that what is sealed can be unsealed.
func objects(settings, annotations json.RawMessage) (s, a json.RawMessage, err error) {
	if s, err = object("provider settings", settings); err != nil {
		return nil, nil, err
	}
	a, err = object("annotations", annotations)
	return s, a, err
}

func object(what string, raw json.RawMessage) (json.RawMessage, error) {
	if raw == nil {
		return json.RawMessage("{}"), nil
	}
	if _, err := strict.Parse(raw); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrObject, what, err)
	}
	return raw, nil
}

// notNil keeps an empty ciphertext from being written as null.
func notNil(b []byte) []byte { return append([]byte{}, b...) }
