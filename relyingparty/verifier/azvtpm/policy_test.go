package azvtpm

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"testing"

	wire "github.com/sealpod/sealpod/attester/azvtpm"
	"github.com/sealpod/sealpod/relyingparty/policy"
	"github.com/sealpod/sealpod/relyingparty/store"
	simsnp "github.com/sealpod/sealpod/teesim/snp"
	simtdx "github.com/sealpod/sealpod/teesim/tdx"
)

// references are the values an owner sets for a VM, by the names of trustee's
// default policy.
func (v *vm) references() map[string]any {
	pcr11 := []string{hex.EncodeToString(v.tpm.PCRs[11][:])}
	if v.kind == wire.TDX {
		values := v.td.ReferenceValues()
		return map[string]any{"tdx_pcr11": pcr11, "mr_td": values["mr_td"], "xfam": values["xfam"]}
	}
	measurement, tcb := v.guest.Measurement(), v.chip.TCB(v.guest)
	list := func(n any) []string { return []string{fmt.Sprint(n)} }
	return map[string]any{
		"snp_pcr11": pcr11, "measurement": []string{base64.StdEncoding.EncodeToString(measurement[:])},
		"tcb_bootloader": list(tcb.Bootloader), "tcb_microcode": list(tcb.Microcode), "tcb_snp": list(tcb.SNP), "tcb_tee": list(tcb.TEE),
		"smt_enabled": list(true), "tsme_enabled": list(true), "abi_major": list(0), "abi_minor": list(31),
		"single_socket": list(false), "smt_allowed": list(true),
	}
}

// TestClaimsAreThoseTheDefaultPolicyReads goes from a VM to its appraisal: a
// claim under another name would never be affirmed.
func TestClaimsAreThoseTheDefaultPolicyReads(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind.TEE(), func(t *testing.T) {
			good := newVM(t, kind, options{})
			pol := defaultPolicy(t, good.references())
			launched := func(o options, firmware string) *vm { // on the same hardware
				v := *good
				v.tpm = good.tpm.Another()
				var text []byte
				if firmware != "" {
					text = []byte(firmware)
				}
				if kind == wire.SNP {
					v.guest = simsnp.NewGuest(simsnp.Launch{Firmware: text, Debug: o.debug, StaleTCB: o.stale})
				} else {
					v.td = v.platform.NewTD(simtdx.Launch{Paravisor: true, Firmware: text, Debug: o.debug, StaleTCB: o.stale})
				}
				return &v
			}
			kernel := launched(options{}, "")
			kernel.tpm.Extend(11, initData[:])
			for name, c := range map[string]struct {
				v      *vm
				status string
			}{
				"as expected":           {good, policy.Affirming},
				"another VM like it":    {launched(options{}, ""), policy.Affirming},
				"another kernel":        {kernel, policy.Warning},
				"no paravisor we know":  {launched(options{}, "a VM that signs any PCRs itself"), map[wire.Kind]string{wire.SNP: policy.Warning, wire.TDX: policy.Contraindicated}[kind]},
				"debug":                 {launched(options{debug: true}, ""), policy.Warning},
				"firmware out of date":  {launched(options{stale: true}, ""), policy.Contraindicated},
				"another VM, debug too": {launched(options{debug: true}, "another"), map[wire.Kind]string{wire.SNP: policy.Warning, wire.TDX: policy.Contraindicated}[kind]},
			} {
				claims := verified(t, c.v, c.v.model())
				a, err := pol.Appraise(t.Context(), input(t, kind.TEE(), claims))
				if err != nil || a.Status != c.status {
					t.Errorf("%s: %+v, %v", name, a, err)
				}
			}
		})
	}
}

// TestBareTDIsNoParavisor: an owner of pods on Azure and elsewhere lists the
// firmware of both under one name, and firmware for bare TDs starts any kernel.
// That one then has a key of its own, and signs the PCRs the owner expects.
func TestBareTDIsNoParavisor(t *testing.T) {
	good := newVM(t, wire.TDX, options{})
	bare := *good
	bare.td = good.platform.NewTD(simtdx.Launch{Kernel: []byte("of an attacker")})
	values := good.references()
	values["mr_td"] = append(values["mr_td"].([]any), bare.td.ReferenceValues()["mr_td"].([]any)...)
	for want, v := range map[string]*vm{policy.Affirming: good, policy.Warning: &bare} {
		a, err := defaultPolicy(t, values).Appraise(t.Context(), input(t, wire.TDX.TEE(), verified(t, v, v.model())))
		if err != nil || a.Status != want {
			t.Errorf("%s, want %s, %v", a, want, err)
		}
	}
}

// TestTDsThatTheDefaultPolicyRefuses has what only TDs on Azure could be.
func TestTDsThatTheDefaultPolicyRefuses(t *testing.T) {
	v := newVM(t, wire.TDX, options{})
	pol := defaultPolicy(t, v.references())
	v.td = v.platform.NewTD(simtdx.Launch{Paravisor: true, Migratable: true})
	a, err := pol.Appraise(t.Context(), input(t, wire.TDX.TEE(), verified(t, v, v.model())))
	if err != nil || a.Status != policy.Warning || a.Vector["configuration"] != 36 {
		t.Errorf("migratable: %s, %v", a, err)
	}
	v.td = v.platform.NewTD(simtdx.Launch{Paravisor: true})
	claims := verified(t, v, v.model())
	claims["collateral_expiration_status"] = "1"
	a, err = pol.Appraise(t.Context(), input(t, wire.TDX.TEE(), claims))
	if err != nil || a.Status != policy.Contraindicated || a.Vector["hardware"] != 97 {
		t.Errorf("collateral too old: %s, %v", a, err)
	}
}

// defaultPolicy is that for CPUs with those reference values.
func defaultPolicy(t *testing.T, values map[string]any) *policy.Policy {
	t.Helper()
	known := func(_ context.Context, name string) (any, error) { return values[name], nil }
	pol, err := policy.NewSet(policy.Engine{Reference: known}, store.NewMemory()).Attestation(t.Context(), "default_cpu")
	if err != nil {
		t.Fatal(err)
	}
	return pol
}

// input is the claims as a policy gets them.
func input(t *testing.T, tee string, claims map[string]any) map[string]any {
	t.Helper()
	own := maps.Clone(claims)
	delete(own, "init_data")
	raw, err := json.Marshal(map[string]any{tee: own, "init_data": claims["init_data"]})
	if err != nil {
		t.Fatal(err)
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var out map[string]any
	if err := d.Decode(&out); err != nil {
		t.Fatal(err)
	}
	return out
}
