package kbs

import (
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"

	"github.com/sealpod/sealpod/podvm"
)

// KeyAlgorithm is a kind of TEE key, under its name in the configuration.
// Source: guest-components attestation-agent/src/config/kbs.rs at 8246e5e0.
type KeyAlgorithm string

// The kinds of TEE key. The empty KeyAlgorithm means ECDHP256.
const (
	ECDHP256 KeyAlgorithm = "ECDH-ES+A256KW-P256"
	ECDHP521 KeyAlgorithm = "ECDH-ES+A256KW-P521"
	RSAOAEP  KeyAlgorithm = "RSA-OAEP-256" // 2048 bits
)

// Validate returns an error unless a is one of the kinds above or empty.
func (a KeyAlgorithm) Validate() error {
	switch a {
	case "", ECDHP256, ECDHP521, RSAOAEP:
		return nil
	}
	return fmt.Errorf("TEE key algorithm %q: want %s, %s or %s",
		podvm.Printable(string(a), 64), ECDHP256, ECDHP521, RSAOAEP)
}

// TEEKey is the private key that released secrets are encrypted to. It is safe
// for concurrent use. It has no printable form.
type TEEKey struct {
	ec  *ecdh.PrivateKey // exactly one of the two is set
	rsa *rsa.PrivateKey
}

// GenerateTEEKey makes a key of that kind.
func GenerateTEEKey(alg KeyAlgorithm) (*TEEKey, error) {
	var k TEEKey
	var err error
	switch alg {
	case "", ECDHP256:
		k.ec, err = ecdh.P256().GenerateKey(rand.Reader)
	case ECDHP521:
		k.ec, err = ecdh.P521().GenerateKey(rand.Reader)
	case RSAOAEP:
		k.rsa, err = rsa.GenerateKey(rand.Reader, minRSABits)
	default:
		err = alg.Validate()
	}
	if err != nil {
		return nil, fmt.Errorf("generating a TEE key: %w", err)
	}
	return &k, nil
}

// Format implements fmt.Formatter so that no verb prints the key.
func (k *TEEKey) Format(f fmt.State, verb rune) { podvm.Secret(nil).Format(f, verb) }

// Public returns the public half.
func (k *TEEKey) Public() PublicKey {
	if k.ec != nil {
		return ecPublicKey(k.ec.PublicKey())
	}
	return PublicKey{
		KTY: ktyRSA, ALG: algRSAOAEP,
		N: b64u.EncodeToString(k.rsa.N.Bytes()),
		E: b64u.EncodeToString(big.NewInt(int64(k.rsa.E)).Bytes()),
	}
}

// PEM block types of the two forms.
const (
	pemPKCS8 = "PRIVATE KEY"
	pemPKCS1 = "RSA PRIVATE KEY"
)

// MarshalPEM returns the key in the form the attestation agent hands it over:
// PKCS#8 for EC, PKCS#1 for RSA. The caller wipes it.
// Source: guest-components kbs_protocol/src/keypair.rs at 8246e5e0.
func (k *TEEKey) MarshalPEM() (podvm.Secret, error) {
	var der []byte
	kind := pemPKCS1
	if k.rsa != nil {
		der = x509.MarshalPKCS1PrivateKey(k.rsa)
	} else {
		var err error
		if der, err = x509.MarshalPKCS8PrivateKey(k.ec); err != nil {
			return nil, fmt.Errorf("encoding the TEE key: %w", err)
		}
		kind = pemPKCS8
	}
	defer clear(der)
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), nil
}

// ParseTEEKeyPEM reads the form MarshalPEM writes; RSA may be PKCS#8 as well.
// The text of an error holds nothing of the input.
func ParseTEEKeyPEM(text []byte) (*TEEKey, error) {
	block, rest := pem.Decode(text)
	if block == nil || len(rest) > 0 {
		return nil, errors.New("parsing the TEE key: not one PEM block")
	}
	defer clear(block.Bytes)
	var key any
	var err error
	switch block.Type {
	case pemPKCS1:
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	case pemPKCS8:
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	default:
		return nil, errors.New("parsing the TEE key: neither a PKCS#8 nor a PKCS#1 PEM block")
	}
	if err != nil {
		return nil, fmt.Errorf("parsing the TEE key: %w", err)
	}
	switch key := key.(type) {
	case *rsa.PrivateKey:
		if bits := key.N.BitLen(); bits < minRSABits || bits > maxRSABits {
			return nil, fmt.Errorf("parsing the TEE key: RSA modulus of %d bits", bits)
		}
		return &TEEKey{rsa: key}, nil
	case *ecdsa.PrivateKey:
		ec, err := key.ECDH()
		if err != nil {
			return nil, fmt.Errorf("parsing the TEE key: %w", err)
		}
		if c := ec.Curve(); c != ecdh.P256() && c != ecdh.P521() {
			return nil, errors.New("parsing the TEE key: the curve is neither P-256 nor P-521")
		}
		return &TEEKey{ec: ec}, nil
	}
	return nil, errors.New("parsing the TEE key: neither an EC nor an RSA key")
}
