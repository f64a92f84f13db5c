package azvtpm

import (
	"testing"

	wire "github.com/sealpod/sealpod/attester/azvtpm"
	"github.com/sealpod/sealpod/relyingparty/verifier/internal/tpmquote"
)

// TestAnySignedByteCounts flips bits of all that is signed, and of every key
// and signature. Bytes of the HCL report outside claims and SNP report are
// nobody's to sign, nor is a quote's collateral chain beyond its certificates.
func TestAnySignedByteCounts(t *testing.T) {
	for _, kind := range kinds {
		v := newVM(t, kind, options{})
		m, verifier := v.model(), v.verifier()
		flip := func(name string, b []byte, step int) {
			t.Helper()
			for at := 0; at < len(b); at += step {
				bit := byte(1) << (at % 8)
				b[at] ^= bit
				if got, err := verifier.Verify(t.Context(), m.json(t), bound); err == nil {
					t.Errorf("%s: byte %d of %s: %v", kind.TEE(), at, name, got)
				}
				b[at] ^= bit
			}
		}
		flip("message", m.message, 7)
		flip("signature", m.signature, 13)
		for i := range m.pcrs {
			flip("PCR", m.pcrs[i], 17)
		}
		flip("claims", m.claims, 11)
		if kind == wire.SNP {
			flip("SNP report", m.report[:0x2A0], 9)
			flip("signature of the SNP report", m.report[0x2A0:0x2A0+48], 7)
			flip("VCEK", m.hardware, 23)
		} else {
			flip("quote", m.hardware[:48+584+4+128], 11) // header, body, signature and key
		}
		if _, err := verifier.Verify(t.Context(), m.json(t), bound); err != nil {
			t.Errorf("the unchanged evidence: %v", err)
		}
	}
}

func FuzzParseEvidence(f *testing.F) {
	for _, kind := range kinds {
		v := newVM(f, kind, options{})
		m := v.model()
		for m.version = range 3 {
			f.Add([]byte(m.json(f)), kind == wire.TDX)
		}
	}
	f.Add([]byte(`{"version":2,"tpm_quote":{"pcrs":["00"]},"hcl_report":"AA==","vcek":"AA==","cc_eventlog":"AA=="}`), false)
	f.Fuzz(func(t *testing.T, raw []byte, isTDX bool) {
		kind := wire.SNP
		if isTDX {
			kind = wire.TDX
		}
		e, err := parseEvidence(raw, kind)
		if err != nil {
			return
		}
		if e.hcl.Kind != kind || len(e.hardware) == 0 || len(e.hcl.Report) < wire.TDReportSize || e.version < 0 || e.version > 2 {
			t.Errorf("evidence %+v", e)
		}
	})
}

func FuzzAttestationKey(f *testing.F) {
	v := newVM(f, wire.SNP, options{})
	f.Add(v.model().claims)
	f.Add([]byte(`{"keys":[{"kid":"HCLAkPub","kty":"RSA","n":"AQ","e":"AQAB"}]}`))
	f.Add([]byte(`{"keys":[{"kid":"HCLAkPub","kty":"RSA","n":"","e":""}]}`))
	f.Fuzz(func(t *testing.T, claims []byte) {
		key, err := attestationKey(claims)
		if err != nil {
			return
		}
		if key.N == nil || key.E < 0 || key.E >= 1<<24 {
			t.Errorf("key %v", key)
		}
		_ = tpmquote.CheckKey(key) // it must take any
	})
}
