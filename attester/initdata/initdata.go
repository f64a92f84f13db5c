// Package initdata reads the init data document: the configuration the host
// hands to a guest, whose digest the TEE measures at launch.
//
// Data path: the attestation agent binds the digest to its evidence and sends
// the document to the KBS, which compares the two.
//
// Trust: the document comes from the host and is hostile until the digest is
// part of verified evidence. It is size-capped and parsed only as far as
// needed; what is in it is for its consumers to check.
//
// Source: trustee kbs/docs/initdata.md at 78962cd4; guest-components
// attestation-agent/src/initdata.rs at 8246e5e0.
package initdata

import (
	"crypto"
	_ "crypto/sha256" // for the algorithms of Parse
	_ "crypto/sha512"
	"errors"
	"fmt"

	"github.com/pelletier/go-toml/v2"

	"github.com/sealpod/sealpod/podvm"
)

// MaxBytes caps a document, as measured.
const MaxBytes = 8 << 20

// ErrInitData says that bytes are not an init data document.
var ErrInitData = errors.New("invalid init data")

// Document is a parsed init data document.
type Document struct {
	Version   string
	Algorithm string            // "sha256", "sha384" or "sha512"
	Data      map[string]string // file name to content
	// Text is the document as measured, byte for byte.
	Text string

	digest []byte
}

// Digest returns the hash over Text with the document's own algorithm: 32, 48
// or 64 bytes.
func (d *Document) Digest() []byte { return d.digest }

// Parse reads a document. Errors: ErrInitData, podvm.ErrTooLarge.
func Parse(raw []byte) (*Document, error) {
	if len(raw) > MaxBytes {
		return nil, fmt.Errorf("%w: %w: more than %d bytes", ErrInitData, podvm.ErrTooLarge, MaxBytes)
	}
	var in struct {
		Version   string            `toml:"version"`
		Algorithm string            `toml:"algorithm"`
		Data      map[string]string `toml:"data"`
	}
	if err := toml.Unmarshal(raw, &in); err != nil {
		var de *toml.DecodeError
		if errors.As(err, &de) {
			row, col := de.Position()
			return nil, fmt.Errorf("%w: line %d column %d: not the expected TOML", ErrInitData, row, col)
		}
		return nil, fmt.Errorf("%w: not the expected TOML", ErrInitData)
	}
	var h crypto.Hash
	switch in.Algorithm {
	case "sha256":
		h = crypto.SHA256
	case "sha384":
		h = crypto.SHA384
	case "sha512":
		h = crypto.SHA512
	default:
		return nil, fmt.Errorf("%w: algorithm %q: want sha256, sha384 or sha512", ErrInitData, podvm.Printable(in.Algorithm, 32))
	}
	sum := h.New()
	sum.Write(raw)
	return &Document{
		Version: in.Version, Algorithm: in.Algorithm, Data: in.Data,
		Text: string(raw), digest: sum.Sum(nil),
	}, nil
}
