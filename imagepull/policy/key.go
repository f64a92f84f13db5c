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

const (
	// MaxKey caps what Sources.Key may return: a key ring with the signatures
	// others put on its keys.
	MaxKey = 1 << 20

	maxPEM  = 64 << 10
	maxKeys = 32
)

// key is one entry of keyPath(s) or keyData(s). V is what verifies with it: a
// signatureVerifier or a keyRing.
type key[V any] struct {
	name   string // shown in decisions: its URI, or where it stands and its fingerprint
	uri    string // "" for an inline key
	inline V
}

// load returns what verifies with the key, fetching it if it is not inline.
func (k key[V]) load(ctx context.Context, src Sources, parse func([]byte) (V, string, error)) (V, error) {
	if k.uri == "" {
		return k.inline, nil
	}
	raw, err := src.Key(ctx, k.uri)
	if err != nil {
		return k.inline, fmt.Errorf("fetching the public key %s: %w", k.name, err)
	}
	v, _, err := parse(raw)
	if err != nil {
		return k.inline, fmt.Errorf("reading the public key %s: %w", k.name, err)
	}
	return v, nil
}

// parseKeys reads the one of keyPath, keyPaths, keyData, keyDatas present.
// parse reads an inline key and names it.
func parseKeys[V any](f fields, parse func(data string) (V, string, error)) ([]key[V], error) {
	var uris, inline []string
	present := 0
	for field, dst := range map[string]*[]string{"keyPath": &uris, "keyData": &inline} {
		s, ok, err := f.text(field)
		if err != nil {
			return nil, err
		}
		if ok {
			present++
			*dst = []string{s}
		}
		l, ok, err := f.texts(field + "s")
		if err != nil {
			return nil, err
		}
		if ok {
			present++
			*dst = l
		}
	}
	if present != 1 {
		return nil, fmt.Errorf("want exactly one of keyPath, keyPaths, keyData, keyDatas, have %d", present)
	}
	if n := len(uris) + len(inline); n > maxKeys {
		return nil, fmt.Errorf("%w: %d keys", podvm.ErrTooLarge, n)
	}
	var keys []key[V]
	for _, u := range uris {
		if len(u) > 4096 {
			return nil, fmt.Errorf("key path: %w", podvm.ErrTooLarge)
		}
		keys = append(keys, key[V]{name: podvm.Printable(u, 200), uri: u})
	}
	for i, data := range inline {
		v, fingerprint, err := parse(data)
		if err != nil {
			return nil, fmt.Errorf("inline key %d: %w", i, err)
		}
		keys = append(keys, key[V]{name: fmt.Sprintf("inline key %d (%s)", i, fingerprint), inline: v})
	}
	return keys, nil
}

// parseInlinePEM reads keyData of sigstoreSigned: PEM as upstream takes it, or
// base64 of PEM as containers/image takes it and upstream's documentation says.
func parseInlinePEM(data string) (v signatureVerifier, fingerprint string, err error) {
	raw := []byte(data)
	if !strings.Contains(data, "-----BEGIN") {
		if raw, err = base64.StdEncoding.DecodeString(data); err != nil {
			return nil, "", errors.New("neither PEM nor base64 of PEM")
		}
	}
	return parsePEM(raw)
}

// parsePEM reads exactly one PEM public key (SPKI, or PKCS #1 for RSA). The
// fingerprint is "SHA256:" and the unpadded base64 of the SPKI's SHA-256.
func parsePEM(raw []byte) (v signatureVerifier, fingerprint string, err error) {
	if len(raw) > maxPEM {
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
