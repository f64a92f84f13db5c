package azvtpm

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	wire "github.com/sealpod/sealpod/attester/azvtpm"
	"github.com/sealpod/sealpod/relyingparty/verifier"
)

var kinds = []wire.Kind{wire.SNP, wire.TDX}

var bound = verifier.Expected{ReportData: reportData, InitData: initData[:]}

func verified(t *testing.T, v *vm, m model) map[string]any {
	t.Helper()
	got, err := v.verifier().Verify(t.Context(), m.json(t), bound)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 1 || got[0].Class != verifier.CPU {
		t.Fatalf("claims %v", got)
	}
	return got[0].Values
}

func TestEveryVersionHasTheSameClaims(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind.TEE(), func(t *testing.T) {
			v := newVM(t, kind, options{})
			if tee := v.verifier().TEE(); tee != kind.TEE() {
				t.Errorf("TEE %q", tee)
			}
			m := v.model()
			want := verified(t, v, m)
			for m.version = range 2 {
				if d := cmp.Diff(want, verified(t, v, m)); d != "" {
					t.Errorf("version %d: %s", m.version, d)
				}
			}
		})
	}
}

func TestClaimsOfTheTPM(t *testing.T) {
	for _, kind := range kinds {
		v := newVM(t, kind, options{})
		got := verified(t, v, v.model())
		registers, ok := got["tpm"].(map[string]any)
		if !ok || len(registers) != 24 {
			t.Fatalf("%s: tpm is %v", kind.TEE(), got["tpm"])
		}
		for i, p := range v.tpm.PCRs {
			if name := fmt.Sprintf("pcr%02d", i); registers[name] != hex.EncodeToString(p[:]) {
				t.Errorf("%s: %s is %v", kind.TEE(), name, registers[name])
			}
		}
		if got["report_data"] != hex.EncodeToString(reportData) || got["init_data"] != hex.EncodeToString(v.tpm.PCRs[8][:]) {
			t.Errorf("%s: report_data %v, init_data %v", kind.TEE(), got["report_data"], got["init_data"])
		}
	}
}

func TestClaimsOfSNP(t *testing.T) {
	v := newVM(t, wire.SNP, options{})
	got := verified(t, v, v.model())
	measurement := v.guest.Measurement()
	tcb := v.chip.TCB(v.guest)
	want := map[string]any{
		"policy_abi_major": "0", "policy_abi_minor": "31", "policy_smt_allowed": "true", "policy_migrate_ma": "false",
		"policy_debug_allowed": "false", "policy_single_socket": "false",
		"reported_tcb_bootloader": fmt.Sprint(tcb.Bootloader), "reported_tcb_tee": fmt.Sprint(tcb.TEE),
		"reported_tcb_snp": fmt.Sprint(tcb.SNP), "reported_tcb_microcode": fmt.Sprint(tcb.Microcode),
		"platform_smt_enabled": "true", "platform_tsme_enabled": "true",
		"measurement": base64.StdEncoding.EncodeToString(measurement[:]),
		"chip_id":     hex.EncodeToString(v.chip.HardwareID()),
	}
	for _, name := range []string{"tpm", "report_data", "init_data"} {
		delete(got, name)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestClaimsOfTDX(t *testing.T) {
	v := newVM(t, wire.TDX, options{})
	got := verified(t, v, v.model())
	body := got["quote"].(map[string]any)["body"].(map[string]any)
	mrtd := v.td.MRTD()
	if body["mr_td"] != hex.EncodeToString(mrtd[:]) || got["tcb_status"] != "UpToDate" || got["collateral_expiration_status"] != "0" {
		t.Errorf("claims %v", got)
	}
}

// TestWeaknessesAreClaims: as in the bare verifiers, the policy weighs them.
func TestWeaknessesAreClaims(t *testing.T) {
	v := newVM(t, wire.SNP, options{debug: true, stale: true})
	good := newVM(t, wire.SNP, options{})
	got, affirmed := verified(t, v, v.model()), verified(t, good, good.model())
	if got["policy_debug_allowed"] != "true" || got["reported_tcb_snp"] == affirmed["reported_tcb_snp"] {
		t.Errorf("claims %v", got)
	}
	v = newVM(t, wire.TDX, options{debug: true, stale: true})
	got = verified(t, v, v.model())
	if got["td_attributes"].(map[string]any)["debug"] != true || got["tcb_status"] != "OutOfDate" {
		t.Errorf("claims %v", got)
	}
}

// TestUserDataIsOfVersionTwo: older attesters do not write it.
func TestUserDataIsOfVersionTwo(t *testing.T) {
	for _, kind := range kinds {
		v := newVM(t, kind, options{})
		m := v.resealed(claimsOf(nil, jwk("HCLAkPub", &v.tpm.AK.PublicKey)))
		for m.version = range 3 {
			_, err := v.verifier().Verify(t.Context(), m.json(t), bound)
			if (err == nil) != (m.version < 2) {
				t.Errorf("%s, version %d: %v", kind.TEE(), m.version, err)
			}
		}
	}
}

func TestNoInitDataExpected(t *testing.T) {
	v := newVM(t, wire.SNP, options{})
	if _, err := v.verifier().Verify(t.Context(), v.model().json(t), verifier.Expected{ReportData: reportData}); err != nil {
		t.Error(err)
	}
}

func TestEventLog(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind.TEE(), func(t *testing.T) {
			v := newVM(t, kind, options{})
			events := []logEvent{{23, "domain PullImage {}"}, {16, "a b c"}, {23, "d e f"}}
			v.tpm.PCRs[16], v.tpm.PCRs[23] = [32]byte{}, [32]byte{}
			for _, e := range events {
				v.tpm.Extend(int(e.register), sum(e.data()))
			}
			m := v.model()
			m.eventLog = logOf(events...)
			claims, _ := verified(t, v, m)["uefi_event_logs"].([]any)
			if len(claims) != 3 {
				t.Fatalf("%d events", len(claims))
			}
			first := claims[0].(map[string]any)
			if first["index"] != 23 || first["digest_matches_event"] != true ||
				first["details"].(map[string]any)["data"].(map[string]any)["operation"] != "PullImage" {
				t.Errorf("event %v", first)
			}
			m.version = 1 // which had none
			if _, ok := verified(t, v, m)["uefi_event_logs"]; ok {
				t.Error("event log of version 1")
			}
			m.version = 2
			for name, c := range map[string]struct{ log, text string }{
				"event missing": {logOf(events[:2]...), "replaying register 23"},
				"event added":   {logOf(append(slices.Clone(events), logEvent{16, "x y z"})...), "replaying register 16"},
				"event changed": {logOf(events[0], logEvent{16, "a b d"}, events[2]), "replaying register 16"},
				"order changed": {logOf(events[2], events[1], events[0]), "replaying register 23"},
				"PCR 24":        {logOf(append(slices.Clone(events), logEvent{24, "a b c"})...), "event of PCR 24"},
				"of locality":   {logOf(append(slices.Clone(events), logEvent{17, "a b c"})...), "replaying register 17"},
				"no log":        {base64.StdEncoding.EncodeToString([]byte("too short")), "event log not accepted"},
				"no base64":     {"!", "decoding cc_eventlog"},
			} {
				m.eventLog = c.log
				_, err := v.verifier().Verify(t.Context(), m.json(t), bound)
				if !errors.Is(err, verifier.ErrEvidence) || !strings.Contains(err.Error(), c.text) {
					t.Errorf("%s: %v", name, err)
				}
			}
		})
	}
}

// TestEvidenceOfTheAttester keeps the wire type of the guest readable.
func TestEvidenceOfTheAttester(t *testing.T) {
	for _, kind := range kinds {
		v := newVM(t, kind, options{})
		m := v.model()
		e := wire.Evidence{Version: wire.EvidenceVersion, TPMQuote: wire.TPMQuote{Signature: m.signature, Message: m.message}, HCLReport: m.hcl()}
		for _, p := range m.pcrs {
			e.TPMQuote.PCRs = append(e.TPMQuote.PCRs, p)
		}
		if e.VCEK = m.hardware; kind == wire.TDX {
			e.VCEK, e.TDQuote = nil, m.hardware
		}
		text, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := v.verifier().Verify(t.Context(), text, bound); err != nil {
			t.Errorf("%s: %v", kind.TEE(), err)
		}
	}
}

func BenchmarkVerify(b *testing.B) {
	for _, kind := range kinds {
		b.Run(kind.TEE(), func(b *testing.B) {
			v := newVM(b, kind, options{})
			raw, verifier := v.model().json(b), v.verifier()
			b.ReportAllocs()
			for b.Loop() {
				if _, err := verifier.Verify(b.Context(), raw, bound); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
