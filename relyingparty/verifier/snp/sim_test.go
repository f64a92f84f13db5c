package snp

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/json"
	"math/big"
	"slices"
	"testing"
	"time"

	"github.com/google/go-sev-guest/verify/testdata"
	sim "github.com/sealpod/sealpod/teesim/snp"
)

// When the certificates of the tests are valid, AMD's included.
var testTime = time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)

func clock() time.Time { return testTime }

// simulator is a simulated chip of a product, with a root of its own.
type simulator struct {
	*sim.Chip
	t    testing.TB
	root Root
}

func newSimulator(t testing.TB, product string) *simulator {
	t.Helper()
	chip, err := sim.Open("", sim.Options{Product: product, Now: clock})
	if err != nil {
		t.Fatal(err)
	}
	s := &simulator{Chip: chip, t: t}
	s.root.ARK, s.root.ASK, s.root.ASVK = chip.Roots()
	return s
}

// certify makes a certificate that the maker would not make.
func (s *simulator) certify(name string, issuer sim.Key, ext []pkix.Extension, curve elliptic.Curve) sim.Key {
	s.t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		s.t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, ExtraExtensions: ext,
		NotBefore: testTime.AddDate(-1, 0, 0), NotAfter: testTime.AddDate(1, 0, 0),
	}, issuer.Certificate, key.Public(), issuer.Private)
	if err != nil {
		s.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		s.t.Fatal(err)
	}
	return sim.Key{Certificate: cert, Private: key}
}

// endorse returns the VCEK of a chip, or a VLEK when there is no chip.
func (s *simulator) endorse(chip []byte, tcb sim.TCB) sim.Key {
	s.t.Helper()
	key, err := s.Endorse(chip, tcb)
	if err != nil {
		s.t.Fatal(err)
	}
	return key
}

var (
	otherChip = []byte("a chip of 64 bytes, of which Turin has but the first eight......")
	digest    = []byte("0123456789abcdef0123456789abcdef0123456789abcdef")
)

// model is what the tests vary in a report: a good one over digest.
func (s *simulator) model() sim.Fields {
	m := s.Fields(sim.NewGuest(sim.Launch{}), [64]byte{}, 0)
	m.ReportData = digest
	return m
}

// report returns the signed report.
func (s *simulator) report(m sim.Fields, key sim.Key) []byte {
	s.t.Helper()
	r, err := m.Sign(key.Private)
	if err != nil {
		s.t.Fatal(err)
	}
	return r
}

func (s *simulator) verifier(c Config) *Verifier {
	s.t.Helper()
	if c.Roots == nil {
		c.Roots = map[string]Root{s.Product(): s.root}
	}
	c.Now = clock
	v, err := New(c)
	if err != nil {
		s.t.Fatal(err)
	}
	return v
}

// toJSON writes a report as the attester of guest-components does. It shares
// nothing with our attester, which refuses to write most of the reports that are
// refused here; the two meet in the tests of package relyingparty.
func toJSON(t testing.TB, r []byte, chain ...Certificate) json.RawMessage {
	t.Helper()
	le := binary.LittleEndian
	// Version 2 has no family; there a chip id of 8 bytes tells.
	turin := r[0x188] == 0x1A || r[0x188] == 0 && bytes.Count(r[0x1A8:0x1E0], []byte{0}) == 56
	numbers := func(from, to int) []int {
		out := []int{}
		for _, b := range r[from:to] {
			out = append(out, int(b))
		}
		return out
	}
	tcb := func(at int) map[string]any {
		b := r[at : at+8]
		if turin {
			return map[string]any{"fmc": b[0], "bootloader": b[1], "tee": b[2], "snp": b[3], "microcode": b[7]}
		}
		return map[string]any{"fmc": nil, "bootloader": b[0], "tee": b[1], "snp": b[6], "microcode": b[7]}
	}
	fw := func(at int) map[string]any {
		return map[string]any{"build": r[at], "minor": r[at+1], "major": r[at+2]}
	}
	report := map[string]any{
		"version": le.Uint32(r), "guest_svn": le.Uint32(r[4:]), "policy": le.Uint64(r[8:]),
		"family_id": numbers(0x10, 0x20), "image_id": numbers(0x20, 0x30),
		"vmpl": le.Uint32(r[0x30:]), "sig_algo": le.Uint32(r[0x34:]), "current_tcb": tcb(0x38),
		"plat_info": le.Uint64(r[0x40:]), "key_info": le.Uint32(r[0x48:]),
		"report_data": numbers(0x50, 0x90), "measurement": numbers(0x90, 0xC0), "host_data": numbers(0xC0, 0xE0),
		"id_key_digest": numbers(0xE0, 0x110), "author_key_digest": numbers(0x110, 0x140),
		"report_id": numbers(0x140, 0x160), "report_id_ma": numbers(0x160, 0x180), "reported_tcb": tcb(0x180),
		"cpuid_fam_id": r[0x188], "cpuid_mod_id": r[0x189], "cpuid_step": r[0x18A],
		"chip_id": numbers(0x1A0, 0x1E0), "committed_tcb": tcb(0x1E0), "current": fw(0x1E8), "committed": fw(0x1EC),
		"launch_tcb": tcb(0x1F0), "launch_mit_vector": nil, "current_mit_vector": nil,
		"signature": map[string]any{"r": numbers(0x2A0, 0x2E8), "s": numbers(0x2E8, 0x330)},
	}
	if le.Uint32(r) < 3 {
		report["cpuid_fam_id"], report["cpuid_mod_id"], report["cpuid_step"] = nil, nil, nil
	}
	if le.Uint32(r) >= 5 {
		report["launch_mit_vector"], report["current_mit_vector"] = le.Uint64(r[0x1F8:]), le.Uint64(r[0x200:])
	}
	var certs []map[string]any
	for _, c := range chain {
		data := []int{}
		for _, b := range c.DER {
			data = append(data, int(b))
		}
		certs = append(certs, map[string]any{"cert_type": c.Type, "data": data})
	}
	text, err := json.Marshal(map[string]any{"attestation_report": report, "cert_chain": certs})
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func vcek(key sim.Key) Certificate { return Certificate{"VCEK", key.Certificate.Raw} }

// Real evidence: a report of version 2 and the VCEK of a Milan, from
// go-sev-guest at v0.15.0.
func realReport() []byte    { return slices.Clone(testdata.AttestationBytes) }
func realVCEK() Certificate { return Certificate{"VCEK", testdata.VcekBytes} }
