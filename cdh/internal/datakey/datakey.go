// Package datakey opens what is sealed under a 256-bit data key: the keys of
// image layers in annotation packets and the content of envelope secrets.
//
// Data path: packages keywrap and secret fetch or unwrap the key and come here
// with the ciphertext of their document.
//
// Trust: IV and ciphertext are hostile and capped by the caller. Under A256CTR
// nothing authenticates the result.
//
// It fetches no keys and seals nothing; that is the owner's side.
package datakey

import (
	"crypto/aes"
	"crypto/cipher"
	"fmt"

	"github.com/sealpod/sealpod/podvm"
)

// Size is the length of a data key in bytes: AES-256, taken as it is.
const Size = 32

// The two ways of sealing, as documents name them.
// Source: guest-components attestation-agent/deps/crypto/src/symmetric at 8246e5e.
const (
	GCM = "A256GCM" // no associated data; the 16-byte tag comes last
	CTR = "A256CTR" // a 128-bit big-endian counter that starts at the IV
)

// Known tells whether wrap is GCM or CTR, in exactly that case.
func Known(wrap string) bool { return wrap == GCM || wrap == CTR }

// Open decrypts data in place, so data is used up, and returns the plaintext.
// The IV has 16 bytes for CTR and any but none for GCM, where 12 are usual.
func Open(key podvm.Secret, wrap string, iv, data []byte) (podvm.Secret, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("preparing AES: %w", err)
	}
	switch wrap {
	case CTR:
		if len(iv) != aes.BlockSize {
			return nil, fmt.Errorf("iv of %d bytes: want %d", len(iv), aes.BlockSize)
		}
		cipher.NewCTR(block, iv).XORKeyStream(data, data)
		return data, nil
	case GCM:
		// Not only 12 bytes: upstream's OpenSSL build takes any length.
		gcm, err := cipher.NewGCMWithNonceSize(block, len(iv))
		if err != nil {
			return nil, fmt.Errorf("iv of %d bytes: %w", len(iv), err)
		}
		return gcm.Open(data[:0], iv, data, nil)
	}
	return nil, fmt.Errorf("wrap type %q: want %s or %s", podvm.Printable(wrap, 32), GCM, CTR)
}
