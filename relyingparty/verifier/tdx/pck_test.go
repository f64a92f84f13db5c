package tdx

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tdx-guest/testing/testdata"

	"github.com/sealpod/sealpod/relyingparty/verifier"
	teesim "github.com/sealpod/sealpod/teesim/tdx"
)

func TestPCKOfRealQuote(t *testing.T) {
	q, err := parseQuote(testdata.RawQuote)
	if err != nil {
		t.Fatal(err)
	}
	root, err := IntelRoot()
	if err != nil {
		t.Fatal(err)
	}
	ch, err := parseChain(q.chain, certs(root))
	if err != nil {
		t.Fatal(err)
	}
	p, err := parsePCK(ch.pck)
	if err != nil || ch.caType != platformCA || !bytes.Equal(p.fmspc, []byte{0x50, 0x80, 0x6f, 0, 0, 0}) || p.pceSVN != 11 ||
		p.components != [16]uint8{3, 3, 2, 2, 2, 1, 0, 2} || p.sgxType != 1 || !p.multi {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestProcessorCA(t *testing.T) {
	s := newPlatform(t, teesim.Options{Processor: true})
	source := &fixed{c: s.collateral(s.tcb())}
	v, err := New(Config{Roots: certs(s.root), Source: source, Now: func() time.Time { return simTime }})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := v.VerifyQuote(t.Context(), s.quote(s.model())); err != nil || source.last.CA != processorCA {
		t.Errorf("%q, %v", source.last.CA, err)
	}
}

// sgxExtension is the value of Intel's extension.
func sgxExtension(t testing.TB, cert *x509.Certificate) []byte {
	t.Helper()
	for _, e := range cert.Extensions {
		if e.Id.Equal(oidSGX) {
			return e.Value
		}
	}
	t.Fatal("no SGX extension")
	return nil
}

func TestMalformedSGXExtension(t *testing.T) {
	good := sgxExtension(t, newSimulator(t).PCK)
	swap := func(from, to []byte) []byte {
		out := bytes.Replace(slices.Clone(good), from, to, 1)
		if bytes.Equal(out, good) {
			t.Fatalf("%x is not in the extension", from)
		}
		return out
	}
	for name, value := range map[string][]byte{
		"empty": nil, "no list": {5, 0}, "bytes behind": append(slices.Clone(good), 0), "truncated": good[:len(good)-1],
		"FMSPC as a number":     swap([]byte{4, 6, 1, 2, 3, 4, 5, 6}, []byte{2, 6, 1, 2, 3, 4, 5, 6}),
		"type that is no enum":  swap([]byte{10, 1, 1}, []byte{4, 1, 1}),
		"negative component":    swap([]byte{2, 1, 5}, []byte{2, 1, 0xFB}),
		"flag that is a number": swap([]byte{1, 1, 0xFF}, []byte{2, 1, 1}),
		"PPID under other OID":  swap([]byte{13, 1, 1, 4, 16}, []byte{13, 1, 9, 4, 16}),
	} {
		if p, err := parsePCK(&x509.Certificate{Extensions: []pkix.Extension{{Id: oidSGX, Value: value}}}); err == nil {
			t.Errorf("%s: %+v", name, p)
		}
	}
	if _, err := parsePCK(&x509.Certificate{Extensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2}, Value: good}}}); err == nil {
		t.Error("no extension")
	}
}

func TestRootsFromPEM(t *testing.T) {
	s, other := newSimulator(t), newSimulator(t)
	for _, good := range [][]*x509.Certificate{certs(s.root), certs(s.root, other.root)} {
		got, err := ParseRoots(teesim.PEM(good...))
		if err != nil || !slices.EqualFunc(got, good, (*x509.Certificate).Equal) {
			t.Errorf("%d roots: %v, %v", len(good), got, err)
		}
	}
	if got, err := ParseRoots(intelRoot); err != nil || len(got) != 1 {
		t.Errorf("Intel's: %v", err)
	}
	text := teesim.PEM(s.root)
	for name, bad := range map[string][]byte{
		"empty": nil, "text": []byte("x"), "cut": text[:len(text)-30], "text behind": append(slices.Clone(text), "x"...),
		"a key": bytes.ReplaceAll(text, []byte("CERTIFICATE"), []byte("PRIVATE KEY")), "no root": teesim.PEM(s.root, s.CA), "a leaf": teesim.PEM(s.PCK),
	} {
		if got, err := ParseRoots(bad); err == nil {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestEnclaveThatVouchesForAnotherKey(t *testing.T) {
	s := newSimulator(t)
	q, err := parseQuote(s.quote(s.model()))
	if err != nil {
		t.Fatal(err)
	}
	if err := q.checkSignatures(s.PCK); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Quote){
		"authentication data": func(q *Quote) { q.qeAuth = append(slices.Clone(q.qeAuth), 0) },
		"attestation key":     func(q *Quote) { q.key = slices.Clone(q.key); q.key[0] ^= 1 },
		"signature too short": func(q *Quote) { q.qeSignature = q.qeSignature[:63] },
	} {
		changed := *q
		change(&changed)
		if err := changed.checkSignatures(s.PCK); err == nil {
			t.Error(name)
		}
	}
}

func TestManyGuestsAtOnceShareOneFetch(t *testing.T) {
	s := newSimulator(t)
	source := &fixed{c: s.collateral(s.tcb())}
	v, err := New(Config{Roots: certs(s.root), Source: source, Now: func() time.Time { return simTime }})
	if err != nil {
		t.Fatal(err)
	}
	raw := toJSON(s.quote(s.model()), nil)
	var group sync.WaitGroup
	for range 16 {
		group.Go(func() {
			if _, err := v.Verify(t.Context(), raw, verifier.Expected{ReportData: digest}); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if source.asked.Load() != 1 {
		t.Errorf("asked %d times", source.asked.Load())
	}
}

// TestCollateralOfOneRootDoesNotSpeakForAnother trusts two roots.
func TestCollateralOfOneRootDoesNotSpeakForAnother(t *testing.T) {
	s, other := newSimulator(t), newSimulator(t)
	v, err := New(Config{Roots: certs(s.root, other.root), Source: &fixed{c: other.collateral(other.tcb())}, Now: func() time.Time { return simTime }})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := v.VerifyQuote(t.Context(), other.quote(other.model())); err != nil {
		t.Fatal(err)
	}
	if _, _, err := v.VerifyQuote(t.Context(), s.quote(s.model())); !errors.Is(err, ErrCollateral) || strings.Contains(err.Error(), "not trusted") {
		t.Error(err)
	}
}
