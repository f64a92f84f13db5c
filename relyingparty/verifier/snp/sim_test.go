package snp

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"encoding/json"
	"math/big"
	"slices"
	"testing"
	"time"

	"github.com/google/go-sev-guest/abi"
	"github.com/google/go-sev-guest/verify/testdata"
)

// When the certificates of the tests are valid, AMD's included.
var testTime = time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)

func clock() time.Time { return testTime }

// simulator signs reports like a chip of a product does, with its own root.
type simulator struct {
	t       testing.TB
	product string
	root    Root
	keys    map[*x509.Certificate]*ecdsa.PrivateKey
}

func newSimulator(t testing.TB, product string) *simulator {
	t.Helper()
	s := &simulator{t: t, product: product, keys: map[*x509.Certificate]*ecdsa.PrivateKey{}}
	s.root.ARK = s.certificate("ARK-"+product, nil, true, nil)
	s.root.ASK = s.certificate("SEV-"+product, s.root.ARK, true, nil)
	s.root.ASVK = s.certificate("SEV-VLEK-"+product, s.root.ARK, true, nil)
	return s
}

func (s *simulator) certificate(name string, issuer *x509.Certificate, ca bool, ext []pkix.Extension) *x509.Certificate {
	s.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		s.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(int64(len(s.keys))), Subject: pkix.Name{CommonName: name},
		NotBefore: testTime.AddDate(-1, 0, 0), NotAfter: testTime.AddDate(1, 0, 0),
		IsCA: ca, BasicConstraintsValid: true, ExtraExtensions: ext,
	}
	if ca {
		template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	}
	signer := key
	if issuer == nil {
		issuer = template
	} else {
		signer = s.keys[issuer]
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, key.Public(), signer)
	if err != nil {
		s.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		s.t.Fatal(err)
	}
	s.keys[cert] = key
	return cert
}

// endorse returns a VCEK, or a VLEK when there is no chip.
func (s *simulator) endorse(chip []byte, tcb TCB) *x509.Certificate {
	s.t.Helper()
	ext := []pkix.Extension{}
	number := func(n int, v uint8) {
		der, err := asn1.Marshal(int(v))
		if err != nil {
			s.t.Fatal(err)
		}
		ext = append(ext, pkix.Extension{Id: append(slices.Clone(oidVersions), n), Value: der})
	}
	number(1, tcb.Bootloader)
	number(2, tcb.TEE)
	number(3, tcb.SNP)
	number(8, tcb.Microcode)
	if s.product == Turin {
		number(9, tcb.FMC)
	}
	if chip == nil {
		return s.certificate("SEV-VLEK", s.root.ASVK, false, ext)
	}
	return s.certificate("SEV-VCEK", s.root.ASK, false, append(ext, pkix.Extension{Id: oidHardwareID, Value: chip}))
}

// model is what the tests vary in a report; the rest is fixed.
type model struct {
	version      uint32
	chip         []byte
	tcb          TCB
	vmpl, signer uint32
	policy       uint64
	data, host   []byte
}

func (s *simulator) model() model {
	m := model{version: 3, chip: chipID, tcb: TCB{Bootloader: 4, TEE: 1, SNP: 22, Microcode: 213}, policy: 0x3001F, data: digest}
	if s.product == Turin {
		m.chip, m.tcb.FMC, m.version = chipID[:8], 1, 5
	}
	return m
}

var (
	chipID = []byte("a chip of 64 bytes, of which Turin has but the first eight......")
	digest = []byte("0123456789abcdef0123456789abcdef0123456789abcdef")
)

// report returns the signed report.
func (s *simulator) report(m model, key *x509.Certificate) []byte {
	s.t.Helper()
	r := make([]byte, ReportSize)
	le := binary.LittleEndian
	le.PutUint32(r, m.version)
	le.PutUint64(r[0x08:], m.policy)
	le.PutUint32(r[0x30:], m.vmpl)
	le.PutUint32(r[0x34:], 1)
	le.PutUint64(r[0x40:], 3)
	le.PutUint32(r[0x48:], m.signer<<2)
	copy(r[0x50:0x90], m.data)
	copy(r[0x90:], digest)
	copy(r[0xC0:0xE0], m.host)
	family := map[string][2]byte{Milan: {0x19, 1}, Genoa: {0x19, 0x11}, Turin: {0x1A, 2}}[s.product]
	if m.version >= 3 {
		r[0x188], r[0x189] = family[0], family[1]
	}
	copy(r[0x1A0:0x1E0], m.chip)
	for _, at := range []int{0x38, 0x180, 0x1E0, 0x1F0} {
		t := []byte{m.tcb.Bootloader, m.tcb.TEE, 0, 0, 0, 0, m.tcb.SNP, m.tcb.Microcode}
		if s.product == Turin {
			t = []byte{m.tcb.FMC, m.tcb.Bootloader, m.tcb.TEE, m.tcb.SNP, 0, 0, 0, m.tcb.Microcode}
		}
		copy(r[at:], t)
	}
	copy(r[0x1E8:], []byte{31, 55, 1, 0, 31, 55, 1})
	hash := sha512.Sum384(abi.SignedComponent(r))
	a, b, err := ecdsa.Sign(rand.Reader, s.keys[key], hash[:])
	if err != nil {
		s.t.Fatal(err)
	}
	if err := abi.SetSignature(a, b, r); err != nil {
		s.t.Fatal(err)
	}
	return r
}

func (s *simulator) verifier(c Config) *Verifier {
	s.t.Helper()
	if c.Roots == nil {
		c.Roots = map[string]Root{s.product: s.root}
	}
	c.Now = clock
	v, err := New(c)
	if err != nil {
		s.t.Fatal(err)
	}
	return v
}

// toJSON writes a report as the attester of guest-components does.
func toJSON(t testing.TB, r []byte, chain ...Certificate) json.RawMessage {
	t.Helper()
	le := binary.LittleEndian
	numbers := func(from, to int) []int {
		out := []int{}
		for _, b := range r[from:to] {
			out = append(out, int(b))
		}
		return out
	}
	tcb := func(at int) map[string]any {
		b := r[at : at+8]
		if isTurin(r) {
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

func vcek(key *x509.Certificate) Certificate { return Certificate{"VCEK", key.Raw} }

// Real evidence: a report of version 2 and the VCEK of a Milan, from
// go-sev-guest at v0.15.0.
func realReport() []byte    { return slices.Clone(testdata.AttestationBytes) }
func realVCEK() Certificate { return Certificate{"VCEK", testdata.VcekBytes} }
