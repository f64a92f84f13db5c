package tdx

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	teesim "github.com/sealpod/sealpod/teesim/tdx"
)

var simPlatform = Platform{[6]byte{1, 2, 3, 4, 5, 6}, platformCA}

// fakePCS serves collateral as Intel's service does, or a caching one.
func fakePCS(t *testing.T, c *Collateral, update string, asHex bool) *httptest.Server {
	t.Helper()
	der := func(b []byte) []byte {
		if asHex {
			return []byte(hex.EncodeToString(b) + "\n")
		}
		return b
	}
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body []byte
		switch r.URL.RequestURI() {
		case "/tdx/certification/v4/tcb?fmspc=010203040506&update=" + update:
			w.Header().Set("TCB-Info-Issuer-Chain", url.PathEscape(string(c.TCBInfoChain)))
			body = c.TCBInfo
		case "/tdx/certification/v4/qe/identity?update=" + update:
			w.Header().Set("SGX-Enclave-Identity-Issuer-Chain", url.PathEscape(string(c.QEIdentityChain)))
			body = c.QEIdentity
		case "/sgx/certification/v4/pckcrl?ca=platform&encoding=der":
			body = der(c.PCKCRL)
		case "/sgx/certification/v4/rootcacrl":
			body = der(c.RootCRL)
		default:
			http.NotFound(w, r)
			return
		}
		if _, err := w.Write(body); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(server.Close)
	return server
}

func TestCollateralFromService(t *testing.T) {
	s := newSimulator(t)
	want := s.collateral(s.tcb())
	for name, c := range map[string]struct {
		update Update
		sent   string
		asHex  bool
	}{
		"service": {"", "early", false}, "caching service": {Early, "early", true}, "standard levels": {Standard, "standard", false},
	} {
		server := fakePCS(t, want, c.sent, c.asHex)
		pcs, err := NewPCS(server.URL+"/sgx/certification/v4/", c.update, server.Client())
		if err != nil {
			t.Fatal(err)
		}
		got, err := pcs.Collateral(t.Context(), simPlatform)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if _, _, err := s.verifier(got).VerifyQuote(t.Context(), s.quote(s.model())); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestServiceThatFails(t *testing.T) {
	s := newSimulator(t)
	for name, change := range map[string]func(*Collateral){
		"no chain":           func(c *Collateral) { c.TCBInfoChain = nil },
		"answer without end": func(c *Collateral) { c.QEIdentity = make([]byte, maxDocument+1) },
	} {
		c := s.collateral(s.tcb())
		change(c)
		server := fakePCS(t, c, "early", false)
		pcs, err := NewPCS(server.URL, Early, server.Client())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := pcs.Collateral(t.Context(), simPlatform); !errors.Is(err, ErrCollateral) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := pcs.Collateral(t.Context(), Platform{CA: processorCA}); !errors.Is(err, ErrCollateral) || !strings.Contains(err.Error(), "404") {
			t.Errorf("unknown platform: %v", err)
		}
	}
	for _, bad := range [][2]string{{"", ""}, {"no host", ""}, {"://", ""}, {IntelPCS, "late"}} {
		if _, err := NewPCS(bad[0], Update(bad[1]), nil); err == nil {
			t.Errorf("%q is no service", bad)
		}
	}
	if p, err := NewPCS(IntelPCS, "", nil); err != nil || p.client.Timeout == 0 {
		t.Errorf("defaults: %v", err)
	}
}

// toolFile writes collateral as Intel's PcsClientTool does, indented.
func toolFile(t *testing.T, c *Collateral, change func(map[string]any)) File {
	t.Helper()
	file := (*teesim.Collateral)(c).File("010203040506", platformCA)
	in := file["collaterals"].(map[string]any)
	change(in)
	text, err := json.MarshalIndent(file, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "platform_collaterals.json")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return File{Path: path}
}

func TestCollateralFromFile(t *testing.T) {
	s := newSimulator(t)
	want := s.collateral(s.tcb())
	file := toolFile(t, want, func(map[string]any) {})
	got, err := file.Collateral(t.Context(), simPlatform)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("%v", err)
	}
	if _, _, err := s.verifier(got).VerifyQuote(t.Context(), s.quote(s.model())); err != nil {
		t.Error(err)
	}
	old := s.tcb()
	old.Platform = levels(5, "OutOfDate")
	early := s.collateral(old)
	file = toolFile(t, want, func(in map[string]any) {
		in["tcbinfos"].([]any)[0].(map[string]any)["tdx_tcbinfo_early"] = json.RawMessage(early.TCBInfo)
		in["tdqeidentity_early"] = nil
	})
	for update, info := range map[Update][]byte{"": early.TCBInfo, Early: early.TCBInfo, Standard: want.TCBInfo} {
		file.Update = update
		if got, err := file.Collateral(t.Context(), simPlatform); err != nil || string(got.TCBInfo) != string(info) || string(got.QEIdentity) != string(want.QEIdentity) {
			t.Errorf("%q: %v", update, err)
		}
	}
}

func TestFileThatHasNoAnswer(t *testing.T) {
	s := newSimulator(t)
	c := s.collateral(s.tcb())
	if _, err := (File{Path: filepath.Join(t.TempDir(), "none")}).Collateral(t.Context(), simPlatform); !errors.Is(err, ErrCollateral) {
		t.Errorf("no file: %v", err)
	}
	file := toolFile(t, c, func(map[string]any) {})
	if _, err := file.Collateral(t.Context(), Platform{CA: platformCA}); !errors.Is(err, ErrCollateral) {
		t.Errorf("another platform: %v", err)
	}
	for name, change := range map[string]func(map[string]any){
		"no identity":    func(in map[string]any) { delete(in, "tdqeidentity") },
		"no chain":       func(in map[string]any) { in["certificates"] = map[string]any{"TCB-Info-Issuer-Chain": "%"} },
		"no lists":       func(in map[string]any) { in["pckcacrl"] = nil },
		"no TCB info":    func(in map[string]any) { in["tcbinfos"] = nil },
		"wrong types":    func(in map[string]any) { in["tcbinfos"] = 1 },
		"null documents": func(in map[string]any) { in["tdqeidentity"] = nil },
	} {
		v := s.verifier(nil)
		v.cache.source = toolFile(t, c, change)
		if _, _, err := v.VerifyQuote(t.Context(), s.quote(s.model())); !errors.Is(err, ErrCollateral) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
