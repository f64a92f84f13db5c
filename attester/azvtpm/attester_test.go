package azvtpm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/sealpod/sealpod/attester/internal/vtpm"
	"github.com/sealpod/sealpod/attester/vtpmtest"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/testenv"
)

// check checks evidence as a verifier does, short of the hardware's signature,
// reading the JSON with nothing of this package, and returns the quote's PCRs.
func check(t testing.TB, m *machine, key *rsa.PublicKey, evidence, reportData []byte) [][]byte {
	t.Helper()
	var e struct {
		Version  float64
		TPMQuote struct {
			Signature, Message string
			PCRs               []string
		} `json:"tpm_quote"`
		HCLReport string `json:"hcl_report"`
		VCEK      string
		TDQuote   string `json:"td_quote"`
	}
	if err := json.Unmarshal(evidence, &e); err != nil {
		t.Fatal(err)
	}
	message, sig := must(hex.DecodeString(e.TPMQuote.Message)), must(hex.DecodeString(e.TPMQuote.Signature))
	sum := sha256.Sum256(message)
	if err := rsa.VerifyPKCS1v15(key, crypto.SHA256, sum[:], sig); err != nil {
		t.Error(err)
	}
	attest := must(tpm2.Unmarshal[tpm2.TPMSAttest](message))
	info := must(attest.Attested.Quote())
	var pcrs [][]byte
	for _, p := range e.TPMQuote.PCRs {
		pcrs = append(pcrs, must(hex.DecodeString(p)))
	}
	digest := sha256.Sum256(bytes.Join(pcrs, nil))
	if len(pcrs) != 24 || !bytes.Equal(digest[:], info.PCRDigest.Buffer) {
		t.Errorf("%d PCRs that are not those of the quote", len(pcrs))
	}
	if e.Version != 2 || !bytes.Equal(attest.ExtraData.Buffer, reportData) {
		t.Errorf("version %v, nonce %x, want %x", e.Version, attest.ExtraData.Buffer, reportData)
	}
	report := must(base64.URLEncoding.DecodeString(e.HCLReport))
	h := must(ParseHCL(report))
	if len(report) != hclSize || h.Kind != m.kind || !bytes.HasPrefix(h.UserData, reportData) {
		t.Errorf("HCL report of %d bytes about %x, want %x", len(report), h.UserData, reportData)
	}
	switch m.kind {
	case TDX:
		if e.VCEK != "" || !bytes.Equal(must(base64.URLEncoding.DecodeString(e.TDQuote)), quoteOf(h.Report)) {
			t.Errorf("TD quote %s, VCEK %s", e.TDQuote, e.VCEK)
		}
	case SNP:
		if e.TDQuote != "" || !bytes.Equal(must(base64.URLEncoding.DecodeString(e.VCEK)), vcek()) {
			t.Errorf("TD quote %s, VCEK %s", e.TDQuote, e.VCEK)
		}
	}
	return pcrs
}

func TestEvidence(t *testing.T) {
	for kind, keys := range map[Kind][]string{
		SNP: {"hcl_report", "tpm_quote", "vcek", "version"}, TDX: {"hcl_report", "td_quote", "tpm_quote", "version"},
	} {
		t.Run(kind.TEE(), func(t *testing.T) {
			m := newMachine(t, kind)
			a, key := m.attester(), m.key(t)
			if a.TEE() != kind.TEE() {
				t.Error(a.TEE())
			}
			// 48 bytes as the KBS handshake has, shorter that are a part of
			// those, and none.
			for _, n := range []int{48, 20, 64, 1, 0} {
				data := bytes.Repeat([]byte{0x5a}, n)
				out, err := a.Evidence(t.Context(), data)
				if err != nil {
					t.Fatal(err)
				}
				check(t, m, key, out, data)
				var fields map[string]json.RawMessage
				if err := json.Unmarshal(out, &fields); err != nil || !slices.Equal(slices.Sorted(maps.Keys(fields)), keys) {
					t.Errorf("%v, %v", fields, err)
				}
				if now := m.tpm.NV(t, reportDataIndex); n > 0 && !bytes.Equal(now, data) {
					t.Errorf("the paravisor was given %x", now)
				}
			}
			if _, err := a.Evidence(t.Context(), make([]byte, 65)); !errors.Is(err, ErrReportData) || podvm.Cause(err) == "" {
				t.Errorf("65 bytes: %v", err)
			}
		})
	}
}

// The report is short enough for a real NV index here, and the paravisor writes
// it there.
func TestEvidenceFromARealIndex(t *testing.T) {
	m := newMachine(t, SNP)
	write := func(data []byte) {
		user := make([]byte, 64)
		copy(user, data)
		report := signed(hcl(SNP, `{"keys":[],"user-data":"`+hex.EncodeToString(user)+`"}`, 0))
		err := vtpm.New(m.tpm.Machine(t)).Do(t.Context(), func(c *vtpm.Conn) error { return c.WriteNV(reportIndex, report) })
		if err != nil {
			t.Error(err)
		}
	}
	write(nil)
	a := New(m.tpm.Machine(t, func(cmd []byte) []byte {
		if vtpmtest.Command(cmd) == tpm2.TPMCCNVWrite {
			out, err := m.tpm.Send(cmd)
			if err != nil {
				t.Error(err)
			}
			write(m.tpm.NV(t, reportDataIndex))
			return out
		}
		return nil
	}), SNP)
	a.metadata = newMetadata(m.host)
	out, err := a.Evidence(t.Context(), []byte("report data"))
	if err != nil {
		t.Fatal(err)
	}
	var e Evidence
	if err := json.Unmarshal(out, &e); err != nil {
		t.Fatal(err)
	}
	if h, err := ParseHCL(e.HCLReport); err != nil || !bytes.HasPrefix(h.UserData, []byte("report data")) {
		t.Errorf("%x, %v", h.UserData, err)
	}
}

func TestParallelCallsNeverMixReportData(t *testing.T) {
	m := newMachine(t, TDX)
	a, key := m.attester(), m.key(t)
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			data := []byte(fmt.Sprintf("call %d%s", i, strings.Repeat("!", i)))
			out, err := a.Evidence(t.Context(), data)
			if err != nil {
				t.Error(err)
				return
			}
			check(t, m, key, out, data)
		})
	}
	all.Wait()
}

func TestAParavisorThatTakesItsTimeIsWaitedFor(t *testing.T) {
	m := newMachine(t, SNP)
	m.lazy = 3
	out, err := m.attester().Evidence(t.Context(), []byte("data"))
	if err != nil {
		t.Fatal(err)
	}
	check(t, m, m.key(t), out, []byte("data"))
}

// A report that is replaced while it is read has claims the hardware did not
// sign; it is read again.
func TestATornReportIsReadAgain(t *testing.T) {
	m := newMachine(t, SNP)
	torn := 2
	m.hooks = append(m.hooks, vtpmtest.ReadOnlyNV(reportIndex, hclSize, func() []byte {
		report := renewed(SNP, m.tpm.NV(t, reportDataIndex))
		switch torn--; torn {
		case 1:
			return append(bytes.Clone(m.report[:1024]), report[1024:]...)
		case 0:
			return append(report[:1300:1300], make([]byte, hclSize-1300)...)
		}
		return report
	}))
	out, err := m.attester().Evidence(t.Context(), []byte("data"))
	if err != nil || torn >= 0 {
		t.Fatalf("%v, %d", err, torn)
	}
	check(t, m, m.key(t), out, []byte("data"))
}

func TestAParavisorThatNeverRenewsEndsWithTheBound(t *testing.T) {
	m := newMachine(t, TDX)
	m.lazy = -1
	a := m.attester()
	a.patience = time.Millisecond
	_, err := a.Evidence(t.Context(), []byte("data"))
	if !errors.Is(err, ErrStale) || !strings.Contains(podvm.Cause(err), "paravisor did not put the report data") {
		t.Errorf("%v: %s", err, podvm.Cause(err))
	}
	if len(m.asked) != 0 {
		t.Errorf("the metadata service was asked: %q", m.asked)
	}
	// Firmware without user-data never will.
	m.report = signed(hcl(TDX, `{"keys":[]}`, hclSize))
	if _, err := a.Evidence(t.Context(), []byte("data")); !errors.Is(err, ErrStale) {
		t.Errorf("no user-data: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	m.hooks = append(m.hooks, func(cmd []byte) []byte {
		if vtpmtest.Command(cmd) == tpm2.TPMCCNVRead {
			cancel()
		}
		return nil
	})
	if _, err := m.attester().Evidence(ctx, []byte("data")); !errors.Is(err, context.Canceled) {
		t.Errorf("the caller leaves: %v", err)
	}
}

func TestReportsOfAnotherKindAreRefused(t *testing.T) {
	for name, tt := range map[string]struct {
		report []byte
		want   error
	}{
		"SNP in a TDX guest": {renewed(SNP, nil), ErrHCL},
		"malformed":          {make([]byte, hclSize), ErrHCL},
		"lying length":       {append(hcl(TDX, claims(""), 0)[:1232:1232], bytes.Repeat([]byte{0xff}, hclSize-1232)...), ErrHCL},
		"other claims":       {hcl(TDX, claims(""), hclSize), ErrHCL},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t, TDX)
			m.lazy, m.report = -1, tt.report
			a := m.attester()
			a.patience = time.Millisecond
			if out, err := a.Evidence(t.Context(), nil); !errors.Is(err, tt.want) || out != nil {
				t.Errorf("%s, %v", out, err)
			}
		})
	}
}

func TestAnIndexOfAnotherSizeIsDefinedAnew(t *testing.T) {
	m := newMachine(t, SNP)
	err := vtpm.New(m.host).Do(t.Context(), func(c *vtpm.Conn) error { return c.WriteNV(reportDataIndex, make([]byte, 64)) })
	if err != nil {
		t.Fatal(err)
	}
	out, err := m.attester().Evidence(t.Context(), []byte("data"))
	if err != nil {
		t.Fatal(err)
	}
	check(t, m, m.key(t), out, []byte("data"))
	if now := m.tpm.NV(t, reportDataIndex); string(now) != "data" {
		t.Errorf("%q", now)
	}
}

func TestNoTPM(t *testing.T) {
	a := New(podvm.Host{Root: t.TempDir()}, SNP)
	if _, err := a.Evidence(t.Context(), nil); !errors.Is(err, vtpm.ErrNoTPM) || podvm.Cause(err) == "" {
		t.Errorf("evidence: %v", err)
	}
	if err := a.BindInitData(t.Context(), make([]byte, 32)); !errors.Is(err, vtpm.ErrNoTPM) || podvm.Cause(err) == "" {
		t.Errorf("init data: %v", err)
	}
	tpm := vtpmtest.Start(t, testenv.Tool(t, "swtpm"))
	a = New(tpm.Machine(t, vtpmtest.ReadOnlyNV(reportIndex, hclSize, func() []byte { return renewed(SNP, []byte{1}) })), SNP)
	if _, err := a.Evidence(t.Context(), []byte{1}); !errors.Is(err, vtpm.ErrKey) || podvm.Cause(err) == "" {
		t.Errorf("no attestation key: %v", err)
	}
}

func TestBindInitData(t *testing.T) {
	m := newMachine(t, SNP)
	digest := sha256.Sum256([]byte("init data"))
	for range 2 {
		if err := m.attester().BindInitData(t.Context(), digest[:]); err != nil {
			t.Fatal(err)
		}
	}
	out, err := m.attester().Evidence(t.Context(), []byte("data"))
	if err != nil {
		t.Fatal(err)
	}
	want := sha256.Sum256(append(make([]byte, 32), digest[:]...))
	if pcrs := check(t, m, m.key(t), out, []byte("data")); !bytes.Equal(pcrs[8], want[:]) {
		t.Errorf("PCR 8 is %x", pcrs[8])
	}
	if err := m.attester().BindInitData(t.Context(), make([]byte, 48)); !errors.Is(err, vtpm.ErrInitData) || !strings.Contains(podvm.Cause(err), "sha256") {
		t.Errorf("SHA-384: %v", err)
	}
}

func TestDetect(t *testing.T) {
	tpm := vtpmtest.Start(t, testenv.Tool(t, "swtpm"))
	for name, tt := range map[string]struct {
		report []byte
		want   Kind
		err    error
	}{
		"SNP":            {renewed(SNP, nil), SNP, nil},
		"TDX":            {renewed(TDX, nil), TDX, nil},
		"trusted launch": {hcl(3, claims(""), hclSize), 0, ErrHCL},
		"something else": {make([]byte, 64), 0, ErrHCL},
	} {
		t.Run(name, func(t *testing.T) {
			host := tpm.Machine(t, vtpmtest.ReadOnlyNV(reportIndex, len(tt.report), func() []byte { return tt.report }))
			if got, err := Detect(t.Context(), host); got != tt.want || !errors.Is(err, tt.err) {
				t.Errorf("%d, %v", got, err)
			}
		})
	}
	t.Run("leaves the report alone", func(t *testing.T) {
		m := newMachine(t, TDX)
		m.lazy = -1
		for range 3 {
			if got, err := Detect(t.Context(), m.host); got != TDX || err != nil {
				t.Fatalf("%d, %v", got, err)
			}
		}
		if m.readings != 1 { // the fixture's own, to have something
			t.Errorf("the paravisor saw %d readings", m.readings)
		}
	})
	for name, host := range map[string]podvm.Host{"ordinary TPM": tpm.Machine(t), "no TPM": {Root: t.TempDir()}} {
		if got, err := Detect(t.Context(), host); got != 0 || err != nil {
			t.Errorf("%s: %d, %v", name, got, err)
		}
	}
	if got := Kind(3).TEE(); got != "" {
		t.Error(got)
	}
}
