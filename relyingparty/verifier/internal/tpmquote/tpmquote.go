package tpmquote

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"github.com/sealpod/sealpod/relyingparty/verifier"
)

const (
	// Registers is how many platform configuration registers a quote covers.
	Registers = 24
	// RegisterSize is the length of each in bytes, that of SHA-256.
	RegisterSize = sha256.Size
	// InitDataRegister is extended with the digest of init data, once and by
	// nothing else. Source: trustee deps/verifier/src/az_snp_vtpm/mod.rs.
	InitDataRegister = 8

	minKeyBits, maxKeyBits = 2048, 4096
	exponent               = 65537 // of every RSA key a TPM makes unless told otherwise
)

// Evidence is a quote as a guest sends it.
type Evidence struct {
	// Message is the TPMS_ATTEST that was signed.
	Message []byte
	// Signature is the bare RSASSA signature, as long as the modulus.
	Signature []byte
	// PCRs are the registers, 0 first; 24 of 32 bytes unless the guest lies.
	PCRs [][]byte
}

// Quote is a verified quote.
type Quote struct {
	// Nonce is the qualifying data of the quote, 0 to 64 bytes.
	Nonce []byte
	// PCRs are the registers of the SHA-256 bank.
	PCRs [Registers][RegisterSize]byte
}

// CheckKey says whether a key can be an attestation key here: RSA with 2048 to
// 4096 bits and the exponent of TPMs. What does not hold is
// verifier.ErrEvidence.
func CheckKey(key *rsa.PublicKey) error {
	if bits := key.N.BitLen(); bits < minKeyBits || bits > maxKeyBits {
		return fmt.Errorf("%w: attestation key of %d bits, must have %d to %d", verifier.ErrEvidence, bits, minKeyBits, maxKeyBits)
	}
	if key.E != exponent {
		return fmt.Errorf("%w: attestation key with exponent %d, must be %d", verifier.ErrEvidence, key.E, exponent)
	}
	return nil
}

// Verify checks that the key signed the message with RSASSA and SHA-256, that
// the message is a quote over all registers of the SHA-256 bank, and that these
// are the registers it is over. What does not hold is verifier.ErrEvidence.
func Verify(e Evidence, key *rsa.PublicKey) (*Quote, error) {
	bad := func(format string, args ...any) (*Quote, error) {
		return nil, fmt.Errorf("%w: TPM quote: %w", verifier.ErrEvidence, fmt.Errorf(format, args...))
	}
	if err := CheckKey(key); err != nil {
		return nil, err
	}
	sum := sha256.Sum256(e.Message)
	if err := rsa.VerifyPKCS1v15(key, crypto.SHA256, sum[:], e.Signature); err != nil {
		return bad("it is not signed by the attestation key: %w", err)
	}
	a, err := parseAttest(e.Message)
	if err != nil {
		return bad("%w", err)
	}
	if len(e.PCRs) != Registers {
		return bad("%d registers came along, it covers %d", len(e.PCRs), Registers)
	}
	q := &Quote{Nonce: bytes.Clone(a.nonce)}
	all := make([]byte, 0, Registers*RegisterSize)
	for i, p := range e.PCRs {
		if len(p) != RegisterSize {
			return bad("PCR %d has %d bytes, must have %d", i, len(p), RegisterSize)
		}
		copy(q.PCRs[i][:], p)
		all = append(all, p...)
	}
	if sum := sha256.Sum256(all); !bytes.Equal(sum[:], a.digest) {
		return bad("the registers that came along are not those it covers")
	}
	return q, nil
}

// CheckNonce compares the qualifying data with a nonce of 1 to 64 bytes. What
// does not hold is verifier.ErrEvidence.
func (q *Quote) CheckNonce(nonce []byte) error {
	if n := len(nonce); n == 0 || n > maxNonce {
		return fmt.Errorf("%w: expected report data has %d bytes, TPM quotes carry 1 to %d", verifier.ErrEvidence, n, maxNonce)
	}
	if !bytes.Equal(q.Nonce, nonce) {
		return fmt.Errorf("%w: the nonce of the TPM quote is not that of this handshake: it was made for another nonce or TEE key", verifier.ErrEvidence)
	}
	return nil
}

// CheckInitData compares PCR 8 with what it is after one extension with the
// digest of init data, 32 bytes long; nil means that there is none to compare.
// What does not hold is verifier.ErrEvidence.
func (q *Quote) CheckInitData(digest []byte) error {
	if digest == nil {
		return nil
	}
	if len(digest) != RegisterSize {
		return fmt.Errorf("%w: the digest of the init data has %d bytes, a TPM can be bound to %d: the init data must name the algorithm sha256",
			verifier.ErrEvidence, len(digest), RegisterSize)
	}
	want := sha256.Sum256(append(make([]byte, RegisterSize, 2*RegisterSize), digest...))
	if q.PCRs[InitDataRegister] != want {
		return fmt.Errorf("%w: PCR %d was not extended with the digest of the init data sent along and nothing else: the guest was started with other init data, or something more was measured there",
			verifier.ErrEvidence, InitDataRegister)
	}
	return nil
}

// Claims returns the registers by name, "pcr00" to "pcr23", in hexadecimal.
func (q *Quote) Claims() map[string]any {
	claims := make(map[string]any, Registers)
	for i, p := range q.PCRs {
		claims[fmt.Sprintf("pcr%02d", i)] = hex.EncodeToString(p[:])
	}
	return claims
}

// Bound returns the claims that package attestation compares sessions by:
// report_data is the nonce and init_data PCR 8, both in hexadecimal.
func (q *Quote) Bound() map[string]any {
	return map[string]any{
		"report_data": hex.EncodeToString(q.Nonce),
		"init_data":   hex.EncodeToString(q.PCRs[InitDataRegister][:]),
	}
}
