package snp

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sealpod/sealpod/relyingparty/verifier"
	sim "github.com/sealpod/sealpod/teesim/snp"
)

func amd(t testing.TB) *Verifier {
	t.Helper()
	v, err := New(Config{Now: clock})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

var realData = []byte{1, 2, 3, 4, 5}

func TestRealReportIsAccepted(t *testing.T) {
	raw := toJSON(t, realReport(), realVCEK())
	got, err := amd(t).Verify(t.Context(), raw, verifier.Expected{ReportData: realData})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"policy_abi_major": 0, "policy_abi_minor": 0, "policy_smt_allowed": true, "policy_migrate_ma": false,
		"policy_debug_allowed": true, "policy_single_socket": false,
		"reported_tcb_bootloader": 2, "reported_tcb_tee": 0, "reported_tcb_snp": 5, "reported_tcb_microcode": 68,
		"platform_smt_enabled": true, "platform_tsme_enabled": false,
		"measurement": "b07af9620f3b839b47996422ddec6058338951d984e312115131ea82705eaf5b6bdf8a9ece31a5a608eb0cf2e4872b01",
		"chip_id":     hex.EncodeToString(realReport()[0x1A0:0x1E0]),
		"report_data": "0102030405" + strings.Repeat("00", 59),
		"init_data":   strings.Repeat("00", 32),
	}
	if !reflect.DeepEqual(got, []verifier.Claims{{Class: verifier.CPU, Values: want}}) {
		t.Errorf("claims %v", got)
	}
	if amd(t).TEE() != "snp" {
		t.Error("wire name")
	}
}

func TestRealReportIsRefusedAfterAChangeOfAnySignedByte(t *testing.T) {
	v, base := amd(t), realReport()
	key, err := x509.ParseCertificate(realVCEK().DER)
	if err != nil {
		t.Fatal(err)
	}
	if err := checkSignature(base, key); err != nil {
		t.Fatal(err)
	}
	for at := range 0x330 { // the signature with its padding included
		changed := slices.Clone(base)
		changed[at] ^= 1
		if err := checkSignature(changed, key); !errors.Is(err, verifier.ErrEvidence) {
			t.Errorf("byte %#x: %v", at, err)
		}
		if at%8 != 0 {
			continue
		}
		if _, err := v.VerifyReport(t.Context(), changed, []Certificate{realVCEK()}); !errors.Is(err, verifier.ErrEvidence) {
			t.Errorf("byte %#x: %v", at, err)
		}
	}
}

func TestRealKeyIsRefusedAfterAChangeOfAnySignedByte(t *testing.T) {
	v := amd(t)
	for at := 4; at < len(realVCEK().DER); at += 23 {
		changed := Certificate{"VCEK", slices.Clone(realVCEK().DER)}
		changed.DER[at] ^= 1
		if _, err := v.VerifyReport(t.Context(), realReport(), []Certificate{changed}); !errors.Is(err, verifier.ErrEvidence) {
			t.Errorf("byte %d: %v", at, err)
		}
	}
}

func TestProductsAndVersions(t *testing.T) {
	for _, product := range []string{Milan, Genoa, Turin} {
		for version := uint32(2); version <= 5; version++ {
			s := newSimulator(t, product)
			m := s.model()
			m.Version, m.HostData = version, digest[:32]
			key := s.endorse(m.ChipID, m.TCB)
			raw := toJSON(t, s.report(m, key), vcek(key))
			want := verifier.Expected{ReportData: digest, InitData: digest}
			got, err := s.verifier(Config{}).Verify(t.Context(), raw, want)
			if err != nil {
				t.Errorf("%s, version %d: %v", product, version, err)
				continue
			}
			values := got[0].Values
			if values["reported_tcb_snp"] != 22 || values["platform_tsme_enabled"] != true || values["policy_abi_minor"] != 0x1F ||
				values["init_data"] != hex.EncodeToString(digest[:32]) {
				t.Errorf("%s, version %d: %v", product, version, values)
			}
			if _, ok := values["reported_tcb_fmc"]; ok != (product == Turin) {
				t.Errorf("%s: fmc claim %t", product, ok)
			}
			// the same evidence has no business at a relying party that trusts AMD
			if _, err := amd(t).Verify(t.Context(), raw, want); !errors.Is(err, verifier.ErrEvidence) {
				t.Errorf("%s, version %d, with AMD's roots: %v", product, version, err)
			}
		}
	}
}

func TestVLEK(t *testing.T) {
	s := newSimulator(t, Genoa)
	m := s.model()
	m.Signer, m.ChipID = sim.ByVLEK, nil
	key := s.endorse(nil, m.TCB)
	report := s.report(m, key)
	vlek := Certificate{"VLEK", key.Certificate.Raw}
	want := verifier.Expected{ReportData: digest}
	for name, chain := range map[string][]Certificate{
		"alone": {vlek}, "with the ASVK": {vlek, {"ASK", s.root.ASVK.Raw}, {"ARK", s.root.ARK.Raw}}, "with the ASK": {vlek, {"ASK", s.root.ASK.Raw}},
	} {
		if _, err := s.verifier(Config{}).Verify(t.Context(), toJSON(t, report, chain...), want); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	root := s.root
	root.ASVK = nil
	v := s.verifier(Config{Roots: map[string]Root{Genoa: root}})
	if _, err := v.Verify(t.Context(), toJSON(t, report, vlek), want); !errors.Is(err, verifier.ErrEvidence) {
		t.Errorf("no ASVK anywhere: %v", err)
	}
	if _, err := v.Verify(t.Context(), toJSON(t, report, vlek, Certificate{"ASK", s.root.ASVK.Raw}), want); err != nil {
		t.Errorf("ASVK sent along: %v", err)
	}
	if _, err := s.verifier(Config{}).Verify(t.Context(), toJSON(t, report), want); !errors.Is(err, verifier.ErrEvidence) {
		t.Errorf("no VLEK: %v", err)
	}
	if _, err := s.verifier(Config{}).Verify(t.Context(), toJSON(t, report, vcek(key)), want); !errors.Is(err, verifier.ErrEvidence) {
		t.Errorf("VLEK called VCEK: %v", err)
	}
}

// TestBadEvidence has one row for each attack.
func TestBadEvidence(t *testing.T) {
	milan, genoa := newSimulator(t, Milan), newSimulator(t, Genoa)
	good := milan.model()
	good.HostData = digest[:32]
	key := milan.endorse(good.ChipID, good.TCB)
	other := milan.endorse([]byte(strings.Repeat("x", 64)), good.TCB)
	older := good.TCB
	older.SNP--
	chain := []Certificate{vcek(key)}
	change := func(f func(*sim.Fields)) []byte {
		m := good
		f(&m)
		return milan.report(m, key)
	}
	report := milan.report(good, key)
	forged := slices.Clone(report)
	forged[0x90] ^= 1
	nonce := bytes.Clone(digest)
	nonce[0]++
	init := bytes.Clone(digest)
	init[31] ^= 1
	bound := verifier.Expected{ReportData: digest, InitData: digest}
	v := milan.verifier(Config{})
	both := milan.verifier(Config{Roots: map[string]Root{Milan: milan.root, Genoa: genoa.root}})
	for name, c := range map[string]struct {
		v    *Verifier
		raw  json.RawMessage
		want verifier.Expected
		text string
	}{
		"wrong nonce":               {v, toJSON(t, report, chain...), verifier.Expected{ReportData: nonce}, "another nonce"},
		"replayed":                  {v, toJSON(t, milan.report(good, key), chain...), verifier.Expected{ReportData: []byte("digest of the next session")}, "another nonce"},
		"nothing expected":          {v, toJSON(t, report, chain...), verifier.Expected{}, "0 bytes"},
		"report data over 64 bytes": {v, toJSON(t, report, chain...), verifier.Expected{ReportData: make([]byte, 65)}, "65 bytes"},
		"init data off by one byte": {v, toJSON(t, report, chain...), verifier.Expected{ReportData: digest, InitData: init}, "other init data"},
		"evidence of TDX":           {v, json.RawMessage(`{"quote":"BAAC","cc_eventlog":null}`), bound, "not the evidence of an SNP guest"},
		"evidence of no TEE":        {v, json.RawMessage(`{"svn":"1","report_data":"AA=="}`), bound, "not the evidence of an SNP guest"},
		"VMPL 1":                    {v, toJSON(t, change(func(m *sim.Fields) { m.VMPL = 1 }), chain...), bound, "VMPL 1"},
		"key of another chip":       {v, toJSON(t, milan.report(good, other), vcek(other)), bound, "another chip"},
		"key of other firmware":     {v, toJSON(t, change(func(m *sim.Fields) { m.TCB = older }), chain...), bound, "firmware"},
		"forged measurement":        {v, toJSON(t, forged, chain...), bound, "not signed by its endorsement key"},
		"swapped key":               {v, toJSON(t, report, vcek(other)), bound, "not signed by its endorsement key"},
		"swapped chain":             {both, toJSON(t, report, vcek(key), Certificate{"ASK", genoa.root.ASK.Raw}), bound, "not signed by a trusted root"},
		"swapped root":              {both, toJSON(t, report, vcek(key), Certificate{"ARK", genoa.root.ARK.Raw}), bound, "ARK"},
		"product without root":      {genoa.verifier(Config{}), toJSON(t, report, chain...), bound, "no root of trust"},
		"another's roots":           {newSimulator(t, Milan).verifier(Config{}), toJSON(t, report, chain...), bound, "not signed by the ASK"},
		"two keys":                  {v, toJSON(t, report, vcek(key), vcek(key)), bound, "two certificates"},
		"key that is none":          {v, toJSON(t, report, Certificate{"VCEK", []byte("x")}), bound, "parsing the VCEK"},
		"VCEK signed by the ARK":    {v, toJSON(t, report, Certificate{"VCEK", milan.root.ASK.Raw}), bound, "not signed by the ASK"},
		"report version 1":          {v, toJSON(t, change(func(m *sim.Fields) { m.Version = 1 }), chain...), bound, "report version 1"},
		"report version 6":          {v, toJSON(t, change(func(m *sim.Fields) { m.Version = 6 }), chain...), bound, "report version 6"},
		"signed by no key":          {v, toJSON(t, change(func(m *sim.Fields) { m.Signer = 7 }), chain...), bound, "not signed by a VCEK"},
	} {
		got, err := c.v.Verify(t.Context(), c.raw, c.want)
		if !errors.Is(err, verifier.ErrEvidence) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	if _, err := v.Verify(t.Context(), toJSON(t, report, chain...), bound); err != nil {
		t.Errorf("the unchanged evidence: %v", err)
	}
}

func TestDebugAndMigrationAreClaims(t *testing.T) {
	s := newSimulator(t, Milan)
	m := s.model()
	m.Policy = 1<<19 | 1<<18 | 1<<17 | 1<<20
	key := s.endorse(m.ChipID, m.TCB)
	got, err := s.verifier(Config{}).Verify(t.Context(), toJSON(t, s.report(m, key), vcek(key)), verifier.Expected{ReportData: digest})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"policy_debug_allowed": true, "policy_migrate_ma": true, "policy_single_socket": true, "policy_smt_allowed": false} {
		if got[0].Values[name] != want {
			t.Errorf("%s is %v", name, got[0].Values[name])
		}
	}
}

func TestTruncatedReport(t *testing.T) {
	for _, n := range []int{0, 1, ReportSize - 1, ReportSize + 1} {
		if _, err := amd(t).VerifyReport(t.Context(), make([]byte, n), nil); !errors.Is(err, verifier.ErrEvidence) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}

func TestCertificatesOutOfTime(t *testing.T) {
	for _, years := range []int{-10, 20} {
		v, err := New(Config{Now: func() time.Time { return testTime.AddDate(years, 0, 0) }})
		if err != nil {
			t.Fatal(err)
		}
		_, err = v.VerifyReport(t.Context(), realReport(), []Certificate{realVCEK()})
		if !errors.Is(err, verifier.ErrEvidence) || !strings.Contains(err.Error(), "check the clock") {
			t.Errorf("%d years off: %v", years, err)
		}
	}
}

func TestRoots(t *testing.T) {
	roots, err := AMDRoots()
	if err != nil || len(roots) != 3 {
		t.Fatal(roots, err)
	}
	for product, r := range roots {
		for name, c := range map[string]*x509.Certificate{"ARK-": r.ARK, "SEV-": r.ASK, "SEV-VLEK-": r.ASVK} {
			if c == nil || c.Subject.CommonName != name+product {
				t.Errorf("%s: %v", name+product, c)
			}
		}
	}
	if _, err := New(Config{Roots: map[string]Root{"Rome": roots[Milan]}}); err == nil {
		t.Error("unknown product")
	}
	if _, err := New(Config{Roots: map[string]Root{Milan: {}}}); err == nil {
		t.Error("no ARK")
	}
	if _, err := ParseRoot([]byte("nothing")); err == nil {
		t.Error("no certificate")
	}
}

func BenchmarkVerify(b *testing.B) {
	v, raw := amd(b), toJSON(b, realReport(), realVCEK())
	b.ReportAllocs()
	for b.Loop() {
		if _, err := v.Verify(b.Context(), raw, verifier.Expected{ReportData: realData}); err != nil {
			b.Fatal(err)
		}
	}
}
