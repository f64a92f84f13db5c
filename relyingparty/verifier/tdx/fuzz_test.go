package tdx

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"reflect"
	"testing"

	"github.com/google/go-tdx-guest/testing/testdata"

	"github.com/sealpod/sealpod/relyingparty/verifier"
)

func FuzzVerify(f *testing.F) {
	s := newSimulator(f)
	quote := s.quote(s.model())
	log, _ := agentLog("d o c")
	f.Add([]byte(toJSON(quote, log)))
	f.Add([]byte(toJSON(s.recorded(nil, bindEvent("30")), withFiller(bindEvent("30")))))
	f.Add([]byte(`{"quote":"BAAC","cc_eventlog":null}`))
	v := s.verifier(s.collateral(s.tcb()))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if _, err := v.Verify(t.Context(), raw, verifier.Expected{ReportData: digest, InitData: []byte("0")}); err != nil && !errors.Is(err, verifier.ErrEvidence) {
			t.Error(err)
		}
	})
}

func FuzzVerifyQuote(f *testing.F) {
	s := newSimulator(f)
	m := s.model()
	f.Add(s.quote(m))
	m.Header.Version, m.BodyType, m.Body.TEETCBSVN2 = 5, bodyType15, m.Body.TEETCBSVN
	f.Add(s.quote(m))
	v := s.verifier(s.collateral(s.tcb()))
	good, err := parseQuote(s.quote(s.model()))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		q, _, err := v.VerifyQuote(t.Context(), raw)
		if err == nil && !bytes.Equal(q.Body[:bodySize10], good.Body) {
			t.Error("a forged quote")
		}
		if err != nil && !errors.Is(err, verifier.ErrEvidence) {
			t.Error(err)
		}
	})
}

// FuzzPCK has the extension of PCK certificates.
func FuzzPCK(f *testing.F) {
	q, err := parseQuote(testdata.RawQuote)
	if err != nil {
		f.Fatal(err)
	}
	certs, err := parsePEM(q.chain, 3)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(sgxExtension(f, certs[0]))
	f.Add(sgxExtension(f, newSimulator(f).PCK))
	f.Fuzz(func(t *testing.T, der []byte) {
		p, err := parsePCK(&x509.Certificate{Extensions: []pkix.Extension{{Id: oidSGX, Value: der}}})
		if err == nil && (len(p.fmspc) != 6 || len(p.pceID) != 2 || len(p.ppid) != 16 || p.multi && len(p.instance) != 16) {
			t.Errorf("%+v", p)
		}
	})
}

// FuzzCollateral changes what a source says; what is accepted says the same.
func FuzzCollateral(f *testing.F) {
	s := newSimulator(f)
	c := s.collateral(s.tcb())
	ch, err := parseChain(s.Chain(), certs(s.root))
	if err != nil {
		f.Fatal(err)
	}
	want, err := c.check(ch)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(c.TCBInfo, c.TCBInfoChain, c.QEIdentity, c.PCKCRL, c.RootCRL)
	f.Fuzz(func(t *testing.T, info, chain, identity, pckCRL, rootCRL []byte) {
		got, err := (&Collateral{TCBInfo: info, TCBInfoChain: chain, QEIdentity: identity, QEIdentityChain: chain, PCKCRL: pckCRL, RootCRL: rootCRL}).check(ch)
		if err == nil && (!reflect.DeepEqual(got.tcb, want.tcb) || !reflect.DeepEqual(got.qe, want.qe) || !bytes.Equal(got.pckCRL.RawTBSRevocationList, want.pckCRL.RawTBSRevocationList)) {
			t.Error("forged collateral")
		}
	})
}

func FuzzCollateralFile(f *testing.F) {
	s := newSimulator(f)
	text, err := s.CollateralJSON()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte(`{"collaterals":{"tcbinfos":[{"fmspc":"010203040506","tdx_tcbinfo":{},"tdx_tcbinfo_early":null}],"certificates":{"TCB-Info-Issuer-Chain":"%"}}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := File{}.parse(text, simPlatform)
		if err == nil && !json.Valid(c.TCBInfo) {
			t.Errorf("%q", c.TCBInfo)
		}
	})
}
