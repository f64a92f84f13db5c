package registry

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"strings"

	"github.com/sealpod/sealpod/podvm"
)

// ErrDigest says that bytes do not have the digest or size they were asked for
// by.
var ErrDigest = errors.New("digest mismatch")

// newHash returns the hash of a digest algorithm, nil when it is unknown.
func newHash(algorithm string) hash.Hash {
	switch algorithm {
	case "sha256":
		return sha256.New()
	case "sha384":
		return sha512.New384()
	case "sha512":
		return sha512.New()
	}
	return nil
}

// checkDigest accepts "algo:hex" with a known algorithm and its exact length in
// lower-case hex.
func checkDigest(s string) error {
	algorithm, text, _ := strings.Cut(s, ":")
	h := newHash(algorithm)
	if h == nil || len(text) != 2*h.Size() || strings.Trim(text, "0123456789abcdef") != "" {
		return fmt.Errorf("malformed digest %q", podvm.Printable(s, 140))
	}
	return nil
}

// digestOf returns the digest of b with algorithm, which must be known.
func digestOf(algorithm string, b []byte) string {
	h := newHash(algorithm)
	h.Write(b) //nolint:errcheck // a hash never fails
	return algorithm + ":" + hex.EncodeToString(h.Sum(nil))
}

// verify compares b with want, a digest that passed checkDigest.
func verify(b []byte, want string) error {
	algorithm, _, _ := strings.Cut(want, ":")
	if got := digestOf(algorithm, b); got != want {
		return fmt.Errorf("%w: want %s, got %s", ErrDigest, want, got)
	}
	return nil
}
