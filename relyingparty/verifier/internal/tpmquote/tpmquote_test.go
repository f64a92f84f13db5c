package tpmquote_test

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"math/big"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/sealpod/sealpod/relyingparty/verifier"
	"github.com/sealpod/sealpod/relyingparty/verifier/internal/tpmquote"
	"github.com/sealpod/sealpod/relyingparty/verifier/internal/tpmquote/quotetest"
)

var nonce = []byte("0123456789abcdef0123456789abcdef0123456789abcdef")

func evidence(m *quotetest.TPM) tpmquote.Evidence {
	message, signature := m.Quote(nonce)
	return tpmquote.Evidence{Message: message, Signature: signature, PCRs: m.Bytes()}
}

func refused(t *testing.T, name string, err error, text string) {
	t.Helper()
	if !errors.Is(err, verifier.ErrEvidence) || !strings.Contains(err.Error(), text) {
		t.Errorf("%s: %v", name, err)
	}
}

func TestGoodQuote(t *testing.T) {
	m := quotetest.New(t)
	q, err := tpmquote.Verify(evidence(m), &m.AK.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	if err := q.CheckNonce(nonce); err != nil {
		t.Error(err)
	}
	claims := q.Claims()
	if len(claims) != 24 || claims["pcr07"] != hex.EncodeToString(m.PCRs[7][:]) || claims["pcr23"] != hex.EncodeToString(m.PCRs[23][:]) {
		t.Errorf("claims %v", claims)
	}
	if b := q.Bound(); b["report_data"] != hex.EncodeToString(nonce) || b["init_data"] != strings.Repeat("00", 32) {
		t.Errorf("bound to %v", b)
	}
}

func TestNonce(t *testing.T) {
	q := &tpmquote.Quote{Nonce: nonce}
	other := slices.Clone(nonce)
	other[47] ^= 1
	refused(t, "other nonce", q.CheckNonce(other), "another nonce")
	refused(t, "shorter nonce", q.CheckNonce(nonce[:32]), "another nonce")
	refused(t, "longer nonce", q.CheckNonce(append(slices.Clone(nonce), 0)), "another nonce")
	refused(t, "nothing expected", q.CheckNonce(nil), "0 bytes")
	refused(t, "too much expected", q.CheckNonce(make([]byte, 65)), "65 bytes")
	refused(t, "quote without nonce", (&tpmquote.Quote{}).CheckNonce(nil), "0 bytes")
}

func TestInitData(t *testing.T) {
	m, digest := quotetest.New(t), sha256.Sum256([]byte("init data"))
	m.Extend(8, digest[:])
	q, err := tpmquote.Verify(evidence(m), &m.AK.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	if err := q.CheckInitData(digest[:]); err != nil {
		t.Error(err)
	}
	if err := q.CheckInitData(nil); err != nil {
		t.Errorf("none to compare: %v", err)
	}
	other := digest
	other[31] ^= 1
	refused(t, "one bit off", q.CheckInitData(other[:]), "other init data")
	refused(t, "SHA-384", q.CheckInitData(make([]byte, 48)), "48 bytes")
	refused(t, "empty", q.CheckInitData([]byte{}), "0 bytes")
	m.Extend(8, digest[:])
	if q, err = tpmquote.Verify(evidence(m), &m.AK.PublicKey); err != nil {
		t.Fatal(err)
	}
	refused(t, "bound twice", q.CheckInitData(digest[:]), "something more")
	refused(t, "register never extended", (&tpmquote.Quote{}).CheckInitData(digest[:]), "other init data")
}

// TestBadQuote has one row for each attack; resigned rows hold but for what
// they name.
func TestBadQuote(t *testing.T) {
	m := quotetest.New(t)
	good := evidence(m)
	attested := func(change func(*tpm2.TPMSAttest)) tpmquote.Evidence {
		a := m.Attest(nonce)
		change(&a)
		message := tpm2.Marshal(a)
		return tpmquote.Evidence{Message: message, Signature: m.Sign(message), PCRs: m.Bytes()}
	}
	signed := func(message []byte) tpmquote.Evidence {
		return tpmquote.Evidence{Message: message, Signature: m.Sign(message), PCRs: m.Bytes()}
	}
	registers := func(change func([][]byte) [][]byte) tpmquote.Evidence {
		e := good
		e.PCRs = change(m.Bytes())
		return e
	}
	digest := sha256.Sum256(bytes.Join(m.Bytes(), nil))
	few := sha256.Sum256(bytes.Join(m.Bytes()[:8], nil))
	sha1 := make([]byte, 20)
	quoted := func(bank tpm2.TPMAlgID, selected, d []byte) tpmquote.Evidence {
		return attested(func(a *tpm2.TPMSAttest) { a.Attested = m.Quoted(bank, selected, d) })
	}
	all := []byte{0xFF, 0xFF, 0xFF}
	foreign := evidence(m.Another())
	for name, c := range map[string]struct {
		e    tpmquote.Evidence
		text string
	}{
		"signed by another key": {foreign, "not signed by the attestation key"},
		"signature of another":  {tpmquote.Evidence{Message: good.Message, Signature: foreign.Signature, PCRs: good.PCRs}, "not signed"},
		"no signature":          {tpmquote.Evidence{Message: good.Message, PCRs: good.PCRs}, "not signed"},
		"signature and a zero":  {tpmquote.Evidence{Message: good.Message, Signature: append([]byte{0}, good.Signature...), PCRs: good.PCRs}, "not signed"},
		"made by no TPM":        {attested(func(a *tpm2.TPMSAttest) { a.Magic = 0x12345678 }), "magic"},
		"certification of a key": {attested(func(a *tpm2.TPMSAttest) {
			a.Type = tpm2.TPMSTAttestCertify
			a.Attested = tpm2.NewTPMUAttest(tpm2.TPMSTAttestCertify, &tpm2.TPMSCertifyInfo{})
		}), "type 0x8017"},
		"registers 0 to 7 only": {quoted(tpm2.TPMAlgSHA256, []byte{0xFF, 0, 0}, few[:]), "leaves registers out"},
		"register 23 left out":  {quoted(tpm2.TPMAlgSHA256, []byte{0xFF, 0xFF, 0x7F}, digest[:]), "leaves registers out"},
		"registers 0 to 31":     {quoted(tpm2.TPMAlgSHA256, []byte{0xFF, 0xFF, 0xFF, 0xFF}, digest[:]), "selection of 4 bytes"},
		"bank of SHA-1":         {quoted(tpm2.TPMAlgSHA1, all, sha1), "bank 0x4"},
		"digest of SHA-1":       {quoted(tpm2.TPMAlgSHA256, all, sha1), "pcrDigest of 20 bytes"},
		"digest of SHA-384":     {quoted(tpm2.TPMAlgSHA256, all, make([]byte, 48)), "pcrDigest of 48 bytes"},
		"no bank": {attested(func(a *tpm2.TPMSAttest) {
			a.Attested = tpm2.NewTPMUAttest(tpm2.TPMSTAttestQuote, &tpm2.TPMSQuoteInfo{PCRDigest: tpm2.TPM2BDigest{Buffer: digest[:]}})
		}), "0 banks"},
		"two banks": {attested(func(a *tpm2.TPMSAttest) {
			a.Attested = tpm2.NewTPMUAttest(tpm2.TPMSTAttestQuote, &tpm2.TPMSQuoteInfo{
				PCRSelect: tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{
					{Hash: tpm2.TPMAlgSHA256, PCRSelect: all}, {Hash: tpm2.TPMAlgSHA1, PCRSelect: all}}},
				PCRDigest: tpm2.TPM2BDigest{Buffer: digest[:]},
			})
		}), "2 banks"},
		"nonce of 65 bytes":    {attested(func(a *tpm2.TPMSAttest) { a.ExtraData.Buffer = make([]byte, 65) }), "extraData of 65 bytes"},
		"name of 67 bytes":     {attested(func(a *tpm2.TPMSAttest) { a.QualifiedSigner.Buffer = make([]byte, 67) }), "qualifiedSigner of 67 bytes"},
		"neither safe nor not": {signed(func() []byte { b := slices.Clone(good.Message); b[4+2+2+34+2+48+16] = 2; return b }()), "safe is 2"},
		"a byte too many":      {signed(append(slices.Clone(good.Message), 0)), "1 bytes behind"},
		"empty":                {signed(nil), "truncated at magic"},
		"register changed":     {registers(func(p [][]byte) [][]byte { p[11][31] ^= 1; return p }), "not those it covers"},
		"registers swapped":    {registers(func(p [][]byte) [][]byte { p[1], p[2] = p[2], p[1]; return p }), "not those it covers"},
		"register missing":     {registers(func(p [][]byte) [][]byte { return p[:23] }), "23 registers"},
		"25 registers":         {registers(func(p [][]byte) [][]byte { return append(p, p[0]) }), "25 registers"},
		"no registers":         {registers(func([][]byte) [][]byte { return nil }), "0 registers"},
		"registers cut anew":   {registers(func(p [][]byte) [][]byte { p[1] = append(p[1], p[2][0]); p[2] = p[2][1:]; return p }), "PCR 1 has 33 bytes"},
		"register of 20 bytes": {registers(func(p [][]byte) [][]byte { p[3] = p[3][:20]; return p }), "PCR 3 has 20 bytes"},
	} {
		_, err := tpmquote.Verify(c.e, &m.AK.PublicKey)
		refused(t, name, err, c.text)
	}
	if _, err := tpmquote.Verify(good, &m.AK.PublicKey); err != nil {
		t.Errorf("the unchanged quote: %v", err)
	}
}

func TestTruncatedQuote(t *testing.T) {
	m := quotetest.New(t)
	good := evidence(m)
	for n := range good.Message {
		e := good
		e.Message = good.Message[:n]
		e.Signature = m.Sign(e.Message) // a TPM with a bug, say
		_, err := tpmquote.Verify(e, &m.AK.PublicKey)
		refused(t, "truncated", err, "truncated at")
	}
}

func TestAnySignedByteCounts(t *testing.T) {
	m := quotetest.New(t)
	for _, part := range []func(*tpmquote.Evidence) []byte{
		func(e *tpmquote.Evidence) []byte { return e.Message },
		func(e *tpmquote.Evidence) []byte { return e.Signature },
	} {
		e := evidence(m)
		b := part(&e)
		for at := range b {
			b[at] ^= 1 << (at % 8)
			_, err := tpmquote.Verify(e, &m.AK.PublicKey)
			refused(t, "flipped bit", err, "not signed")
			b[at] ^= 1 << (at % 8)
		}
	}
	e := evidence(m)
	for i, p := range e.PCRs {
		p[i] ^= 0x80
		_, err := tpmquote.Verify(e, &m.AK.PublicKey)
		refused(t, "flipped bit of a register", err, "not those it covers")
		p[i] ^= 0x80
	}
}

func TestWeakKeys(t *testing.T) {
	t.Setenv("GODEBUG", "rsa1024min=0")
	m := quotetest.New(t)
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	m.AK = small
	_, err = tpmquote.Verify(evidence(m), &small.PublicKey)
	refused(t, "1024 bits", err, "1024 bits")
	huge := &rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), 8191), E: 65537}
	refused(t, "8192 bits", tpmquote.CheckKey(huge), "8192 bits")
	three := &rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), 2047), E: 3}
	refused(t, "exponent 3", tpmquote.CheckKey(three), "exponent 3")
}

func BenchmarkVerify(b *testing.B) {
	m := quotetest.New(b)
	e := evidence(m)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := tpmquote.Verify(e, &m.AK.PublicKey); err != nil {
			b.Fatal(err)
		}
	}
}
