package main

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-sev-guest/verify/testdata"
	tdxdata "github.com/google/go-tdx-guest/testing/testdata"

	attester "github.com/sealpod/sealpod/attester/snp"
	"github.com/sealpod/sealpod/relyingparty/verifier"
	"github.com/sealpod/sealpod/relyingparty/verifier/snp"
	"github.com/sealpod/sealpod/relyingparty/verifier/tdx"
)

// noNetwork stands in for the network of clients without a transport of their
// own: it notes who is asked and does not answer.
type noNetwork struct {
	mu    sync.Mutex
	asked []string
}

func (n *noNetwork) RoundTrip(r *http.Request) (*http.Response, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.asked = append(n.asked, r.URL.Host)
	return nil, errors.New("no network in this test")
}

// hosts returns who was asked since the last call.
func (n *noNetwork) hosts() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	hosts := slices.Compact(n.asked)
	n.asked = nil
	return hosts
}

func withoutNetwork(t *testing.T) *noNetwork {
	t.Helper()
	n, old := new(noNetwork), http.DefaultTransport
	http.DefaultTransport = n
	t.Cleanup(func() { http.DefaultTransport = old })
	return n
}

// byName are the verifiers the command makes of its flags.
func byName(t *testing.T, args ...string) map[string]verifier.Verifier {
	t.Helper()
	o := relyingPartyOptions{}
	cmd := o.command()
	if err := cmd.ParseFlags(args); err != nil {
		t.Fatal(err)
	}
	list, err := o.verifiers()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]verifier.Verifier{}
	for _, v := range list {
		out[v.TEE()] = v
	}
	return out
}

// snpEvidence is a real report of a Milan, without certificates.
func snpEvidence(t *testing.T) json.RawMessage {
	t.Helper()
	report, err := attester.ParseReport(testdata.AttestationBytes)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(attester.Evidence{Report: report})
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// tdxEvidence is a real quote.
func tdxEvidence() json.RawMessage {
	return json.RawMessage(`{"quote":"` + base64.StdEncoding.EncodeToString(tdxdata.RawQuote) + `","cc_eventlog":null}`)
}

var otherNonce = verifier.Expected{ReportData: []byte("the digest of another handshake")}

func TestServicesOfTheMakersAreAskedForEvidenceOnly(t *testing.T) {
	net := withoutNetwork(t)
	tees := byName(t)
	for _, name := range []string{"sample", "sampledevice", "snp", "tdx", "az-snp-vtpm", "az-tdx-vtpm", "tpm"} {
		if tees[name] == nil {
			t.Errorf("%s cannot be verified", name)
		}
	}
	_, _, stop := startRelyingParty(t, "--store", filepath.Join(t.TempDir(), "rp"))
	stop()
	if hosts := net.hosts(); len(hosts) > 0 || len(tees) != 7 {
		t.Fatalf("%d verifiers, asked %v before there was evidence", len(tees), hosts)
	}
	_, err := tees["snp"].Verify(t.Context(), snpEvidence(t), otherNonce)
	if hosts := net.hosts(); err == nil || !slices.Equal(hosts, []string{"kdsintf.amd.com"}) {
		t.Errorf("SNP: asked %v, %v", hosts, err)
	}
	_, err = tees["tdx"].Verify(t.Context(), tdxEvidence(), otherNonce)
	if hosts := net.hosts(); !errors.Is(err, tdx.ErrCollateral) || !slices.Equal(hosts, []string{"api.trustedservices.intel.com"}) {
		t.Errorf("TDX: asked %v, %v", hosts, err)
	}
}

// TestKeysFromDirectories ends at the nonce (or, years from now, at the expiry
// of the key): the key was found and the network not needed.
func TestKeysFromDirectories(t *testing.T) {
	net, store := withoutNetwork(t), t.TempDir()
	dir := filepath.Join(store, "vcek", hex.EncodeToString(testdata.AttestationBytes[0x1A0:0x1E0]))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "vcek.der"), testdata.VcekBytes, 0o600); err != nil {
		t.Fatal(err)
	}
	empty := t.TempDir()
	for name, c := range map[string]struct {
		args  []string
		err   error
		hosts []string
	}{
		"one directory":               {[]string{"--snp-vcek", store}, verifier.ErrEvidence, nil},
		"the second directory has it": {[]string{"--snp-vcek", empty, "--snp-vcek", store}, verifier.ErrEvidence, nil},
		"before AMD is asked":         {[]string{"--snp-vcek", store, "--snp-vcek", "kds"}, verifier.ErrEvidence, nil},
		"none has it":                 {[]string{"--snp-vcek", empty}, snp.ErrNoKey, nil},
		"none has it, then AMD":       {[]string{"--snp-vcek", empty, "--snp-vcek", "kds"}, snp.ErrNoKey, []string{"kdsintf.amd.com"}},
	} {
		_, err := byName(t, c.args...)["snp"].Verify(t.Context(), snpEvidence(t), otherNonce)
		if hosts := net.hosts(); !errors.Is(err, c.err) || !slices.Equal(hosts, c.hosts) {
			t.Errorf("%s: asked %v, %v", name, hosts, err)
		}
	}
}

func TestCollateralFromACachingServiceOrAFile(t *testing.T) {
	net := withoutNetwork(t)
	file := filepath.Join(t.TempDir(), "collateral.json")
	if err := os.WriteFile(file, []byte(`{"collaterals":{"tcbinfos":[]}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for source, want := range map[string]struct {
		host, text string
	}{
		"https://pccs.example:8081":                       {"pccs.example:8081", "no network"},
		"https://pccs.example:8081/sgx/certification/v4/": {"pccs.example:8081", "no network"},
		file: {"", "has no TDX TCB info for FMSPC"},
	} {
		_, err := byName(t, "--tdx-collateral", source)["tdx"].Verify(t.Context(), tdxEvidence(), otherNonce)
		if hosts := strings.Join(net.hosts(), " "); !errors.Is(err, tdx.ErrCollateral) || hosts != want.host || !strings.Contains(err.Error(), want.text) {
			t.Errorf("%s: asked %q, %v", source, hosts, err)
		}
	}
}
