package imageseal

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/sigstore/cosign/v2/pkg/cosign"
	"github.com/sigstore/sigstore/pkg/cryptoutils"
	"github.com/sigstore/sigstore/pkg/signature"

	"github.com/sealpod/sealpod/podvm"
)

// ErrKey says that a signing key cannot be used: the text is no private key,
// the password is wrong, or the kind is one guests do not verify.
var ErrKey = errors.New("unusable signing key")

// Password returns the password of a key; fresh asks for a new one. The bytes
// returned are wiped after use.
type Password func(fresh bool) (podvm.Secret, error)

// KeyPair is a signing key pair in cosign's file format.
type KeyPair struct {
	Private podvm.Secret // PEM "ENCRYPTED SIGSTORE PRIVATE KEY"
	Public  []byte       // PEM "PUBLIC KEY"
}

// GenerateKeyPair makes an ECDSA P-256 key pair as `cosign generate-key-pair`
// does, encrypted with the password.
func GenerateKeyPair(password Password) (KeyPair, error) {
	k, err := cosign.GenerateKeyPair(func(bool) ([]byte, error) { return password(true) })
	if err != nil {
		return KeyPair{}, fmt.Errorf("generating a key pair: %w", err)
	}
	podvm.Secret(k.Password()).Wipe()
	return KeyPair{Private: k.PrivateBytes, Public: k.PublicBytes}, nil
}

// Signer signs images with one private key. P-384 keys sign over SHA-384,
// all others over SHA-256 or, for Ed25519, in its plain form.
type Signer struct {
	key       signature.SignerVerifier
	publicPEM []byte
}

// LoadSigner reads a PEM private key: cosign's encrypted form, for which
// password is called, or plain PKCS #8, PKCS #1 or SEC 1.
//
// Errors: ErrKey, and what password returns.
func LoadSigner(pemKey []byte, password Password) (*Signer, error) {
	block, _ := pem.Decode(pemKey)
	if block == nil {
		return nil, fmt.Errorf("%w: not PEM", ErrKey)
	}
	defer clear(block.Bytes)
	var key signature.SignerVerifier
	// Without options Ed25519 signs in its plain form, which every guest
	// verifies; cosign's own default is the pre-hashed one.
	switch block.Type {
	case cosign.SigstorePrivateKeyPemType, cosign.CosignPrivateKeyPemType:
		pass, err := password(false)
		if err != nil {
			return nil, fmt.Errorf("reading the key's password: %w", err)
		}
		defer pass.Wipe()
		if key, err = cosign.LoadPrivateKey(pemKey, pass, &[]signature.LoadOption{}); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrKey, err)
		}
	default:
		private, err := cryptoutils.UnmarshalPEMToPrivateKey(pemKey, nil)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrKey, err)
		}
		if key, err = signature.LoadDefaultSignerVerifier(private); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrKey, err)
		}
	}
	public, err := key.PublicKey()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	if err := verifiable(public); err != nil {
		return nil, err
	}
	publicPEM, err := cryptoutils.MarshalPublicKeyToPEM(public)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	return &Signer{key: key, publicPEM: publicPEM}, nil
}

// PublicKey returns the PEM public key, as a policy takes it for keyData.
func (s *Signer) PublicKey() []byte { return s.publicPEM }

// verifiable returns an error for a kind of key that guests do not verify.
func verifiable(public crypto.PublicKey) error {
	switch k := public.(type) {
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() && k.Curve != elliptic.P384() {
			return fmt.Errorf("%w: guests do not verify curve %s, use P-256 or P-384", ErrKey, k.Curve.Params().Name)
		}
		return nil
	case *rsa.PublicKey:
		if k.N.BitLen() < 2048 {
			return fmt.Errorf("%w: an RSA key of %d bits is too weak, want 2048", ErrKey, k.N.BitLen())
		}
		return nil
	case ed25519.PublicKey:
		return nil
	}
	return fmt.Errorf("%w: guests do not verify %T", ErrKey, public)
}
