package trust

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sealpod/sealpod/relyingparty/verifier"
	"github.com/sealpod/sealpod/teesim"
)

// names are the kinds of TEE that verifiers are for, in order.
func names(list []verifier.Verifier) []string {
	out := map[string]bool{}
	for _, v := range list {
		out[v.TEE()] = true
	}
	return slices.Sorted(maps.Keys(out))
}

// makers is a trust directory of simulated makers of those kinds.
func makers(t *testing.T, kinds ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, kind := range kinds {
		if _, err := teesim.Open(kind, dir); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "trust")
}

func TestOnlyTheSimulatedMakersThatAreThereAreTrusted(t *testing.T) {
	none := []string{"sample", "sampledevice", "tpm"}
	for name, tt := range map[string]struct {
		dir  string
		want []string
	}{
		"Intel": {makers(t, teesim.TDX), append([]string{"az-tdx-vtpm", "tdx"}, none...)},
		"AMD":   {makers(t, teesim.AzSNP), append([]string{"az-snp-vtpm", "snp"}, none...)},
		"both":  {makers(t, teesim.TDX, teesim.SNP), append([]string{"az-tdx-vtpm", "tdx", "az-snp-vtpm", "snp"}, none...)},
	} {
		list, err := Verifiers(Options{Simulator: tt.dir})
		slices.Sort(tt.want)
		if d := cmp.Diff(tt.want, names(list)); err != nil || d != "" {
			t.Errorf("%s: %v %s", name, err, d)
		}
	}
}

func TestTrustDirectoriesThatAreNone(t *testing.T) {
	write := func(name, text string) string {
		dir := makers(t, teesim.TDX, teesim.SNP)
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	for name, tt := range map[string]struct{ dir, says string }{
		"empty":           {t.TempDir(), "sealctl tee-sim"},
		"missing":         {filepath.Join(t.TempDir(), "no"), "sealctl tee-sim"},
		"Intel not PEM":   {write("tdx-root.pem", "root"), "tdx-root.pem"},
		"Intel no cert":   {write("tdx-root.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), "tdx-root.pem"},
		"AMD without ARK": {write("snp-Milan.pem", ""), "no ARK"},
		"too large":       {write("snp-Milan.pem", strings.Repeat("x", maxCertificates+1)), "too large"},
	} {
		list, err := Verifiers(Options{Simulator: tt.dir})
		if err == nil || list != nil || !strings.Contains(err.Error(), tt.says) || !strings.Contains(err.Error(), "--trust-simulator") {
			t.Errorf("%s: %v, %v", name, list, err)
		}
	}
	if _, err := Verifiers(Options{Simulator: t.TempDir()}); !errors.Is(err, errNoSimulator) {
		t.Errorf("got %v", err)
	}
}
