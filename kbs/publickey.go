package kbs

import (
	"crypto/ecdh"
	"crypto/rsa"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"

	"github.com/sealpod/sealpod/podvm"
)

// JWK member values of the two key types.
const (
	algECDH    = "ECDH-ES+A256KW"
	algRSAOAEP = "RSA-OAEP-256"
	ktyEC      = "EC"
	ktyRSA     = "RSA"
	crvP256    = "P-256"
	crvP521    = "P-521"
)

// Sizes of an RSA modulus in bits. A guest makes 2048; anything beyond 4096
// costs the relying party more than it protects.
const (
	minRSABits = 2048
	maxRSABits = 4096
)

// PublicKey is the public half of a TEE key as a JWK. It has exactly the
// members of its type, because the KBS writes them anew before it hashes them:
//
//	EC:  kty "EC", crv "P-256" or "P-521", alg "ECDH-ES+A256KW", x, y
//	RSA: kty "RSA", alg "RSA-OAEP-256", n, e
//
// Numbers are unpadded base64url; x and y have the full width of the curve (32
// or 66 bytes). UnmarshalJSON checks the members, Validate the numbers.
// Source: trustee kbs/src/jwe/mod.rs, kbs-types 0.18.
type PublicKey struct {
	KTY string `json:"kty"`
	CRV string `json:"crv,omitempty"`
	ALG string `json:"alg"`
	X   string `json:"x,omitempty"`
	Y   string `json:"y,omitempty"`
	N   string `json:"n,omitempty"`
	E   string `json:"e,omitempty"`
}

// UnmarshalJSON reads a JWK that has exactly the members of its key type and
// the algorithms above.
func (k *PublicKey) UnmarshalJSON(raw []byte) error {
	o, err := parseObject(raw)
	if err != nil {
		return fmt.Errorf("parsing the TEE key: %w", err)
	}
	*k = PublicKey{}
	if k.KTY, err = o.text("kty"); err != nil {
		return fmt.Errorf("parsing the TEE key: %w", err)
	}
	want := map[string]*string{"kty": &k.KTY, "alg": &k.ALG}
	switch k.KTY {
	case ktyEC:
		want["crv"], want["x"], want["y"] = &k.CRV, &k.X, &k.Y
	case ktyRSA:
		want["n"], want["e"] = &k.N, &k.E
	default:
		return fmt.Errorf("parsing the TEE key: key type %q: want EC or RSA", podvm.Printable(k.KTY, 32))
	}
	if err := o.texts(want); err != nil {
		return fmt.Errorf("parsing the TEE key: %w", err)
	}
	for name := range o {
		if want[name] == nil {
			return fmt.Errorf("parsing the TEE key: member %q does not belong in it", podvm.Printable(name, 64))
		}
	}
	return k.checkNames()
}

func (k PublicKey) checkNames() error {
	switch {
	case k.KTY == ktyEC && k.ALG == algECDH && (k.CRV == crvP256 || k.CRV == crvP521):
		return nil
	case k.KTY == ktyRSA && k.ALG == algRSAOAEP:
		return nil
	}
	return fmt.Errorf("TEE key of type %q, curve %q, algorithm %q: not supported",
		podvm.Printable(k.KTY, 32), podvm.Printable(k.CRV, 32), podvm.Printable(k.ALG, 32))
}

// Validate checks that the members are a usable key: a point on the curve, or
// an RSA modulus of 2048 to 4096 bits with an odd exponent from 3 to 2^31-1.
func (k PublicKey) Validate() error {
	if err := k.checkNames(); err != nil {
		return err
	}
	var err error
	if k.KTY == ktyEC {
		_, err = k.ecdh()
	} else {
		_, err = k.rsa()
	}
	return err
}

// ecdh returns the key as a point on its curve.
func (k PublicKey) ecdh() (*ecdh.PublicKey, error) {
	curve, size, err := curveOf(k.CRV)
	if err != nil {
		return nil, err
	}
	x, errX := b64u.DecodeString(k.X)
	y, errY := b64u.DecodeString(k.Y)
	if errX != nil || errY != nil || len(x) != size || len(y) != size {
		return nil, fmt.Errorf("TEE key: x and y must be %d bytes each in unpadded base64url", size)
	}
	pub, err := curve.NewPublicKey(append(append([]byte{4}, x...), y...))
	if err != nil {
		return nil, fmt.Errorf("TEE key: %w", err)
	}
	return pub, nil
}

// rsa returns the key as an RSA key.
func (k PublicKey) rsa() (*rsa.PublicKey, error) {
	n, errN := b64u.DecodeString(k.N)
	e, errE := b64u.DecodeString(k.E)
	if errN != nil || errE != nil {
		return nil, errors.New("TEE key: n and e must be unpadded base64url")
	}
	if len(n) > maxRSABits/8 || len(e) > 4 {
		return nil, fmt.Errorf("TEE key: modulus over %d bits or exponent over 32 bits", maxRSABits)
	}
	mod, exp := new(big.Int).SetBytes(n), new(big.Int).SetBytes(e).Int64()
	if mod.BitLen() < minRSABits || mod.Bit(0) == 0 {
		return nil, fmt.Errorf("TEE key: modulus of %d bits: want %d to %d, odd", mod.BitLen(), minRSABits, maxRSABits)
	}
	if exp < 3 || exp > 1<<31-1 || exp%2 == 0 {
		return nil, fmt.Errorf("TEE key: exponent %d: want an odd number from 3 to 2^31-1", exp)
	}
	return &rsa.PublicKey{N: mod, E: int(exp)}, nil
}

// curveOf returns the curve of that JWK name and the byte length of its
// coordinates.
func curveOf(name string) (ecdh.Curve, int, error) {
	switch name {
	case crvP256:
		return ecdh.P256(), 32, nil
	case crvP521:
		return ecdh.P521(), 66, nil
	}
	return nil, 0, fmt.Errorf("curve %q: want P-256 or P-521", podvm.Printable(name, 32))
}

// ecPublicKey is the JWK of a point, with the members of a TEE key.
func ecPublicKey(pub *ecdh.PublicKey) PublicKey {
	crv, size := crvP256, 32
	if pub.Curve() == ecdh.P521() {
		crv, size = crvP521, 66
	}
	point := pub.Bytes() // 4, x, y
	return PublicKey{
		KTY: ktyEC, CRV: crv, ALG: algECDH,
		X: b64u.EncodeToString(point[1 : 1+size]),
		Y: b64u.EncodeToString(point[1+size:]),
	}
}

// b64u is the base64 of JOSE: URL alphabet, no padding, no stray bits.
var b64u = base64.RawURLEncoding.Strict()
