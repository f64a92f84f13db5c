package server

import (
	"bytes"
	"crypto/sha512"
	"crypto/x509"
	"path/filepath"
	"testing"

	aa "github.com/sealpod/sealpod/api/attestationagent"
	"github.com/sealpod/sealpod/attester"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/testenv"
	"github.com/sealpod/sealpod/relyingparty/verifier"
	verify "github.com/sealpod/sealpod/relyingparty/verifier/tdx"
	"github.com/sealpod/sealpod/teesim/sysfs"
	sim "github.com/sealpod/sealpod/teesim/tdx"
)

// A TDX guest on a simulated platform, whose host set no MRCONFIGID: what the
// agent binds at start is in its evidence, and a verifier finds it there. So it
// is after each restart, with the event log on or off.
func TestInitDataInRTMR3IsVerified(t *testing.T) {
	testenv.FUSE(t)
	dir := t.TempDir()
	platform, err := sim.Open(dir, sim.Options{})
	if err != nil {
		t.Fatal(err)
	}
	td := platform.NewTD(sim.Launch{})
	host := podvm.Host{Root: t.TempDir(), LookupEnv: func(string) (string, bool) { return "", false }}
	tree, err := sysfs.Mount(t.Context(), host.Path("/sys"), sysfs.Tree{
		Reports: td.Reports(), Measurements: td.Registers(), Files: map[string][]byte{"firmware/acpi/tables/data/CCEL": td.CCEL()}, Log: quiet,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tree.Close(); err != nil {
			t.Error(err)
		}
	})
	v, err := verify.New(verify.Config{
		Roots: []*x509.Certificate{platform.Root()}, Source: verify.File{Path: filepath.Join(dir, "trust", "tdx-collateral.json")},
	})
	if err != nil {
		t.Fatal(err)
	}
	text := "algorithm = \"sha384\"\nversion = \"0.1.0\"\n"
	path := filepath.Join(t.TempDir(), "initdata.toml")
	write(t, path, text)
	digest, nonce := sha512.Sum384([]byte(text)), bytes.Repeat([]byte{7}, 48)

	for _, c := range []Config{withRTMR3(false), withRTMR3(true), withRTMR3(true)} { // starts of the agent
		tees, err := attester.Detect(t.Context(), attester.Options{Host: host, Allow: []string{"tdx"}, Log: quiet})
		if err != nil {
			t.Fatal(err)
		}
		bound, err := BindInitData(t.Context(), c, tees, host, "", path, quiet)
		if err != nil {
			t.Fatal(err)
		}
		events, err := OpenEventLog(t.Context(), c, tees, host, quiet)
		if err != nil {
			t.Fatal(err)
		}
		client := start(t, Deps{Config: c, TEEs: tees, EventLog: events, InitData: bound})
		if _, err := client.ExtendRuntimeMeasurement(t.Context(), &aa.ExtendRuntimeMeasurementRequest{Domain: "d", Operation: "o", Content: "c"}); err != nil {
			t.Fatal(err)
		}
		ev, err := client.GetEvidence(t.Context(), &aa.GetEvidenceRequest{RuntimeData: nonce})
		if err != nil {
			t.Fatal(err)
		}
		claims, err := v.Verify(t.Context(), ev.GetEvidence(), verifier.Expected{ReportData: nonce, InitData: digest[:]})
		if err != nil || claims[0].Values["init_data_binding"] != "rtmr3" {
			t.Errorf("%v, %v", claims, err)
		}
		other := sha512.Sum384([]byte("other"))
		if _, err := v.Verify(t.Context(), ev.GetEvidence(), verifier.Expected{ReportData: nonce, InitData: other[:]}); err == nil {
			t.Error("other init data is accepted")
		}
	}
}
