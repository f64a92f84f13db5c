package azvtpm

import (
	"context"
	"os"
	"testing"

	"go.uber.org/goleak"

	wire "github.com/sealpod/sealpod/attester/azvtpm"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/testenv"
	"github.com/sealpod/sealpod/relyingparty/policy"
	"github.com/sealpod/sealpod/relyingparty/store"
	"github.com/sealpod/sealpod/relyingparty/verifier"
	"github.com/sealpod/sealpod/teesim/azure"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestEvidenceOfAGuest takes evidence from the attester on a simulated machine
// with a real TPM in software, and the verdict from the default policy.
func TestEvidenceOfAGuest(t *testing.T) {
	testenv.Tool(t, "swtpm")
	for _, kind := range kinds {
		t.Run(kind.TEE(), func(t *testing.T) {
			v := newVM(t, kind, options{})
			o := azure.Options{Kernel: []byte("kernel"), CommandLine: "console=hvc0"}
			if kind == wire.SNP {
				o.Hardware = azure.SNP(v.chip, v.guest)
			} else {
				o.Hardware = azure.TDX(v.platform, v.td)
			}
			var err error
			if o.Root, err = os.MkdirTemp("", "vm"); err != nil { // short: it holds a socket
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = os.RemoveAll(o.Root) })
			machine, err := azure.Start(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			defer machine.Close()
			host := podvm.Host{Root: o.Root, IMDS: machine.IMDS()}
			if got, err := wire.Detect(t.Context(), host); err != nil || got != kind {
				t.Fatalf("detected %d, %v", got, err)
			}
			guest := wire.New(host, kind)
			if err := guest.BindInitData(t.Context(), initData[:]); err != nil {
				t.Fatal(err)
			}
			raw, err := guest.Evidence(t.Context(), reportData)
			if err != nil {
				t.Fatal(err)
			}
			got, err := v.verifier().Verify(t.Context(), raw, bound)
			if err != nil {
				t.Fatal(err)
			}
			values := machine.ReferenceValues()
			known := func(_ context.Context, name string) (any, error) { return values[name], nil }
			pol, err := policy.NewSet(policy.Engine{Reference: known}, store.NewMemory()).Attestation(t.Context(), "default_cpu")
			if err != nil {
				t.Fatal(err)
			}
			a, err := pol.Appraise(t.Context(), input(t, kind.TEE(), got[0].Values))
			if err != nil || a.Status != policy.Affirming {
				t.Errorf("%+v, %v", a, err)
			}
			refused(t, "replayed", v.verifier(), raw, verifier.Expected{ReportData: []byte("digest of the next session")}, "another nonce")
		})
	}
}
