package kbs

import (
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/rsa"
	_ "crypto/sha256" // crypto.SHA256 for Concat KDF and OAEP
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"

	jose "github.com/go-jose/go-jose/v4/cipher"

	"github.com/sealpod/sealpod/podvm"
)

// Sizes of the one content encryption there is, A256GCM, in bytes.
const (
	encA256GCM = "A256GCM"
	keySize    = 32
	ivSize     = 12
	tagSize    = 16
)

// header is the protected header as it is written: compact, in this order, and
// epk with its members sorted. Clients in Rust re-serialise what they parsed
// before they use it as AAD, which gives these very bytes and no others.
type header struct {
	ALG string        `json:"alg"`
	ENC string        `json:"enc"`
	EPK *ephemeralKey `json:"epk,omitempty"`
}

type ephemeralKey struct {
	CRV string `json:"crv"`
	KTY string `json:"kty"`
	X   string `json:"x"`
	Y   string `json:"y"`
}

// flattened is the flattened JSON serialisation (RFC 7516 §7.2.2); values are
// unpadded base64url.
type flattened struct {
	Protected    string `json:"protected"`
	EncryptedKey string `json:"encrypted_key"`
	IV           string `json:"iv"`
	Ciphertext   string `json:"ciphertext"`
	Tag          string `json:"tag"`
}

// Encrypt encrypts plaintext to a TEE key as a flattened JWE: a fresh 32-byte
// key for A256GCM, wrapped with ECDH-ES+A256KW or RSA-OAEP-256. The key is
// validated first.
// Source: trustee kbs/src/jwe/mod.rs at 78962cd4; RFC 7516, RFC 7518 §4.3, §4.6.
func Encrypt(pub PublicKey, plaintext []byte) ([]byte, error) {
	if err := pub.Validate(); err != nil {
		return nil, fmt.Errorf("encrypting to the TEE key: %w", err)
	}
	cek := make([]byte, keySize)
	defer clear(cek)
	iv := make([]byte, ivSize)
	_, _ = rand.Read(cek) // never fails since Go 1.24
	_, _ = rand.Read(iv)

	head := header{ALG: pub.ALG, ENC: encA256GCM}
	var wrapped []byte
	var err error
	if pub.KTY == ktyEC {
		wrapped, head.EPK, err = wrapECDH(pub, cek)
	} else {
		wrapped, err = wrapRSA(pub, cek)
	}
	if err != nil {
		return nil, fmt.Errorf("wrapping the content key: %w", err)
	}
	text, err := json.Marshal(head)
	if err != nil {
		return nil, fmt.Errorf("encoding the JWE header: %w", err)
	}
	protected := b64u.EncodeToString(text)
	aead, err := newGCM(cek)
	if err != nil {
		return nil, err
	}
	sealed := aead.Seal(nil, iv, plaintext, []byte(protected))
	at := len(sealed) - tagSize
	return json.Marshal(flattened{
		Protected:    protected,
		EncryptedKey: b64u.EncodeToString(wrapped),
		IV:           b64u.EncodeToString(iv),
		Ciphertext:   b64u.EncodeToString(sealed[:at]),
		Tag:          b64u.EncodeToString(sealed[at:]),
	})
}

func wrapECDH(pub PublicKey, cek []byte) ([]byte, *ephemeralKey, error) {
	peer, err := pub.ecdh()
	if err != nil {
		return nil, nil, err
	}
	priv, err := peer.Curve().GenerateKey(rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	kek, err := agree(priv, peer)
	if err != nil {
		return nil, nil, err
	}
	wrapped, err := jose.KeyWrap(kek, cek)
	epk := ecPublicKey(priv.PublicKey())
	return wrapped, &ephemeralKey{CRV: epk.CRV, KTY: epk.KTY, X: epk.X, Y: epk.Y}, err
}

func wrapRSA(pub PublicKey, cek []byte) ([]byte, error) {
	key, err := pub.rsa()
	if err != nil {
		return nil, err
	}
	return rsa.EncryptOAEP(crypto.SHA256.New(), rand.Reader, key, cek, nil)
}

// Decrypt opens a flattened JWE made for this key. Only the algorithms of
// Encrypt are accepted, and only the one that fits the key; RSA1_5 never is.
// The AAD is the protected text as received. The caller wipes the result.
//
// Errors: ErrDecrypt, with one text for every failure that depends on the key.
func (k *TEEKey) Decrypt(jwe []byte) (podvm.Secret, error) {
	f, head, err := parseJWE(jwe)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDecrypt, err)
	}
	plain, err := k.open(f, head)
	if err != nil {
		return nil, fmt.Errorf("%w: it is not encrypted to this TEE key or was altered", ErrDecrypt)
	}
	return plain, nil
}

func (k *TEEKey) open(f sealedJWE, head header) (podvm.Secret, error) {
	var cek []byte
	var err error
	switch {
	case head.ALG == algECDH && k.ec != nil:
		cek, err = k.unwrapECDH(f.wrapped, head.EPK)
	case head.ALG == algRSAOAEP && k.rsa != nil:
		cek, err = rsa.DecryptOAEP(crypto.SHA256.New(), nil, k.rsa, f.wrapped, nil)
	default:
		err = errors.New("algorithm and key do not fit")
	}
	if err != nil {
		return nil, err
	}
	defer clear(cek)
	aead, err := newGCM(cek)
	if err != nil {
		return nil, err
	}
	return aead.Open(f.sealed[:0], f.iv, f.sealed, f.aad)
}

func (k *TEEKey) unwrapECDH(wrapped []byte, epk *ephemeralKey) ([]byte, error) {
	if epk == nil || epk.KTY != ktyEC {
		return nil, errors.New("no EC ephemeral key")
	}
	peer, err := PublicKey{KTY: ktyEC, CRV: epk.CRV, ALG: algECDH, X: epk.X, Y: epk.Y}.ecdh()
	if err != nil {
		return nil, err
	}
	kek, err := agree(k.ec, peer)
	if err != nil {
		return nil, err
	}
	return jose.KeyUnwrap(kek, wrapped)
}

// agree derives the AES-256 key-wrapping key of ECDH-ES+A256KW: Concat KDF over
// SHA-256 with empty party infos. Source: RFC 7518 §4.6.2.
func agree(priv *ecdh.PrivateKey, pub *ecdh.PublicKey) (cipher.Block, error) {
	z, err := priv.ECDH(pub)
	if err != nil {
		return nil, err
	}
	defer clear(z)
	id := binary.BigEndian.AppendUint32(nil, uint32(len(algECDH)))
	id = append(id, algECDH...)
	none := make([]byte, 4)
	bits := binary.BigEndian.AppendUint32(nil, keySize*8)
	key := make([]byte, keySize)
	defer clear(key)
	if _, err := jose.NewConcatKDF(crypto.SHA256, z, id, none, none, bits, nil).Read(key); err != nil {
		return nil, err
	}
	return aes.NewCipher(key)
}

func newGCM(key []byte) (cipher.AEAD, error) {
	if len(key) != keySize {
		return nil, fmt.Errorf("content key of %d bytes: want %d", len(key), keySize)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("preparing AES: %w", err)
	}
	return cipher.NewGCM(block)
}

// sealedJWE is a decoded JWE; sealed is ciphertext and tag.
type sealedJWE struct{ aad, wrapped, iv, sealed []byte }

// parseJWE reads the parts that do not depend on a key. Header members that
// would change what is decrypted and how are refused; others are ignored.
func parseJWE(raw []byte) (sealedJWE, header, error) {
	var f flattened
	var s sealedJWE
	var h header
	o, err := parseObject(raw)
	if err != nil {
		return s, h, err
	}
	err = o.texts(map[string]*string{
		"protected": &f.Protected, "encrypted_key": &f.EncryptedKey,
		"iv": &f.IV, "ciphertext": &f.Ciphertext, "tag": &f.Tag,
	})
	if err != nil {
		return s, h, err
	}
	for _, name := range []string{"aad", "header", "unprotected", "recipients"} {
		if o.has(name) {
			return s, h, fmt.Errorf("member %q is not supported", name)
		}
	}
	s.aad = []byte(f.Protected)
	var tag []byte
	for _, part := range []struct {
		dst  *[]byte
		text string
	}{{&s.wrapped, f.EncryptedKey}, {&s.iv, f.IV}, {&s.sealed, f.Ciphertext}, {&tag, f.Tag}} {
		if *part.dst, err = b64u.DecodeString(part.text); err != nil {
			return s, h, errors.New("a member is not unpadded base64url")
		}
	}
	if len(s.iv) != ivSize || len(tag) != tagSize {
		return s, h, fmt.Errorf("iv of %d and tag of %d bytes: want %d and %d", len(s.iv), len(tag), ivSize, tagSize)
	}
	s.sealed = append(s.sealed, tag...)
	h, err = parseHeader(f.Protected)
	return s, h, err
}

func parseHeader(protected string) (header, error) {
	var h header
	text, err := b64u.DecodeString(protected)
	if err != nil {
		return h, errors.New("the protected header is not unpadded base64url")
	}
	o, err := parseObject(text)
	if err == nil {
		err = o.texts(map[string]*string{"alg": &h.ALG, "enc": &h.ENC})
	}
	if err != nil {
		return h, fmt.Errorf("reading the protected header: %w", err)
	}
	for _, name := range []string{"crit", "zip", "apu", "apv"} {
		if o.has(name) {
			return h, fmt.Errorf("header member %q is not supported", name)
		}
	}
	if (h.ALG != algECDH && h.ALG != algRSAOAEP) || h.ENC != encA256GCM {
		return h, fmt.Errorf("algorithms %q and %q are not supported", podvm.Printable(h.ALG, 32), podvm.Printable(h.ENC, 32))
	}
	if h.ALG == algRSAOAEP {
		return h, nil
	}
	epk, err := parseObject(o["epk"])
	if err != nil {
		return h, fmt.Errorf("reading the ephemeral key: %w", err)
	}
	h.EPK = new(ephemeralKey)
	err = epk.texts(map[string]*string{"crv": &h.EPK.CRV, "kty": &h.EPK.KTY, "x": &h.EPK.X, "y": &h.EPK.Y})
	if err != nil {
		return h, fmt.Errorf("reading the ephemeral key: %w", err)
	}
	return h, nil
}
