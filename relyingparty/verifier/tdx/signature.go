package tdx

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"math/big"
)

// checkSignatures verifies the three links from a PCK key to the quote.
func (q *Quote) checkSignatures(pck *x509.Certificate) error {
	signer, ok := pck.PublicKey.(*ecdsa.PublicKey)
	if !ok || signer.Curve != elliptic.P256() {
		return errors.New("the PCK key is not on P-256")
	}
	if !verifyRaw(signer, q.qeReport, q.qeSignature) {
		return errors.New("the report of the quoting enclave is not signed by the PCK key")
	}
	bound := sha256.Sum256(append(bytes.Clone(q.key), q.qeAuth...))
	if !bytes.Equal(q.qeReport[320:384], append(bound[:], make([]byte, 32)...)) {
		return errors.New("the quoting enclave vouches for another attestation key")
	}
	key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append([]byte{4}, q.key...))
	if err != nil {
		return errors.New("the attestation key is not a point on P-256")
	}
	if !verifyRaw(key, q.signed, q.signature) {
		return errors.New("the quote is not signed by its attestation key")
	}
	return nil
}

// verifyRaw verifies a signature of 64 bytes, r and s big-endian, over SHA-256.
func verifyRaw(key *ecdsa.PublicKey, message, signature []byte) bool {
	if len(signature) != signatureBytes {
		return false
	}
	hash := sha256.Sum256(message)
	return ecdsa.Verify(key, hash[:], new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:]))
}
