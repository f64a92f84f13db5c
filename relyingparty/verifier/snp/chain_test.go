package snp

import (
	"crypto/elliptic"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/sealpod/sealpod/relyingparty/verifier"
	sim "github.com/sealpod/sealpod/teesim/snp"
)

// edited returns a VCEK for the model, its extensions changed.
func (s *simulator) edited(m sim.Fields, edit func([]pkix.Extension) []pkix.Extension) sim.Key {
	s.t.Helper()
	var ext []pkix.Extension
	for _, e := range s.endorse(m.ChipID, m.TCB).Certificate.Extensions {
		if strings.HasPrefix(e.Id.String(), "1.3.6.1.4.1.3704.") {
			ext = append(ext, e)
		}
	}
	return s.certify("SEV-VCEK", s.Makers().ASK, edit(ext), elliptic.P384())
}

func TestExtensionsOfTheKey(t *testing.T) {
	s := newSimulator(t, Genoa)
	m := s.model()
	octets, err := asn1.Marshal(m.ChipID)
	if err != nil {
		t.Fatal(err)
	}
	replace := func(suffix string, value []byte) func([]pkix.Extension) []pkix.Extension {
		return func(ext []pkix.Extension) []pkix.Extension {
			at := slices.IndexFunc(ext, func(e pkix.Extension) bool { return strings.HasSuffix(e.Id.String(), suffix) })
			if value == nil {
				return slices.Delete(ext, at, at+1)
			}
			ext[at].Value = value
			return ext
		}
	}
	for name, c := range map[string]struct {
		edit func([]pkix.Extension) []pkix.Extension
		text string // empty when the key is good
	}{
		"chip id as DER octets":  {replace("3704.1.4", octets), ""},
		"no chip id":             {replace("3704.1.4", nil), "names no chip"},
		"chip id too short":      {replace("3704.1.4", octets[:40]), "names no chip"},
		"chip id of another":     {replace("3704.1.4", make([]byte, 64)), "another chip"},
		"no bootloader version":  {replace("3704.1.3.1", nil), "no valid bootloader"},
		"microcode version 256":  {replace("3704.1.3.8", []byte{2, 2, 1, 0}), "no valid microcode"},
		"SNP version below zero": {replace("3704.1.3.3", []byte{2, 1, 0xFF}), "no valid snp"},
		"TEE version and more":   {replace("3704.1.3.2", []byte{2, 1, 1, 0}), "no valid tee"},
		"other TEE version":      {replace("3704.1.3.2", []byte{2, 1, 9}), "firmware"},
	} {
		key := s.edited(m, c.edit)
		_, err := s.verifier(Config{}).VerifyReport(t.Context(), s.report(m, key), []Certificate{vcek(key)})
		if (err == nil) != (c.text == "") || err != nil && (!errors.Is(err, verifier.ErrEvidence) || !strings.Contains(err.Error(), c.text)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestFirmwareOfTurinIncludesTheFMC(t *testing.T) {
	s := newSimulator(t, Turin)
	m := s.model()
	key := s.endorse(m.ChipID, m.TCB)
	m.TCB.FMC++
	_, err := s.verifier(Config{}).VerifyReport(t.Context(), s.report(m, key), []Certificate{vcek(key)})
	if !errors.Is(err, verifier.ErrEvidence) || !strings.Contains(err.Error(), "firmware") {
		t.Error(err)
	}
}

func TestKeyOnAnotherCurve(t *testing.T) {
	s := newSimulator(t, Milan)
	m := s.model()
	small := s.certify("SEV-VCEK", s.Makers().ASK, nil, elliptic.P256())
	report := s.report(m, s.endorse(m.ChipID, m.TCB))
	_, err := s.verifier(Config{}).VerifyReport(t.Context(), report, []Certificate{vcek(small)})
	if !errors.Is(err, verifier.ErrEvidence) || !strings.Contains(err.Error(), "P-384") {
		t.Error(err)
	}
}

// TestOneProductDoesNotVouchForAnother holds for reports of version 2, whose
// product is that of the certificate.
func TestOneProductDoesNotVouchForAnother(t *testing.T) {
	milan, genoa := newSimulator(t, Milan), newSimulator(t, Genoa)
	v := milan.verifier(Config{Roots: map[string]Root{Milan: milan.root, Genoa: genoa.root}})
	m := milan.model()
	key := milan.endorse(m.ChipID, m.TCB)
	report := genoa.report(genoa.model(), key)
	if _, err := v.VerifyReport(t.Context(), report, []Certificate{vcek(key)}); !errors.Is(err, verifier.ErrEvidence) {
		t.Errorf("report of a Genoa with the key of a Milan: %v", err)
	}
	m.Version, m.ChipID = 2, otherChip[:8]
	key = milan.endorse(otherChip, m.TCB)
	if _, err := v.VerifyReport(t.Context(), milan.report(m, key), []Certificate{vcek(key)}); !errors.Is(err, verifier.ErrEvidence) {
		t.Errorf("chip id of a Turin with the key of a Milan: %v", err)
	}
}

func TestRootsThatAreNone(t *testing.T) {
	a, b := newSimulator(t, Milan), newSimulator(t, Milan)
	text := func(certs ...*x509.Certificate) []byte {
		var out []byte
		for _, c := range certs {
			out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
		}
		return out
	}
	root, err := ParseRoot(text(a.root.ASK, a.root.ARK), text(a.root.ASVK, a.root.ARK))
	if err != nil || !root.ARK.Equal(a.root.ARK) || !root.ASK.Equal(a.root.ASK) || !root.ASVK.Equal(a.root.ASVK) {
		t.Errorf("%v", err)
	}
	for name, pem := range map[string][]byte{
		"two roots": text(a.root.ARK, b.root.ARK), "no root": text(a.root.ASK), "ASK of another root": text(a.root.ARK, b.root.ASK),
		"no certificate": []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
	} {
		if _, err := ParseRoot(pem); err == nil {
			t.Error(name)
		}
	}
}
