package tdx

import (
	"encoding/hex"
	"errors"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	tdxtest "github.com/google/go-tdx-guest/testing"
	"github.com/google/go-tdx-guest/testing/testdata"

	"github.com/sealpod/sealpod/relyingparty/verifier"
)

// Real evidence: quotes and collateral of go-tdx-guest at 91f9a52f36c7, and
// the times at which its collateral was current.
var (
	time4 = time.Date(2023, 7, 1, 1, 0, 0, 0, time.UTC)
	time5 = time.Date(2026, 2, 3, 1, 0, 0, 0, time.UTC)
)

func unescape(t testing.TB, headers map[string][]string) []byte {
	t.Helper()
	for _, values := range headers {
		text, err := url.PathUnescape(values[0])
		if err != nil {
			t.Fatal(err)
		}
		return []byte(text)
	}
	return nil
}

func realCollateral(t testing.TB, tcbInfo []byte) *Collateral {
	t.Helper()
	return &Collateral{
		TCBInfo: tcbInfo, TCBInfoChain: unescape(t, tdxtest.TcbInfoHeader),
		QEIdentity: testdata.QeIdentityBody, QEIdentityChain: unescape(t, tdxtest.QeIdentityHeader),
		PCKCRL: testdata.PckCrlBody, RootCRL: testdata.RootCrlBody,
	}
}

func intel(t testing.TB, c *Collateral, now time.Time) *Verifier {
	t.Helper()
	v, err := New(Config{Source: &fixed{c: c}, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// intel4 is a verifier for the quote of version 4. The TCB info that comes with
// it was published after the quote, for newer firmware: its signature is
// checked, then its first level is lowered to that of the quote.
func intel4(t testing.TB) *Verifier {
	t.Helper()
	v := intel(t, realCollateral(t, testdata.TcbInfoBody), time4)
	_, _, err := v.VerifyQuote(t.Context(), testdata.RawQuote)
	if !errors.Is(err, verifier.ErrEvidence) || !strings.Contains(err.Error(), "below every level") {
		t.Fatalf("quote below the levels of its TCB info: %v", err)
	}
	for _, e := range v.cache.entries {
		for i := range e.c.tcb.TcbLevels[0].Tcb.SgxTcbcomponents {
			e.c.tcb.TcbLevels[0].Tcb.SgxTcbcomponents[i].Svn = 0
			e.c.tcb.TcbLevels[0].Tcb.TdxTcbcomponents[i].Svn = 0
		}
	}
	return v
}

// intel5 is a verifier for the quote of version 5.
func intel5(t testing.TB) *Verifier {
	t.Helper()
	return intel(t, realCollateral(t, testdata.TcbInfoBodyV5), time5)
}

func TestRealQuotesAreAccepted(t *testing.T) {
	for name, c := range map[string]struct {
		quote []byte
		v     *Verifier
		want  map[string]any
	}{
		"version 4": {testdata.RawQuote, intel4(t), map[string]any{
			"tcb_status": "UpToDate", "tcb_date": "2023-02-15T00:00:00Z", "collateral_expiration_status": "0", "tcb_eval_num": 15,
			"earliest_issue_date": "2018-05-21T10:45:10Z", "latest_issue_date": "2023-06-18T08:42:58Z", "earliest_expiration_date": "2023-07-08T07:24:59Z",
			"sgx_type": "Scalable", "pck_crl_num": int64(1), "root_ca_crl_num": int64(1),
			"root_key_id": "46e403bd34f05a3f2817ab9badcaacc7ffc98e0f261008cd30dae936cace18d5dcf58eef31463613de1570d516200993",
		}},
		"version 5": {testdata.RawQuoteV5, intel5(t), map[string]any{
			"tcb_status": "UpToDate", "tcb_date": "2023-02-15T00:00:00Z", "tcb_eval_num": 15,
			"collateral_expiration_status": "1", "earliest_expiration_date": "2023-07-08T07:24:59Z", "sgx_type": "Scalable",
		}},
	} {
		q, err := parseQuote(c.quote)
		if err != nil {
			t.Fatal(name, err)
		}
		got, err := c.v.Verify(t.Context(), toJSON(c.quote, nil), verifier.Expected{ReportData: q.ReportData(), InitData: q.MRConfigID()})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		values := got[0].Values
		for k, want := range c.want {
			if values[k] != want {
				t.Errorf("%s: %s is %v, not %v", name, k, values[k], want)
			}
		}
		header := values["quote"].(map[string]any)["header"].(map[string]any)
		if header["tee_type"] != "81000000" || header["vendor_id"] != "939a7233f79c4ca9940a0db3957f0607" {
			t.Errorf("%s: header %v", name, header)
		}
		if _, ok := values["quote"].(map[string]any)["type"]; ok != (name == "version 5") {
			t.Errorf("%s: type", name)
		}
		if got[0].Class != verifier.CPU || values["report_data"] != hex.EncodeToString(q.ReportData()) || values["uefi_event_logs"] != nil {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestRealQuotesAreRefusedAfterAChangeOfAnyByte(t *testing.T) {
	for name, c := range map[string]struct {
		quote []byte
		v     *Verifier
	}{"version 4": {testdata.RawQuote, intel4(t)}, "version 5": {testdata.RawQuoteV5, intel5(t)}} {
		q, _, err := c.v.VerifyQuote(t.Context(), c.quote)
		if err != nil {
			t.Fatal(err)
		}
		end := len(q.signed) + 4 + int(le.Uint32(c.quote[len(q.signed):])) // what follows is ignored
		step := 1
		for at := 0; at < end; at += step {
			if at > len(q.signed)+4+128+6+450 {
				step = 5 // the chain is long
			}
			changed := slices.Clone(c.quote)
			changed[at] ^= 1
			if _, _, err := c.v.VerifyQuote(t.Context(), changed); !errors.Is(err, verifier.ErrEvidence) {
				t.Errorf("%s, byte %d of %d: %v", name, at, len(c.quote), err)
			}
		}
	}
}

func TestRealQuoteOfSimulatorRoots(t *testing.T) {
	s := newSimulator(t)
	_, _, err := s.verifier(s.collateral(s.tcb())).VerifyQuote(t.Context(), testdata.RawQuote)
	if !errors.Is(err, verifier.ErrEvidence) || !strings.Contains(err.Error(), "not trusted") {
		t.Errorf("real evidence where only the simulator is trusted: %v", err)
	}
	_, _, err = intel(t, realCollateral(t, testdata.TcbInfoBody), simTime).VerifyQuote(t.Context(), s.quote(s.model()))
	if !errors.Is(err, verifier.ErrEvidence) || !strings.Contains(err.Error(), "not trusted") {
		t.Errorf("simulated evidence where only Intel is trusted: %v", err)
	}
}

// TestRealEventLog has the log and quote of a TD at Google. There is no
// collateral for it, so that the quote is checked up to its signatures.
func TestRealEventLog(t *testing.T) {
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/google/go-tdx-guest").Output()
	if err != nil {
		t.Fatal(err)
	}
	file := func(name string) []byte {
		content, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), "testing/testdata/ccel", name))
		if err != nil {
			t.Fatal(err)
		}
		return content
	}
	q, err := parseQuote(file("cos-113-tdx-quote.dat"))
	if err != nil {
		t.Fatal(err)
	}
	root, err := IntelRoot()
	if err != nil {
		t.Fatal(err)
	}
	ch, err := parseChain(q.chain, certs(root))
	if err != nil {
		t.Fatal(err)
	}
	if err := q.checkSignatures(ch.pck); err != nil {
		t.Error(err)
	}
	log := file("ccel_data.dat")
	if _, events, err := q.eventLog(log); err != nil || len(events) == 0 {
		t.Errorf("%d events, %v", len(events), err)
	}
	q.RTMR(3)[0] ^= 1
	if _, _, err := q.eventLog(log); err == nil {
		t.Error("RTMR3 is not compared")
	}
}

func BenchmarkVerify(b *testing.B) {
	v := intel5(b)
	raw := toJSON(testdata.RawQuoteV5, nil)
	q, err := parseQuote(testdata.RawQuoteV5)
	if err != nil {
		b.Fatal(err)
	}
	want := verifier.Expected{ReportData: q.ReportData()}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := v.Verify(b.Context(), raw, want); err != nil {
			b.Fatal(err)
		}
	}
}
