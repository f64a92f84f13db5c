package tdx

import (
	"bytes"
	"context"
	"encoding/json"
	"testing"

	"github.com/sealpod/sealpod/relyingparty/policy"
	"github.com/sealpod/sealpod/relyingparty/store"
	"github.com/sealpod/sealpod/relyingparty/verifier"
	teesim "github.com/sealpod/sealpod/teesim/tdx"
)

// TestClaimsAreThoseTheDefaultPolicyReads goes from the boot of a TD to the
// appraisal: a claim under another name would never be affirmed.
func TestClaimsAreThoseTheDefaultPolicyReads(t *testing.T) {
	s := newSimulator(t)
	good := teesim.Launch{Kernel: []byte("kernel"), CommandLine: "console=hvc0"}
	values := s.NewTD(good).ReferenceValues()
	known := func(_ context.Context, name string) (any, error) { return values[name], nil }
	pol, err := policy.NewSet(policy.Engine{Reference: known}, store.NewMemory()).Attestation(t.Context(), "default_cpu")
	if err != nil {
		t.Fatal(err)
	}
	with := func(change func(*teesim.Launch)) teesim.Launch { l := good; change(&l); return l }
	debug, other := with(func(l *teesim.Launch) { l.Debug = true }), with(func(l *teesim.Launch) { l.CommandLine += " init=/bin/sh" })
	moved := with(func(l *teesim.Launch) { l.Migratable = true })
	old := with(func(l *teesim.Launch) { l.StaleTCB = true })
	outdated, stale := s.tcb(), s.tcb()
	stale.NextUpdate = simTime.AddDate(0, 0, -1)
	outdated.Platform = levels(5, "OutOfDate")
	for name, c := range map[string]struct {
		launch                               teesim.Launch
		log                                  bool
		tcb                                  teesim.TCB
		executables, hardware, configuration int
		status                               string
	}{
		"as expected":        {good, true, s.tcb(), 3, 2, 2, policy.Affirming},
		"without a log":      {good, false, s.tcb(), 4, 2, 2, policy.Affirming},
		"debug":              {debug, true, s.tcb(), 3, 2, 36, policy.Warning},
		"migratable":         {moved, true, s.tcb(), 3, 2, 36, policy.Warning},
		"other command line": {other, true, s.tcb(), 33, 2, 2, policy.Warning},
		"TCB out of date":    {good, true, outdated, 3, 97, 2, policy.Contraindicated},
		"module out of date": {old, true, s.tcb(), 3, 97, 2, policy.Contraindicated},
		"collateral too old": {good, true, stale, 3, 97, 2, policy.Contraindicated},
	} {
		td := s.NewTD(c.launch)
		quote, err := s.Quote(td, [64]byte(padded(digest, 64)))
		if err != nil {
			t.Fatal(err)
		}
		var log []byte
		if c.log {
			log = td.CCEL()
		}
		got, err := s.verifier(s.collateral(c.tcb)).Verify(t.Context(), toJSON(quote, log), verifier.Expected{ReportData: digest})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		a, err := pol.Appraise(t.Context(), input(t, got[0].Values))
		if err != nil || a.Status != c.status || a.Vector["executables"] != c.executables || a.Vector["hardware"] != c.hardware ||
			a.Vector["configuration"] != c.configuration {
			t.Errorf("%s: %+v, %v", name, a, err)
		}
	}
}

// input is the claims as a policy gets them.
func input(t *testing.T, claims map[string]any) map[string]any {
	t.Helper()
	raw, err := json.Marshal(map[string]any{"tdx": claims})
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
