package secret

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"strings"

	"github.com/sealpod/sealpod/cdh/internal/confined"
	"github.com/sealpod/sealpod/cdh/internal/strict"
	"github.com/sealpod/sealpod/kbs"
	"github.com/sealpod/sealpod/podvm"
)

// KeyDir holds signing keys whose id is no resource URI.
const KeyDir = podvm.CDHRunDir + "/sealed-secret"

// scalarSize is the length of r, s and each coordinate on P-256 in bytes.
const scalarSize = 32

// verify checks that the key m names has signed it. Errors: ErrSigningKey,
// ErrKeyFetch, ErrIO, ErrJSON, ErrSignature.
func (u *Unsealer) verify(ctx context.Context, m message) error {
	if m.alg != algorithm { // before anything is fetched
		alg := podvm.Printable(m.alg, 32)
		return podvm.Explain(fmt.Errorf("%w: algorithm %q", ErrSigningKey, alg),
			fmt.Sprintf("the sealed secret is signed with %q, not with %s", alg, algorithm))
	}
	raw, err := u.signingKey(ctx, m.kid)
	if err != nil {
		return err
	}
	defer raw.Wipe() // it may be the private half as well
	kid := podvm.Printable(m.kid, 200)
	pub, err := parseKey(raw)
	if err != nil {
		return podvm.Explain(fmt.Errorf("key %q: %w", kid, err),
			fmt.Sprintf("the signing key %s is not a P-256 JWK: want kty EC, crv P-256, x and y", kid))
	}
	if !valid(pub, m.signed, m.signature) {
		return podvm.Explain(fmt.Errorf("%w: key %q", ErrSignature, kid),
			fmt.Sprintf("the sealed secret is not signed by the key at %s, or was changed since", kid))
	}
	return nil
}

// signingKey returns the JWK with that id: a resource when the id is a resource
// URI, else a file of KeyDir.
func (u *Unsealer) signingKey(ctx context.Context, kid string) (podvm.Secret, error) {
	shown := podvm.Printable(kid, 200)
	if _, err := kbs.ParseURI(kid); err == nil {
		raw, err := u.resource(ctx, kid)
		if err != nil {
			return nil, podvm.Explain(fmt.Errorf("%w: %q: %w", ErrKeyFetch, shown, err),
				fmt.Sprintf("the signing key %s cannot be fetched: %s", shown, sentence(err)))
		}
		if len(raw) > maxKey {
			raw.Wipe()
			return nil, podvm.Explain(fmt.Errorf("%w: %q: %w", ErrSigningKey, shown, podvm.ErrTooLarge),
				fmt.Sprintf("the signing key %s is no key: it is too large", shown))
		}
		return raw, nil
	}
	// An absolute path is as good as a name, as long as it is below.
	raw, err := confined.Read(u.host.Path(KeyDir), strings.TrimPrefix(kid, KeyDir+"/"), maxKey)
	if err != nil {
		why := "cannot be read"
		if errors.Is(err, fs.ErrNotExist) {
			why = "is not there"
		}
		return nil, podvm.Explain(fmt.Errorf("%w: %q: %w", ErrIO, shown, err),
			fmt.Sprintf("the signing key %s %s: its id is no resource URI (kbs:///…), so it would be a file of %s", shown, why, KeyDir))
	}
	return raw, nil
}

// parseKey reads one JWK of an elliptic curve key on P-256 (RFC 7518 section
// 6.2). The private half may be there; what else the JWK says of itself is not
// compared. Errors: ErrJSON, ErrSigningKey.
func parseKey(raw []byte) (*ecdsa.PublicKey, error) {
	o, err := strict.Parse(raw)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrJSON, err)
	}
	for _, v := range o {
		defer clear(v)
	}
	for _, m := range [][2]string{{"kty", "EC"}, {"crv", "P-256"}} {
		name, want := m[0], m[1]
		if got, err := o.Text(name); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrSigningKey, err)
		} else if got != want {
			return nil, fmt.Errorf("%w: %s %q: want %s", ErrSigningKey, name, podvm.Printable(got, 32), want)
		}
	}
	point := []byte{4} // uncompressed
	for _, name := range []string{"x", "y"} {
		text, err := o.Text(name)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrSigningKey, err)
		}
		n, err := strict.Base64URL(text)
		if err != nil {
			return nil, fmt.Errorf("%w: member %q: %w", ErrSigningKey, name, err)
		}
		if len(n) != scalarSize {
			return nil, fmt.Errorf("%w: member %q of %d bytes: want %d", ErrSigningKey, name, len(n), scalarSize)
		}
		point = append(point, n...)
	}
	pub, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), point)
	if err != nil {
		return nil, fmt.Errorf("%w: not a point of the curve", ErrSigningKey)
	}
	return pub, nil
}

// valid tells whether signature, r and s of 32 bytes each, is by pub. Both s
// and its negative pass, as upstream has it.
func valid(pub *ecdsa.PublicKey, signed string, signature []byte) bool {
	if len(signature) != 2*scalarSize {
		return false
	}
	hash := sha256.Sum256([]byte(signed))
	r, s := new(big.Int).SetBytes(signature[:scalarSize]), new(big.Int).SetBytes(signature[scalarSize:])
	return ecdsa.Verify(pub, hash[:], r, s)
}
