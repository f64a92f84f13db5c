package policy

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"

	"github.com/sealpod/sealpod/podvm"
)

// maxRing caps the keys of one key ring.
const maxRing = 256

// keyRing is the public keys of one keyPath or keyData.
type keyRing = openpgp.EntityList

// parseKeyRing reads an OpenPGP key ring, binary or armored (several blocks may
// follow each other). The name is the fingerprint of its first key.
func parseKeyRing(raw []byte) (keyRing, string, error) {
	if len(raw) > MaxKey {
		return nil, "", fmt.Errorf("%w: %d bytes", podvm.ErrTooLarge, len(raw))
	}
	var ring keyRing
	var err error
	if bytes.Contains(raw, []byte("-----BEGIN PGP")) {
		ring, err = readArmored(raw)
	} else {
		ring, err = openpgp.ReadKeyRing(bytes.NewReader(raw))
	}
	switch {
	case err != nil:
		return nil, "", fmt.Errorf("not an OpenPGP key ring: %w", err)
	case len(ring) == 0:
		return nil, "", errors.New("no key in it")
	case len(ring) > maxRing:
		return nil, "", fmt.Errorf("%w: %d keys", podvm.ErrTooLarge, len(ring))
	}
	for _, e := range ring {
		if e.PrivateKey != nil {
			return nil, "", errors.New("a private key where a public one belongs")
		}
	}
	return ring, fingerprint(ring[0].PrimaryKey), nil
}

func readArmored(raw []byte) (keyRing, error) {
	var ring keyRing
	for r := bufio.NewReader(bytes.NewReader(raw)); ; {
		block, err := armor.Decode(r)
		if errors.Is(err, io.EOF) {
			return ring, nil
		}
		if err != nil {
			return nil, err
		}
		if block.Type != openpgp.PublicKeyType {
			return nil, fmt.Errorf("block %q", podvm.Printable(block.Type, 64))
		}
		part, err := openpgp.ReadKeyRing(block.Body)
		if err != nil {
			return nil, err
		}
		ring = append(ring, part...)
	}
}

// parseInlineRing reads keyData of signedBy: base64 of a key ring, or armored.
func parseInlineRing(data string) (keyRing, string, error) {
	raw := []byte(data)
	if !strings.Contains(data, "-----BEGIN PGP") {
		var err error
		if raw, err = base64.StdEncoding.DecodeString(data); err != nil {
			return nil, "", errors.New("neither armored nor base64 of a key ring")
		}
	}
	return parseKeyRing(raw)
}
