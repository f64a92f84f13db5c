package policy

import (
	"bytes"
	"crypto"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	pgperrors "github.com/ProtonMail/go-crypto/openpgp/errors"
	"github.com/ProtonMail/go-crypto/openpgp/packet"

	"github.com/sealpod/sealpod/podvm"
)

// Packet tags of a signed message. Source: RFC 9580 section 5.
const (
	tagSignature  = 2
	tagOnePass    = 4
	tagCompressed = 8
	tagLiteral    = 11
)

// strongHashes are those a signature may be made over. SHA-1, MD5 and
// RIPEMD-160 can no longer be relied on; SHA-224 nobody uses.
var strongHashes = map[crypto.Hash]bool{
	crypto.SHA256: true, crypto.SHA384: true, crypto.SHA512: true, crypto.SHA3_256: true, crypto.SHA3_512: true,
}

func fingerprint(k *packet.PublicKey) string { return fmt.Sprintf("%X", k.Fingerprint) }

// pgpMessage is a signed message taken apart. Nothing in it is verified.
type pgpMessage struct {
	body      []byte
	signature []byte // one signature packet
	created   time.Time
}

var (
	errMessage = errors.New("not a signed OpenPGP message")
	errWeak    = errors.New("weak algorithm")
	errRevoked = errors.New("the signing key is revoked")
	errExpired = errors.New("expired")
)

// parsePGP accepts exactly what gpg --sign writes: a one-pass signature, a
// literal and the signature, which may be compressed as a whole. There is one
// signature, so that nothing in the message but the literal can be signed and
// nothing but the signature decides.
func parsePGP(raw []byte) (pgpMessage, error) {
	if len(raw) > MaxPayload {
		return pgpMessage{}, fmt.Errorf("%w: %w: %d bytes", errMessage, podvm.ErrTooLarge, len(raw))
	}
	packets, err := splitPackets(bytes.NewReader(raw))
	if err == nil && len(packets) == 1 && packets[0].Tag == tagCompressed {
		packets, err = decompress(packets[0])
	}
	if err != nil {
		return pgpMessage{}, fmt.Errorf("%w: %w", errMessage, err)
	}
	if len(packets) != 3 || packets[0].Tag != tagOnePass || packets[1].Tag != tagLiteral || packets[2].Tag != tagSignature {
		return pgpMessage{}, fmt.Errorf("%w: want one one-pass signature, one literal and one signature", errMessage)
	}
	msg, err := joinPackets(packets)
	if err != nil {
		return pgpMessage{}, fmt.Errorf("%w: %w", errMessage, err)
	}
	return msg, nil
}

// splitPackets reads up to four packets: one more than a message may have.
func splitPackets(r io.Reader) ([]*packet.OpaquePacket, error) {
	var out []*packet.OpaquePacket
	for next := packet.NewOpaqueReader(r); len(out) < 4; {
		p, err := next.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, errors.New("malformed packet")
		}
		out = append(out, p)
	}
	return out, nil
}

func decompress(p *packet.OpaquePacket) ([]*packet.OpaquePacket, error) {
	parsed, err := p.Parse()
	c, ok := parsed.(*packet.Compressed)
	if err != nil || !ok {
		return nil, errors.New("malformed compressed packet")
	}
	plain, err := podvm.ReadMax(c.Body, MaxPayload)
	if err != nil {
		return nil, fmt.Errorf("decompressing: %w", err)
	}
	return splitPackets(bytes.NewReader(plain))
}

func joinPackets(packets []*packet.OpaquePacket) (msg pgpMessage, err error) {
	var parsed [3]packet.Packet
	for i, p := range packets {
		if parsed[i], err = p.Parse(); err != nil {
			return msg, errors.New("malformed packet")
		}
	}
	onePass, ok1 := parsed[0].(*packet.OnePassSignature)
	literal, ok2 := parsed[1].(*packet.LiteralData)
	sig, ok3 := parsed[2].(*packet.Signature)
	switch {
	case !ok1 || !ok2 || !ok3:
		return msg, errors.New("unsupported packet version")
	case sig.IssuerKeyId == nil || *sig.IssuerKeyId != onePass.KeyId || sig.Hash != onePass.Hash || sig.SigType != onePass.SigType:
		return msg, errors.New("the signature is not the one announced")
	case sig.SigType != packet.SigTypeBinary:
		return msg, errors.New("not a signature over binary data")
	case !strongHashes[sig.Hash]:
		return msg, fmt.Errorf("%w: %s", errWeak, sig.Hash)
	}
	if msg.body, err = io.ReadAll(literal.Body); err != nil {
		return msg, errors.New("malformed literal")
	}
	var b bytes.Buffer
	if err := packets[2].Serialize(&b); err != nil {
		return msg, err
	}
	msg.signature, msg.created = b.Bytes(), sig.CreationTime
	return msg, nil
}

// verify checks that the message was signed by a key of ring that was valid
// then, and returns the fingerprint of the key.
//
// A key that has expired since is accepted with a warning: expiry limits what
// may be signed, and the clock of a guest is the host's word anyway. A revoked
// one is not, whenever and for whatever reason it was revoked, nor a signature
// that set itself a term.
func (m pgpMessage) verify(ring keyRing, now time.Time) (key, warning string, err error) {
	atSigning := &packet.Config{Time: func() time.Time { return m.created }}
	sig, entity, err := openpgp.VerifyDetachedSignature(ring, bytes.NewReader(m.body), bytes.NewReader(m.signature), atSigning)
	switch {
	case errors.Is(err, pgperrors.ErrKeyRevoked):
		return "", "", errRevoked
	case errors.Is(err, pgperrors.ErrKeyExpired), errors.Is(err, pgperrors.ErrSignatureExpired):
		return "", "", fmt.Errorf("%w: the key was not valid when the signature was made", errExpired)
	case err != nil:
		return "", "", err
	}
	signer := signingKey(ring, entity, sig)
	if signer == nil {
		return "", "", pgperrors.ErrUnknownIssuer
	}
	if err := strongKey(signer.PublicKey); err != nil {
		return "", "", err
	}
	if len(entity.Revocations) > 0 || len(signer.Revocations) > 0 {
		return "", "", errRevoked
	}
	if sig.SigLifetimeSecs != nil && sig.SigExpired(now) {
		return "", "", fmt.Errorf("%w: the signature was made for a limited time", errExpired)
	}
	key = fingerprint(signer.PublicKey)
	self, _ := entity.PrimarySelfSignature()
	if entity.PrimaryKey.KeyExpired(self, now) || signer.PublicKey.KeyExpired(signer.SelfSignature, now) {
		warning = fmt.Sprintf("the OpenPGP key %s has expired; it was valid when the signature was made", key)
	}
	return key, warning, nil
}

// signingKey finds the primary key or subkey of entity that made sig.
func signingKey(ring keyRing, entity *openpgp.Entity, sig *packet.Signature) *openpgp.Key {
	for _, k := range ring.KeysByIdUsage(*sig.IssuerKeyId, packet.KeyFlagSign) {
		if k.Entity == entity {
			return &k
		}
	}
	return nil
}

// strongKey refuses kinds and lengths of keys that no longer protect anything.
func strongKey(k *packet.PublicKey) error {
	switch k.PubKeyAlgo {
	case packet.PubKeyAlgoRSA, packet.PubKeyAlgoRSASignOnly:
		if n, err := k.BitLength(); err != nil || n < minRSA {
			return fmt.Errorf("%w: an RSA key of %d bits, want %d", errWeak, n, minRSA)
		}
	case packet.PubKeyAlgoECDSA, packet.PubKeyAlgoEdDSA, packet.PubKeyAlgoEd25519, packet.PubKeyAlgoEd448:
	default:
		return fmt.Errorf("%w: public key algorithm %d", errWeak, k.PubKeyAlgo)
	}
	return nil
}
