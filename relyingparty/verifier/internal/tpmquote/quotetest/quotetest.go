// Package quotetest makes TPM quotes for tests without a TPM: registers in
// memory, an RSA key as attestation key, and the structures of go-tpm, which is
// not the code under test.
package quotetest

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-tpm/tpm2"
)

// TPM is a TPM that can only quote. Change its registers at will.
type TPM struct {
	// AK is the attestation key.
	AK *rsa.PrivateKey
	// PCRs is the SHA-256 bank.
	PCRs [24][32]byte

	t testing.TB
}

// keys are made once in a process: RSA keys take time.
var keys = sync.OnceValue(func() [2]*rsa.PrivateKey {
	var out [2]*rsa.PrivateKey
	for i := range out {
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			panic(err)
		}
		out[i] = key
	}
	return out
})

// New returns a TPM. All of a process have one key.
func New(t testing.TB) *TPM {
	m := &TPM{AK: keys()[0], t: t}
	for i := range m.PCRs {
		m.PCRs[i] = sha256.Sum256([]byte{byte(i)})
	}
	m.PCRs[8] = [32]byte{}
	return m
}

// Another returns a copy with another attestation key.
func (m *TPM) Another() *TPM {
	other := *m
	other.AK = keys()[1]
	return &other
}

// Extend extends a register with a digest.
func (m *TPM) Extend(pcr int, digest []byte) {
	m.PCRs[pcr] = sha256.Sum256(append(slices.Clone(m.PCRs[pcr][:]), digest...))
}

// Attest returns the structure that TPM2_Quote signs, for tests to change.
func (m *TPM) Attest(nonce []byte) tpm2.TPMSAttest {
	h := sha256.New()
	for _, p := range m.PCRs {
		h.Write(p[:])
	}
	return tpm2.TPMSAttest{
		Magic: tpm2.TPMGeneratedValue, Type: tpm2.TPMSTAttestQuote,
		QualifiedSigner: tpm2.TPM2BName{Buffer: append([]byte{0, 0x0B}, make([]byte, 32)...)},
		ExtraData:       tpm2.TPM2BData{Buffer: nonce},
		ClockInfo:       tpm2.TPMSClockInfo{Clock: 1234, ResetCount: 2, Safe: true},
		FirmwareVersion: 0x2020031200120003,
		Attested:        m.Quoted(tpm2.TPMAlgSHA256, []byte{0xFF, 0xFF, 0xFF}, h.Sum(nil)),
	}
}

// Quoted is the part of the structure that is of quotes only.
func (m *TPM) Quoted(bank tpm2.TPMAlgID, selected, digest []byte) tpm2.TPMUAttest {
	return tpm2.NewTPMUAttest(tpm2.TPMSTAttestQuote, &tpm2.TPMSQuoteInfo{
		PCRSelect: tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: bank, PCRSelect: selected}}},
		PCRDigest: tpm2.TPM2BDigest{Buffer: digest},
	})
}

// Sign returns the RSASSA signature of a message, with SHA-256.
func (m *TPM) Sign(message []byte) []byte {
	m.t.Helper()
	sum := sha256.Sum256(message)
	out, err := rsa.SignPKCS1v15(nil, m.AK, crypto.SHA256, sum[:])
	if err != nil {
		m.t.Fatal(err)
	}
	return out
}

// Quote returns a TPMS_ATTEST for a nonce and its signature.
func (m *TPM) Quote(nonce []byte) (message, signature []byte) {
	m.t.Helper()
	message = tpm2.Marshal(m.Attest(nonce))
	return message, m.Sign(message)
}

// Bytes returns the registers, 0 first.
func (m *TPM) Bytes() [][]byte {
	out := make([][]byte, len(m.PCRs))
	for i := range m.PCRs {
		out[i] = slices.Clone(m.PCRs[i][:])
	}
	return out
}

// Hex returns the registers in hexadecimal, 0 first.
func (m *TPM) Hex() []string {
	out := make([]string, len(m.PCRs))
	for i := range m.PCRs {
		out[i] = hex.EncodeToString(m.PCRs[i][:])
	}
	return out
}
