package snp

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-sev-guest/abi"
	"github.com/google/go-sev-guest/verify/testdata"
)

// golden returns a report and the evidence it must become without certificates.
func golden(t testing.TB, name string) (report, evidence []byte) {
	t.Helper()
	report = testdata.AttestationBytes
	if name != "milan-v2" {
		var err error
		if report, err = os.ReadFile("testdata/" + name + ".bin"); err != nil {
			t.Fatal(err)
		}
	}
	evidence, err := os.ReadFile("testdata/" + name + ".json")
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Clone(report), bytes.TrimSpace(evidence)
}

var goldens = []string{"milan-v2", "milan-v3", "turin-v5"}

func TestReportJSON(t *testing.T) {
	for _, name := range goldens {
		t.Run(name, func(t *testing.T) {
			raw, want := golden(t, name)
			r, err := ParseReport(raw)
			if err != nil {
				t.Fatal(err)
			}
			got, err := json.Marshal(Evidence{Report: r})
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), string(got)); d != "" {
				t.Error(d)
			}
			if !bytes.Equal(r.Bytes(), raw) {
				t.Error("the report does not come back")
			}
		})
	}
}

// fromJSON is a report as a verifier reads it.
type fromJSON struct {
	Report map[string]json.RawMessage `json:"attestation_report"`
	Chain  []struct {
		Type json.RawMessage `json:"cert_type"`
		Data []int           `json:"data"`
	} `json:"cert_chain"`
}

// What go-sev-guest reads from the bytes is what our JSON says, field by field.
func TestReportAgreesWithGoSevGuest(t *testing.T) {
	for _, name := range []string{"milan-v2"} { // it checks more than the made-up reports hold
		raw, _ := golden(t, name)
		r, err := ParseReport(raw)
		if err != nil {
			t.Fatal(err)
		}
		p, err := abi.ReportToProto(raw)
		if err != nil {
			t.Fatal(err)
		}
		tcb := func(v uint64) TCB {
			var b [8]byte
			binary.LittleEndian.PutUint64(b[:], v)
			return TCB{Bootloader: b[0], TEE: b[1], SNP: b[6], Microcode: b[7]}
		}
		want := Report{
			Version: p.GetVersion(), GuestSVN: p.GetGuestSvn(), Policy: p.GetPolicy(), FamilyID: p.GetFamilyId(), ImageID: p.GetImageId(),
			VMPL: p.GetVmpl(), SigAlgo: p.GetSignatureAlgo(), CurrentTCB: tcb(p.GetCurrentTcb()), PlatInfo: p.GetPlatformInfo(),
			KeyInfo: p.GetSignerInfo(), ReportData: p.GetReportData(), Measurement: p.GetMeasurement(), HostData: p.GetHostData(),
			IDKeyDigest: p.GetIdKeyDigest(), AuthorKeyDigest: p.GetAuthorKeyDigest(), ReportID: p.GetReportId(), ReportIDMA: p.GetReportIdMa(),
			ReportedTCB: tcb(p.GetReportedTcb()), ChipID: p.GetChipId(), CommittedTCB: tcb(p.GetCommittedTcb()), LaunchTCB: tcb(p.GetLaunchTcb()),
			Current:   Firmware{uint8(p.GetCurrentMajor()), uint8(p.GetCurrentMinor()), uint8(p.GetCurrentBuild())},
			Committed: Firmware{uint8(p.GetCommittedMajor()), uint8(p.GetCommittedMinor()), uint8(p.GetCommittedBuild())},
			Signature: Signature{R: p.GetSignature()[:72], S: p.GetSignature()[72:144]},
		}
		if d := cmp.Diff(want, r); d != "" {
			t.Error(d)
		}
	}
}

func TestParseReportRefuses(t *testing.T) {
	at := func(name string, edit func(b []byte)) []byte {
		raw, _ := golden(t, name)
		edit(raw)
		return raw
	}
	set := func(i int, v byte) func([]byte) { return func(b []byte) { b[i] = v } }
	milan, _ := golden(t, "milan-v2")
	for name, in := range map[string][]byte{
		"nothing":                          nil,
		"one byte short":                   milan[:ReportSize-1],
		"one byte long":                    append(bytes.Clone(milan), 0),
		"version 0":                        at("milan-v2", set(0, 0)),
		"version 1":                        at("milan-v2", set(0, 1)),
		"version 2 with a masked chip":     at("milan-v2", func(b []byte) { clear(b[0x1a0:0x1e0]) }),
		"family 0x17":                      at("milan-v3", set(0x188, 0x17)),
		"family 0":                         at("milan-v3", set(0x188, 0)),
		"reserved byte after key info":     at("milan-v3", set(0x4c, 1)),
		"reserved byte after the stepping": at("milan-v3", set(0x18b, 1)),
		"reserved byte of a Milan TCB":     at("milan-v3", set(0x38+3, 1)),
		"reserved byte of a Turin TCB":     at("turin-v5", set(0x1f0+5, 1)),
		"Turin's TCB read as Milan's":      at("turin-v5", set(0x188, 0x19)),
		"mitigations before version 5":     at("milan-v3", set(0x1f8, 1)),
		"family in version 2":              at("milan-v2", set(0x188, 0x19)),
		"reserved signature byte":          at("turin-v5", set(0x330, 1)),
		"last byte":                        at("turin-v5", set(ReportSize-1, 1)),
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := ParseReport(in); !errors.Is(err, ErrReport) {
				t.Errorf("got %v", err)
			}
		})
	}
	masked := make([]byte, ReportSize) // zero in every layout
	masked[0] = 2
	if _, err := ParseReport(masked); !errors.Is(err, ErrReport) {
		t.Errorf("version 2 with a masked chip and no firmware versions: %v", err)
	}
	if _, err := ParseReport(at("turin-v5", set(0, 4))); !errors.Is(err, ErrReport) {
		t.Errorf("mitigations in version 4: %v", err)
	}
	// A later version without new values is as good as 5.
	if _, err := ParseReport(at("turin-v5", set(0, 6))); err != nil {
		t.Errorf("version 6: %v", err)
	}
	// Turin in version 2 shows by its chip ID.
	turin := make([]byte, ReportSize)
	turin[0], turin[0x1a0], turin[0x38], turin[0x3b] = 2, 1, 9, 8
	if r, err := ParseReport(turin); err != nil || r.CurrentTCB.FMC == nil || *r.CurrentTCB.FMC != 9 || r.CurrentTCB.SNP != 8 || r.CPUFamily != nil {
		t.Errorf("version 2 of Turin: %+v, %v", r.CurrentTCB, err)
	}
}

// Whatever is accepted comes back byte for byte, from the JSON as well.
func FuzzParseReport(f *testing.F) {
	for _, name := range goldens {
		raw, _ := golden(f, name)
		f.Add(raw)
	}
	f.Add(make([]byte, ReportSize))
	f.Fuzz(func(t *testing.T, in []byte) {
		r, err := ParseReport(in)
		if err != nil {
			if !errors.Is(err, ErrReport) {
				t.Fatal(err)
			}
			return
		}
		if !bytes.Equal(r.Bytes(), in) {
			t.Fatal("the report does not come back")
		}
		text, err := json.Marshal(Evidence{Report: r})
		if err != nil {
			t.Fatal(err)
		}
		var back fromJSON
		if err := json.Unmarshal(text, &back); err != nil || len(back.Report) != 29 {
			t.Fatalf("%d members, %v", len(back.Report), err)
		}
	})
}

func BenchmarkReport(b *testing.B) {
	raw, _ := golden(b, "turin-v5")
	b.ReportAllocs()
	for b.Loop() {
		r, err := ParseReport(raw)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := json.Marshal(Evidence{Report: r}); err != nil {
			b.Fatal(err)
		}
	}
}
