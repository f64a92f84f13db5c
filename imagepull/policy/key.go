package policy

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"

	"github.com/sigstore/sigstore/pkg/cryptoutils"

	"github.com/sealpod/sealpod/podvm"
)

// maxKey caps one public key document.
const maxKey = 64 << 10

// publicKey is one key of a sigstoreSigned requirement.
type publicKey struct {
	name     string            // shown in decisions: its URI, or where it stands and its fingerprint
	uri      string            // fetched through Sources.Key when verifier is nil
	verifier signatureVerifier // nil until known
}

// load returns the verifier of the key, fetching the key if it is not inline.
func (k publicKey) load(ctx context.Context, src Sources) (signatureVerifier, error) {
	if k.verifier != nil {
		return k.verifier, nil
	}
	raw, err := src.Key(ctx, k.uri)
	if err != nil {
		return nil, fmt.Errorf("fetching the public key %s: %w", k.name, err)
	}
	v, _, err := parseKey(raw)
	if err != nil {
		return nil, fmt.Errorf("reading the public key %s: %w", k.name, err)
	}
	return v, nil
}

// parseInlineKey reads keyData: PEM as upstream takes it, or base64 of PEM as
// containers/image takes it and upstream's documentation says.
func parseInlineKey(data string) (v signatureVerifier, fingerprint string, err error) {
	raw := []byte(data)
	if !strings.Contains(data, "-----BEGIN") {
		if raw, err = base64.StdEncoding.DecodeString(data); err != nil {
			return nil, "", errors.New("neither PEM nor base64 of PEM")
		}
	}
	return parseKey(raw)
}

// parseKey reads exactly one PEM public key (SPKI, or PKCS #1 for RSA). The
// fingerprint is "SHA256:" and the unpadded base64 of the SPKI's SHA-256.
func parseKey(raw []byte) (v signatureVerifier, fingerprint string, err error) {
	if len(raw) > maxKey {
		return nil, "", fmt.Errorf("%w: %d bytes", podvm.ErrTooLarge, len(raw))
	}
	block, rest := pem.Decode(raw)
	switch {
	case block == nil:
		return nil, "", errors.New("not PEM")
	case strings.Contains(block.Type, "PRIVATE"):
		return nil, "", errors.New("a private key where a public one belongs")
	case bytes.Contains(rest, []byte("-----BEGIN")):
		return nil, "", errors.New("more than one PEM block")
	}
	pub, err := cryptoutils.UnmarshalPEMToPublicKey(raw)
	if err != nil {
		return nil, "", err
	}
	if v, err = newVerifier(pub); err != nil {
		return nil, "", err
	}
	der, err := cryptoutils.MarshalPublicKeyToDER(pub)
	if err != nil {
		return nil, "", err
	}
	sum := sha256.Sum256(der)
	return v, "SHA256:" + base64.RawStdEncoding.EncodeToString(sum[:]), nil
}
