package tpmquote

import (
	"bytes"
	"testing"

	"github.com/google/go-tpm/tpm2"
)

// FuzzParseAttest compares with go-tpm, which reads every form of attestation.
func FuzzParseAttest(f *testing.F) {
	good := tpm2.Marshal(tpm2.TPMSAttest{
		Magic: tpm2.TPMGeneratedValue, Type: tpm2.TPMSTAttestQuote,
		QualifiedSigner: tpm2.TPM2BName{Buffer: make([]byte, 34)},
		ExtraData:       tpm2.TPM2BData{Buffer: []byte("nonce")},
		Attested: tpm2.NewTPMUAttest(tpm2.TPMSTAttestQuote, &tpm2.TPMSQuoteInfo{
			PCRSelect: tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: []byte{255, 255, 255}}}},
			PCRDigest: tpm2.TPM2BDigest{Buffer: make([]byte, 32)},
		}),
	})
	f.Add(good)
	f.Add(good[:60])
	f.Add(append(bytes.Clone(good[:8]), 0xFF, 0xFF))
	f.Fuzz(func(t *testing.T, message []byte) {
		a, err := parseAttest(message)
		if err != nil {
			return
		}
		want, err := tpm2.Unmarshal[tpm2.TPMSAttest](message)
		if err != nil {
			t.Fatalf("go-tpm: %v", err)
		}
		quote, err := want.Attested.Quote()
		if err != nil {
			t.Fatalf("go-tpm: %v", err)
		}
		if !bytes.Equal(a.nonce, want.ExtraData.Buffer) || !bytes.Equal(a.digest, quote.PCRDigest.Buffer) {
			t.Errorf("%x and %x, go-tpm has %x and %x", a.nonce, a.digest, want.ExtraData.Buffer, quote.PCRDigest.Buffer)
		}
		if !bytes.Equal(tpm2.Marshal(*want), message) {
			t.Errorf("not the one form of %x", message)
		}
	})
}
