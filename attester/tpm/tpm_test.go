package tpm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
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

	"github.com/google/go-tpm/tpm2"
	"go.uber.org/goleak"

	"github.com/sealpod/sealpod/attester/eventlog"
	"github.com/sealpod/sealpod/attester/internal/vtpm"
	"github.com/sealpod/sealpod/attester/vtpmtest"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// withEnv is host with one environment variable.
func withEnv(host podvm.Host, name, value string) podvm.Host {
	host.LookupEnv = func(k string) (string, bool) { return value, k == name }
	return host
}

// check checks evidence as a verifier does, reading the JSON with nothing of
// this package, and returns the PCRs.
func check(t *testing.T, evidence, nonce []byte) [][]byte {
	t.Helper()
	var e struct {
		TPMQuote map[string]any `json:"tpm_quote"`
		AKPublic string         `json:"ak_public"`
	}
	d := json.NewDecoder(bytes.NewReader(evidence))
	d.DisallowUnknownFields()
	if err := d.Decode(&e); err != nil {
		t.Fatal(err)
	}
	if got := slices.Sorted(maps.Keys(e.TPMQuote)); !slices.Equal(got, []string{"message", "pcrs", "signature"}) {
		t.Fatalf("keys %q", got)
	}
	std := base64.StdEncoding
	message := must(std.DecodeString(e.TPMQuote["message"].(string)))
	sig := must(tpm2.Unmarshal[tpm2.TPMTSignature](must(std.DecodeString(e.TPMQuote["signature"].(string)))))
	bare := must(sig.Signature.RSASSA())
	key := must(x509.ParsePKIXPublicKey(must(std.DecodeString(e.AKPublic)))).(*rsa.PublicKey)
	sum := sha256.Sum256(message)
	if err := rsa.VerifyPKCS1v15(key, crypto.SHA256, sum[:], bare.Sig.Buffer); err != nil || bare.Hash != tpm2.TPMAlgSHA256 {
		t.Error(err)
	}
	var pcrs [][]byte
	for _, p := range e.TPMQuote["pcrs"].([]any) {
		pcrs = append(pcrs, must(hex.DecodeString(p.(string))))
	}
	attest := must(tpm2.Unmarshal[tpm2.TPMSAttest](message))
	digest := sha256.Sum256(bytes.Join(pcrs, nil))
	if info := must(attest.Attested.Quote()); len(pcrs) != 24 || !bytes.Equal(info.PCRDigest.Buffer, digest[:]) {
		t.Errorf("%d PCRs that are not those of the quote", len(pcrs))
	}
	if !bytes.Equal(attest.ExtraData.Buffer, nonce) {
		t.Errorf("quote over %x, want %x", attest.ExtraData.Buffer, nonce)
	}
	return pcrs
}

func TestEvidence(t *testing.T) {
	tpm := vtpmtest.Start(t, testenv.Tool(t, "swtpm"))
	tpm.Key(t, defaultHandle)
	a := New(tpm.Machine(t))
	if a.TEE() != "tpm" {
		t.Error(a.TEE())
	}
	for _, n := range []int{0, 20, 32, 48, 64, 1000} {
		data := bytes.Repeat([]byte{0x77}, n)
		out, err := a.Evidence(t.Context(), data)
		if err != nil {
			t.Fatal(err)
		}
		check(t, out, append(data, make([]byte, 32)...)[:32])
	}
}

func TestParallelCallsNeverMixReportData(t *testing.T) {
	tpm := vtpmtest.Start(t, testenv.Tool(t, "swtpm"))
	tpm.Key(t, defaultHandle)
	a := New(tpm.Machine(t))
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			data := sha256.Sum256(fmt.Append(nil, i))
			out, err := a.Evidence(t.Context(), data[:])
			if err != nil {
				t.Error(err)
				return
			}
			check(t, out, data[:])
		})
	}
	all.Wait()
}

func TestKeyAtAnotherHandle(t *testing.T) {
	tpm := vtpmtest.Start(t, testenv.Tool(t, "swtpm"))
	tpm.Key(t, 0x8101beef)
	host := tpm.Machine(t)
	for _, text := range []string{"0x8101beef", "8101BEEF"} {
		host := withEnv(host, handleEnv, text)
		if ok, err := Detect(t.Context(), host); !ok || err != nil {
			t.Errorf("%s: %v, %v", text, ok, err)
		}
		out, err := New(host).Evidence(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		check(t, out, make([]byte, 32))
	}
	for _, text := range []string{"", "0x", "ak", "0x18101beef", "-1", "0x01400001", "0x80000000", "0x8101beef\x1b"} {
		host := withEnv(host, handleEnv, text)
		if ok, err := Detect(t.Context(), host); ok || !errors.Is(err, ErrHandle) || strings.Contains(err.Error(), "\x1b") {
			t.Errorf("%q: %v, %v", text, ok, err)
		}
		if _, err := New(host).Evidence(t.Context(), nil); !errors.Is(err, ErrHandle) || podvm.Cause(err) == "" {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestDetect(t *testing.T) {
	tpm := vtpmtest.Start(t, testenv.Tool(t, "swtpm"))
	host := tpm.Machine(t)
	if ok, err := Detect(t.Context(), host); ok || err != nil {
		t.Errorf("no key: %v, %v", ok, err)
	}
	if ok, err := Detect(t.Context(), withEnv(host, handleEnv, "0x81010009")); ok || !errors.Is(err, vtpm.ErrKey) {
		t.Errorf("no key where one must be: %v, %v", ok, err)
	}
	if ok, err := Detect(t.Context(), podvm.Host{Root: t.TempDir()}); ok || err != nil {
		t.Errorf("no TPM: %v, %v", ok, err)
	}
	tpm.KeyOf(t, defaultHandle, tpm2.RSASRKTemplate)
	if ok, err := Detect(t.Context(), host); ok || err != nil {
		t.Errorf("a key for storage: %v, %v", ok, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if ok, err := Detect(ctx, host); ok || !errors.Is(err, context.Canceled) {
		t.Errorf("the caller is gone: %v, %v", ok, err)
	}
	if _, err := New(host).Evidence(t.Context(), nil); !errors.Is(err, vtpm.ErrKey) || podvm.Cause(err) == "" {
		t.Errorf("evidence without a key: %v", err)
	}
}

// Init data and events are in the PCRs of the quote.
func TestInitDataAndEvents(t *testing.T) {
	tpm := vtpmtest.Start(t, testenv.Tool(t, "swtpm"))
	tpm.Key(t, defaultHandle)
	host := tpm.Machine(t)
	digest := sha256.Sum256([]byte("init data"))
	platform, ok := eventlog.PlatformOf(TEE)
	if !ok {
		t.Fatal("no platform")
	}
	for range 2 { // starts of the agent
		a := New(host)
		if err := a.BindInitData(t.Context(), digest[:]); err != nil {
			t.Fatal(err)
		}
		l, err := eventlog.Open(t.Context(), eventlog.Options{Host: host, Platform: platform, Registers: a.Registers(), DefaultPCR: 23})
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Extend(t.Context(), "domain", "operation", "content", nil); err != nil {
			t.Fatal(err)
		}
	}
	out, err := New(host).Evidence(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	pcrs := check(t, out, make([]byte, 32))
	event := sha256.Sum256([]byte("LEAA\x18\x00\x00\x00domain operation content"))
	want := sha256.Sum256(append(make([]byte, 32), event[:]...))
	want = sha256.Sum256(append(want[:], event[:]...))
	if !bytes.Equal(pcrs[23], want[:]) {
		t.Errorf("PCR 23 is %x", pcrs[23])
	}
	want = sha256.Sum256(append(make([]byte, 32), digest[:]...))
	if !bytes.Equal(pcrs[8], want[:]) {
		t.Errorf("PCR 8 is %x", pcrs[8])
	}
	if err := New(host).BindInitData(t.Context(), make([]byte, 48)); !errors.Is(err, vtpm.ErrInitData) || podvm.Cause(err) == "" {
		t.Errorf("SHA-384: %v", err)
	}
}

func BenchmarkEvidence(b *testing.B) {
	tpm := vtpmtest.Start(b, testenv.Tool(b, "swtpm"))
	tpm.Key(b, defaultHandle)
	a := New(tpm.Machine(b))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := a.Evidence(b.Context(), nil); err != nil {
			b.Fatal(err)
		}
	}
}
