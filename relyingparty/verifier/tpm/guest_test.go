package tpm

import (
	"crypto/sha256"
	"os"
	"testing"

	wire "github.com/sealpod/sealpod/attester/tpm"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/testenv"
	"github.com/sealpod/sealpod/relyingparty/verifier"
	"github.com/sealpod/sealpod/teesim/azure"
	"github.com/sealpod/sealpod/teesim/tdx"
)

// TestEvidenceOfAGuest takes evidence from the attester on a real TPM in
// software; that of a simulated Azure machine has an attestation key.
func TestEvidenceOfAGuest(t *testing.T) {
	testenv.Tool(t, "swtpm")
	root, err := os.MkdirTemp("", "vm") // short: it holds a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(root) })
	platform, err := tdx.Open("", tdx.Options{})
	if err != nil {
		t.Fatal(err)
	}
	machine, err := azure.Start(t.Context(), azure.Options{Root: root, Hardware: azure.TDX(platform, platform.NewTD(tdx.Launch{}))})
	if err != nil {
		t.Fatal(err)
	}
	defer machine.Close()
	guest, digest := wire.New(podvm.Host{Root: root, LookupEnv: func(name string) (string, bool) {
		return "0x81000003", name == "AA_TPM_AK_HANDLE"
	}}), sha256.Sum256([]byte("init data"))
	if err := guest.BindInitData(t.Context(), digest[:]); err != nil {
		t.Fatal(err)
	}
	raw, err := guest.Evidence(t.Context(), reportData)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := New().Verify(t.Context(), raw, verifier.Expected{ReportData: reportData, InitData: digest[:]}); err != nil {
		t.Error(err)
	}
}
