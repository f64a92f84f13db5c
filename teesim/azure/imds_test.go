package azure

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/sealpod/sealpod/teesim/snp"
	"github.com/sealpod/sealpod/teesim/tdx"
)

// ask sends a request to a metadata service and returns status and JSON.
func ask(t *testing.T, h Hardware, method, path, body string, header http.Header) (int, map[string]string) {
	t.Helper()
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.Header = header
	w := httptest.NewRecorder()
	imdsHandler(h, slog.New(slog.DiscardHandler)).ServeHTTP(w, r)
	var out map[string]string
	if err := json.Unmarshal(w.Body.Bytes(), &out); err != nil {
		t.Fatalf("%d %q: %v", w.Code, w.Body, err)
	}
	if got := w.Header().Get("Content-Type"); got != "application/json" {
		t.Errorf("Content-Type %q", got)
	}
	return w.Code, out
}

var metadata = http.Header{"Metadata": {"true"}}

const (
	quotePath = "/acc/tdquote"
	certPath  = "/metadata/THIM/amd/certification"
)

func TestQuoteService(t *testing.T) {
	h := tdxHardware(t, tdx.Launch{})
	data := [64]byte{0xfb, 0xef, 0xff}
	report, err := h.Report(data)
	if err != nil {
		t.Fatal(err)
	}
	body := func(encoding *base64.Encoding, b []byte) string {
		return `{"report":"` + encoding.EncodeToString(b) + `"}`
	}
	for name, encoding := range map[string]*base64.Encoding{
		"standard": base64.StdEncoding, "URL-safe": base64.RawURLEncoding,
	} {
		status, out := ask(t, h, "POST", quotePath, body(encoding, report), metadata)
		quote, err := base64.RawURLEncoding.DecodeString(out["quote"])
		if status != http.StatusOK || err != nil || !bytes.Equal(quote[568:632], data[:]) {
			t.Errorf("%s base64: %d %v %v", name, status, out, err)
		}
	}
	foreign, err := tdxHardware(t, tdx.Launch{}).Report(data)
	if err != nil {
		t.Fatal(err)
	}
	good := body(base64.StdEncoding, report)
	for name, tt := range map[string]struct {
		method, path, body string
		header             http.Header
		want               int
	}{
		"without the header":    {"POST", quotePath, good, nil, 400},
		"with another header":   {"POST", quotePath, good, http.Header{"Metadata": {"1"}}, 400},
		"through a proxy":       {"POST", quotePath, good, http.Header{"Metadata": {"true"}, "X-Forwarded-For": {""}}, 400},
		"by GET":                {"GET", quotePath, "", metadata, 404},
		"of AMD's certificates": {"GET", certPath, "", metadata, 404},
		"of another path":       {"GET", "/metadata/instance", "", metadata, 404},
		"of an unclean path":    {"POST", "/acc/../acc/tdquote", good, metadata, 404},
		"of no JSON":            {"POST", quotePath, "report", metadata, 400},
		"of nothing":            {"POST", quotePath, "", metadata, 400},
		"of no base64":          {"POST", quotePath, `{"report":"****"}`, metadata, 400},
		"of a short report":     {"POST", quotePath, body(base64.StdEncoding, report[:1023]), metadata, 400},
		"of a foreign report":   {"POST", quotePath, body(base64.StdEncoding, foreign), metadata, 400},
		"of a long body":        {"POST", quotePath, strings.Repeat(" ", maxQuoteRequest) + good, metadata, 400},
	} {
		if status, out := ask(t, h, tt.method, tt.path, tt.body, tt.header); status != tt.want || out["error"] == "" {
			t.Errorf("a request %s: %d %v, want %d", name, status, out, tt.want)
		}
	}
}

func TestCertificateService(t *testing.T) {
	chip, err := snp.Open("", snp.Options{})
	if err != nil {
		t.Fatal(err)
	}
	tcbs := map[string]bool{}
	for _, stale := range []bool{false, true} {
		guest := snp.NewGuest(snp.Launch{StaleTCB: stale})
		h := SNP(chip, guest)
		status, out := ask(t, h, "GET", certPath, "", metadata)
		if status != http.StatusOK || out["cacheControl"] == "" {
			t.Fatalf("%d %v", status, out)
		}
		vcek, err := chip.VCEK(chip.TCB(guest))
		if err != nil {
			t.Fatal(err)
		}
		ark, ask, _ := chip.Roots()
		rest := []byte(out["vcekCert"] + out["certificateChain"])
		for _, want := range []*x509.Certificate{vcek, ask, ark} {
			var block *pem.Block
			if block, rest = pem.Decode(rest); block == nil || !bytes.Equal(block.Bytes, want.Raw) {
				t.Fatalf("no certificate of %s", want.Subject)
			}
		}
		if len(bytes.TrimSpace(rest)) != 0 {
			t.Errorf("behind the certificates: %q", rest)
		}
		// The bootloader is the lowest byte, the microcode the highest.
		tcb, err := hex.DecodeString(out["tcbm"])
		if now := chip.TCB(guest); err != nil || len(tcb) != 8 || tcb[7] != now.Bootloader || tcb[0] != now.Microcode {
			t.Errorf("tcbm %q, %v, want %+v", out["tcbm"], err, now)
		}
		tcbs[out["tcbm"]] = true
	}
	if len(tcbs) != 2 {
		t.Errorf("current and stale firmware are %v", tcbs)
	}
	h := snpHardware(t, snp.Launch{})
	if status, _ := ask(t, h, "POST", quotePath, "{}", metadata); status != 404 {
		t.Errorf("a quote on SNP: %d", status)
	}
	h.Certification = func() (Certification, error) { return Certification{}, io.ErrUnexpectedEOF }
	if status, _ := ask(t, h, "GET", certPath, "", metadata); status != 500 {
		t.Errorf("no certificates: %d", status)
	}
}
