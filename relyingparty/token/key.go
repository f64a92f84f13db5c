package token

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/relyingparty/store"
)

// keyName is where the signing key is in store.RelyingParty: PKCS#8 in PEM.
const keyName = "token-signing-key.pem"

// LoadKey returns the signing key of the store, making one on first use. With
// one store, tokens outlive a restart and count at every relying party on it.
func LoadKey(ctx context.Context, s store.Store) (*ecdsa.PrivateKey, error) {
	text, err := s.Get(ctx, store.RelyingParty, keyName)
	if errors.Is(err, store.ErrNotFound) {
		text, err = createKey(ctx, s)
	}
	if err != nil {
		return nil, fmt.Errorf("loading the token signing key: %w", err)
	}
	defer podvm.Secret(text).Wipe()
	return parseKey(text)
}

// createKey stores a new key, or returns the one another process stored first.
func createKey(ctx context.Context, s store.Store) ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	defer podvm.Secret(der).Wipe()
	text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	err = s.Create(ctx, store.RelyingParty, keyName, text)
	if errors.Is(err, store.ErrExists) {
		return s.Get(ctx, store.RelyingParty, keyName)
	}
	return text, err
}

func parseKey(text []byte) (*ecdsa.PrivateKey, error) {
	block, rest := pem.Decode(text)
	if block == nil || block.Type != "PRIVATE KEY" || len(rest) != 0 {
		return nil, fmt.Errorf("loading the token signing key: %s is not one PKCS#8 PEM block", keyName)
	}
	defer podvm.Secret(block.Bytes).Wipe()
	any8, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("loading the token signing key: %w", err)
	}
	key, ok := any8.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, fmt.Errorf("loading the token signing key: %s is not a P-256 key", keyName)
	}
	return key, nil
}
