package keywrap

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"errors"
	"fmt"

	"github.com/sealpod/sealpod/cdh/resource"
	"github.com/sealpod/sealpod/podvm"
)

// kekSize is the length of a KEK in bytes: AES-256, taken as it is.
const kekSize = 32

// ErrUnwrap says that a packet does not open with the KEK it names.
var ErrUnwrap = errors.New("the wrapped key does not open")

// Unwrap opens an annotation packet with the KEK it names and returns what was
// wrapped: the private layer options of ocicrypt as JSON. The caller wipes it.
//
// Errors: ErrPacket, ErrUnwrap, and those of resources.
func Unwrap(ctx context.Context, resources resource.Provider, raw []byte) (podvm.Secret, error) {
	p, err := parsePacket(raw)
	if err != nil {
		return nil, err
	}
	kek, err := resources.Resource(ctx, p.kid)
	if err != nil {
		return nil, fmt.Errorf("fetching the key encryption key: %w", err)
	}
	defer kek.Wipe()
	if len(kek) != kekSize {
		return nil, podvm.Explain(fmt.Errorf("%w: the KEK has %d bytes", ErrUnwrap, len(kek)),
			fmt.Sprintf("the key at %s is not 32 raw bytes", podvm.Printable(p.kid, 200)))
	}
	plain, err := p.open(kek)
	if err != nil {
		return nil, podvm.Explain(fmt.Errorf("%w: %w", ErrUnwrap, err),
			fmt.Sprintf("the wrapped key does not open with the key at %s", podvm.Printable(p.kid, 200)))
	}
	return plain, nil
}

// open decrypts in place; p is used up.
func (p packet) open(kek podvm.Secret) (podvm.Secret, error) {
	block, err := aes.NewCipher(kek)
	if err != nil {
		return nil, fmt.Errorf("preparing AES: %w", err)
	}
	if p.wrap == wrapCTR {
		if len(p.iv) != aes.BlockSize {
			return nil, fmt.Errorf("iv of %d bytes: want %d", len(p.iv), aes.BlockSize)
		}
		cipher.NewCTR(block, p.iv).XORKeyStream(p.wrapped, p.wrapped)
		return p.wrapped, nil
	}
	// Not only 12 bytes: upstream's OpenSSL build takes any length.
	gcm, err := cipher.NewGCMWithNonceSize(block, len(p.iv))
	if err != nil {
		return nil, fmt.Errorf("iv of %d bytes: %w", len(p.iv), err)
	}
	return gcm.Open(p.wrapped[:0], p.iv, p.wrapped, nil)
}
