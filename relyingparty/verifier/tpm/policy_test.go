package tpm

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"testing"

	"github.com/sealpod/sealpod/relyingparty/policy"
	"github.com/sealpod/sealpod/relyingparty/store"
	"github.com/sealpod/sealpod/relyingparty/verifier"
	"github.com/sealpod/sealpod/relyingparty/verifier/internal/tpmquote/quotetest"
)

// TestOnlyATrustedKeyIsAffirmed by the default policy: evidence of a key that
// nobody knows verifies, which says nothing.
func TestOnlyATrustedKeyIsAffirmed(t *testing.T) {
	good := quotetest.New(t)
	values := map[string]any{
		"trusted_aks": []string{base64.StdEncoding.EncodeToString(derOf(t, good.AK.Public()))},
		"tpm_pcr11":   []string{hex.EncodeToString(good.PCRs[11][:])},
	}
	known := func(_ context.Context, name string) (any, error) { return values[name], nil }
	pol, err := policy.NewSet(policy.Engine{Reference: known}, store.NewMemory()).Attestation(t.Context(), "default_cpu")
	if err != nil {
		t.Fatal(err)
	}
	kernel := *good
	kernel.Extend(11, reportData[:32])
	for name, c := range map[string]struct {
		tpm                   *quotetest.TPM
		executables, hardware int
	}{
		"as expected":    {good, 3, 2},
		"another key":    {good.Another(), 33, 97},
		"another kernel": {&kernel, 33, 2},
	} {
		got, err := New().Verify(t.Context(), newModel(t, c.tpm, reportData[:32]).json(t), verifier.Expected{ReportData: reportData})
		if err != nil {
			t.Fatal(err)
		}
		a, err := pol.Appraise(t.Context(), map[string]any{"tpm": got[0].Values, "init_data": got[0].Values["init_data"]})
		if err != nil || a.Vector["executables"] != c.executables || a.Vector["hardware"] != c.hardware {
			t.Errorf("%s: %+v, %v", name, a, err)
		}
	}
}
