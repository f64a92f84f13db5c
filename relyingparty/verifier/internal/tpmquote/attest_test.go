package tpmquote

import (
	"bytes"
	"strings"
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

func signature(scheme, hash tpm2.TPMAlgID, sig []byte) []byte {
	return tpm2.Marshal(tpm2.TPMTSignature{
		SigAlg:    scheme,
		Signature: tpm2.NewTPMUSignature(scheme, &tpm2.TPMSSignatureRSA{Hash: hash, Sig: tpm2.TPM2BPublicKeyRSA{Buffer: sig}}),
	})
}

func TestParseSignature(t *testing.T) {
	sig := bytes.Repeat([]byte{7}, 256)
	good := signature(tpm2.TPMAlgRSASSA, tpm2.TPMAlgSHA256, sig)
	if got, err := ParseSignature(good); err != nil || !bytes.Equal(got, sig) {
		t.Errorf("%x, %v", got, err)
	}
	for name, c := range map[string]struct {
		b    []byte
		text string
	}{
		"empty":         {nil, "truncated at sigAlg"},
		"RSAPSS":        {signature(tpm2.TPMAlgRSAPSS, tpm2.TPMAlgSHA256, sig), "scheme 0x16"},
		"SHA-1":         {signature(tpm2.TPMAlgRSASSA, tpm2.TPMAlgSHA1, sig), "hash 0x4"},
		"ECDSA":         {append([]byte{0, 0x18}, good[2:]...), "scheme 0x18"},
		"cut":           {good[:261], "truncated at sig"},
		"a byte more":   {append(bytes.Clone(good), 0), "1 bytes behind"},
		"an 8192er":     {signature(tpm2.TPMAlgRSASSA, tpm2.TPMAlgSHA256, make([]byte, 1024)), "sig of 1024 bytes"},
		"bare":          {sig, "scheme 0x707"},
		"length lies":   {append(bytes.Clone(good[:4]), 0xFF, 0xFF), "sig of 65535 bytes"},
		"nothing but 4": {good[:4], "truncated at sig"},
	} {
		if _, err := ParseSignature(c.b); err == nil || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzParseSignature compares with go-tpm.
func FuzzParseSignature(f *testing.F) {
	f.Add(signature(tpm2.TPMAlgRSASSA, tpm2.TPMAlgSHA256, make([]byte, 256)))
	f.Add(signature(tpm2.TPMAlgRSAPSS, tpm2.TPMAlgSHA256, nil))
	f.Add([]byte{0, 0x14, 0, 0x0B, 0xFF, 0xFF})
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := ParseSignature(b)
		if err != nil {
			return
		}
		want, err := tpm2.Unmarshal[tpm2.TPMTSignature](b)
		if err != nil {
			t.Fatalf("go-tpm: %v", err)
		}
		rsa, err := want.Signature.RSASSA()
		if err != nil || !bytes.Equal(rsa.Sig.Buffer, got) {
			t.Errorf("%x, go-tpm has %v, %v", got, rsa, err)
		}
	})
}
