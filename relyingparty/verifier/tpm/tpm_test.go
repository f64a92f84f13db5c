package tpm

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"math/big"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/sealpod/sealpod/relyingparty/verifier"
	"github.com/sealpod/sealpod/relyingparty/verifier/internal/tpmquote/quotetest"
)

var reportData = []byte("0123456789abcdef0123456789abcdef0123456789abcdef")

// model is the evidence of the attester before it is JSON.
type model struct {
	key, signature, message []byte
	pcrs                    []string
}

// newModel quotes a nonce, as the attester makes it of report data.
func newModel(t testing.TB, m *quotetest.TPM, nonce []byte) model {
	t.Helper()
	message := tpm2.Marshal(m.Attest(nonce))
	return model{key: derOf(t, m.AK.Public()), signature: marshalled(tpm2.TPMAlgRSASSA, tpm2.TPMAlgSHA256, m.Sign(message)), message: message, pcrs: m.Hex()}
}

func derOf(t testing.TB, key any) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func marshalled(scheme, hash tpm2.TPMAlgID, sig []byte) []byte {
	return tpm2.Marshal(tpm2.TPMTSignature{
		SigAlg:    scheme,
		Signature: tpm2.NewTPMUSignature(scheme, &tpm2.TPMSSignatureRSA{Hash: hash, Sig: tpm2.TPM2BPublicKeyRSA{Buffer: sig}}),
	})
}

func (m model) json(t testing.TB) json.RawMessage {
	t.Helper()
	text, err := json.Marshal(map[string]any{
		"ak_public": m.key, "tpm_quote": map[string]any{"signature": m.signature, "message": m.message, "pcrs": m.pcrs},
	})
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestGoodEvidence(t *testing.T) {
	m, digest := quotetest.New(t), sha256.Sum256([]byte("init data"))
	m.Extend(8, digest[:])
	raw := newModel(t, m, reportData[:32]).json(t)
	got, err := New().Verify(t.Context(), raw, verifier.Expected{ReportData: reportData, InitData: digest[:]})
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 1 || got[0].Class != verifier.CPU || len(got[0].Values) != 24+3 || New().TEE() != "tpm" {
		t.Errorf("claims %v", got)
	}
	for name, want := range map[string]string{
		"ak_public":   base64.StdEncoding.EncodeToString(derOf(t, m.AK.Public())),
		"report_data": hex.EncodeToString(reportData[:32]), "init_data": hex.EncodeToString(m.PCRs[8][:]),
		"pcr00": hex.EncodeToString(m.PCRs[0][:]), "pcr11": hex.EncodeToString(m.PCRs[11][:]),
	} {
		if got[0].Values[name] != want {
			t.Errorf("%s: %v, want %s", name, got[0].Values[name], want)
		}
	}
	padded := append([]byte("challenge"), make([]byte, 23)...)
	if _, err := New().Verify(t.Context(), newModel(t, m, padded).json(t), verifier.Expected{ReportData: []byte("challenge")}); err != nil {
		t.Errorf("short report data: %v", err)
	}
}

// TestBadEvidence has one row for each attack.
func TestBadEvidence(t *testing.T) {
	m, digest := quotetest.New(t), sha256.Sum256([]byte("init data"))
	m.Extend(8, digest[:])
	good := newModel(t, m, reportData[:32])
	bound := verifier.Expected{ReportData: reportData, InitData: digest[:]}
	change := func(f func(*model)) json.RawMessage {
		e := good
		e.pcrs, e.signature = slices.Clone(good.pcrs), slices.Clone(good.signature)
		f(&e)
		return e.json(t)
	}
	attested := func(f func(*tpm2.TPMSAttest)) json.RawMessage {
		a := m.Attest(reportData[:32])
		f(&a)
		return change(func(e *model) {
			e.message = tpm2.Marshal(a)
			e.signature = marshalled(tpm2.TPMAlgRSASSA, tpm2.TPMAlgSHA256, m.Sign(e.message))
		})
	}
	other := m.Another()
	nonce := slices.Clone(reportData)
	nonce[31] ^= 1
	init := digest
	init[0] ^= 1
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	huge := derOf(t, &rsa.PublicKey{N: new(big.Int).SetBit(big.NewInt(1), 16383, 1), E: 65537})
	for name, c := range map[string]struct {
		raw  json.RawMessage
		want verifier.Expected
		text string
	}{
		"wrong nonce":               {good.json(t), verifier.Expected{ReportData: nonce}, "another nonce"},
		"replayed":                  {good.json(t), verifier.Expected{ReportData: []byte("digest of the next session")}, "another nonce"},
		"nothing expected":          {good.json(t), verifier.Expected{}, "0 bytes"},
		"zeros for nothing":         {newModel(t, m, make([]byte, 32)).json(t), verifier.Expected{}, "0 bytes"},
		"nonce of 48 bytes":         {newModel(t, m, reportData).json(t), bound, "another nonce"},
		"init data off by one byte": {good.json(t), verifier.Expected{ReportData: reportData, InitData: init[:]}, "other init data"},
		"init data of SHA-384":      {good.json(t), verifier.Expected{ReportData: reportData, InitData: make([]byte, 48)}, "48 bytes"},
		"key swapped":               {change(func(e *model) { e.key = derOf(t, other.AK.Public()) }), bound, "not signed by the attestation key"},
		"signed by another key":     {change(func(e *model) { e.signature = newModel(t, other, reportData[:32]).signature }), bound, "not signed"},
		"bare signature":            {change(func(e *model) { e.signature = m.Sign(e.message) }), bound, "signature of scheme"},
		"RSAPSS":                    {change(func(e *model) { e.signature[1] = 0x16 }), bound, "scheme 0x16"},
		"key on a curve":            {change(func(e *model) { e.key = derOf(t, ec.Public()) }), bound, "not an RSA key"},
		"key of 16384 bits":         {change(func(e *model) { e.key = huge }), bound, "16384 bits"},
		"key and a byte":            {change(func(e *model) { e.key = append(slices.Clone(e.key), 0) }), bound, "trailing data"},
		"no key":                    {change(func(e *model) { e.key = nil }), bound, "no ak_public"},
		"PCR changed":               {change(func(e *model) { e.pcrs[11] = strings.Repeat("00", 32) }), bound, "not those it covers"},
		"PCR missing":               {change(func(e *model) { e.pcrs = e.pcrs[:23] }), bound, "23 registers"},
		"25 PCRs":                   {change(func(e *model) { e.pcrs = append(e.pcrs, e.pcrs[0]) }), bound, "25 registers"},
		"PCR of 31 bytes":           {change(func(e *model) { e.pcrs[3] = e.pcrs[3][2:] }), bound, "PCR 3 has 31 bytes"},
		"PCR that is no number":     {change(func(e *model) { e.pcrs[3] = "x" + e.pcrs[3][1:] }), bound, "decoding PCR 3"},
		"truncated quote":           {change(func(e *model) { e.message = e.message[:len(e.message)-1] }), bound, "not signed"},
		"certification of a key": {attested(func(a *tpm2.TPMSAttest) {
			a.Type = tpm2.TPMSTAttestTime
			a.Attested = tpm2.NewTPMUAttest(a.Type, &tpm2.TPMSTimeAttestInfo{})
		}), bound, "type 0x8019"},
		"bank of SHA-1": {attested(func(a *tpm2.TPMSAttest) {
			a.Attested = m.Quoted(tpm2.TPMAlgSHA1, []byte{255, 255, 255}, make([]byte, 20))
		}), bound, "bank 0x4"},
		"fewer PCRs": {attested(func(a *tpm2.TPMSAttest) {
			a.Attested = m.Quoted(tpm2.TPMAlgSHA256, []byte{255, 255, 0}, make([]byte, 32))
		}), bound, "leaves registers out"},
		"evidence of SNP":      {json.RawMessage(`{"attestation_report":{},"cert_chain":null}`), bound, "not the evidence of a guest with a TPM"},
		"evidence of TDX":      {json.RawMessage(`{"quote":"BAAC","cc_eventlog":null}`), bound, "not the evidence of a guest with a TPM"},
		"evidence of az-snp":   {json.RawMessage(`{"version":2,"tpm_quote":{"signature":"00","message":"00","pcrs":[]},"hcl_report":"","vcek":""}`), bound, "reading TPM evidence"},
		"two values":           {append(good.json(t), good.json(t)...), bound, "data after"},
		"cut JSON":             {good.json(t)[:900], bound, "not the JSON"},
		"object for a key":     {json.RawMessage(`{"ak_public":{}}`), bound, "not the JSON"},
		"key in other base64":  {json.RawMessage(`{"ak_public":"__8="}`), bound, "not the JSON"},
		"too much":             {append(good.json(t), slices.Repeat([]byte(" "), maxEvidence)...), bound, "at most"},
		"other base64, quoted": {json.RawMessage(strings.Replace(string(good.json(t)), `"message":"`, `"message":"_`, 1)), bound, "not the JSON"},
	} {
		got, err := New().Verify(t.Context(), c.raw, c.want)
		if !errors.Is(err, verifier.ErrEvidence) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	if _, err := New().Verify(t.Context(), good.json(t), bound); err != nil {
		t.Errorf("the unchanged evidence: %v", err)
	}
}

// TestKeyHasOneForm: a policy compares the claim as text. A bit string whose
// last bits do not count has the same key two bits further up.
func TestKeyHasOneForm(t *testing.T) {
	m := quotetest.New(t)
	e := newModel(t, m, reportData[:32])
	var spki struct {
		Algorithm asn1.RawValue
		Key       asn1.BitString
	}
	if _, err := asn1.Unmarshal(e.key, &spki); err != nil {
		t.Fatal(err)
	}
	shifted := new(big.Int).Lsh(new(big.Int).SetBytes(spki.Key.Bytes), 2).Bytes()
	spki.Key = asn1.BitString{Bytes: shifted, BitLength: 8*len(shifted) - 2}
	der, err := asn1.Marshal(spki)
	if err != nil {
		t.Fatal(err)
	}
	plain := e.key
	e.key = der
	got, err := New().Verify(t.Context(), e.json(t), verifier.Expected{ReportData: reportData})
	if err != nil || bytes.Equal(der, plain) || got[0].Values["ak_public"] != base64.StdEncoding.EncodeToString(plain) {
		t.Errorf("%v, %v", got, err)
	}
}

func FuzzParseEvidence(f *testing.F) {
	f.Add([]byte(newModel(f, quotetest.New(f), reportData[:32]).json(f)))
	f.Add([]byte(`{"ak_public":"AA==","tpm_quote":{"pcrs":["00"]}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if e, err := parseEvidence(raw); err == nil && (e.key == nil || len(e.der) == 0) {
			t.Error("evidence without a key")
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	raw := newModel(b, quotetest.New(b), reportData[:32]).json(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := New().Verify(b.Context(), raw, verifier.Expected{ReportData: reportData}); err != nil {
			b.Fatal(err)
		}
	}
}
