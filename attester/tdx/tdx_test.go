package tdx

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-configfs-tsm/configfs/faketsm"
	"github.com/google/go-tdx-guest/abi"
	"github.com/google/go-tdx-guest/testing/testdata"
	"go.uber.org/goleak"

	"github.com/sealpod/sealpod/attester/eventlog"
	"github.com/sealpod/sealpod/attester/internal/tsm"
	"github.com/sealpod/sealpod/attester/internal/tsmtest"
	"github.com/sealpod/sealpod/podvm"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// guest returns an attester of a file tree with files, whose quotes come from
// the driver d.
func guest(t testing.TB, d *tsmtest.Driver, files map[string]string) (*Attester, *faketsm.ReportSubsystem) {
	t.Helper()
	host := podvm.Host{Root: t.TempDir(), LookupEnv: func(string) (string, bool) { return "", false }}
	for name, content := range files {
		path := host.Path(name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	client, sub := tsmtest.Fake(d)
	return newAttester(host, client), sub
}

// quotes is a driver that answers with one quote.
func quotes(quote []byte) *tsmtest.Driver {
	return &tsmtest.Driver{Provider: "tdx_guest\n", Out: func([]byte) ([]byte, error) { return quote, nil }}
}

// The wire form: two members, base64 of exactly what the platform gave, and
// null for no event log. The quotes are real ones of both versions.
func TestEvidenceIsTheQuoteUnchanged(t *testing.T) {
	for name, quote := range map[string][]byte{"v4": testdata.RawQuote, "v5": testdata.RawQuoteV5} {
		t.Run(name, func(t *testing.T) {
			a, _ := guest(t, quotes(quote), nil)
			out, err := a.Evidence(t.Context(), []byte("data"))
			if err != nil {
				t.Fatal(err)
			}
			want := `{"quote":"` + base64.StdEncoding.EncodeToString(quote) + `","cc_eventlog":null}`
			if d := cmp.Diff(want, string(out)); d != "" {
				t.Error(d)
			}
			var e Evidence
			if err := json.Unmarshal(out, &e); err != nil {
				t.Fatal(err)
			}
			if _, err := abi.QuoteToProto(e.Quote); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestReportData(t *testing.T) {
	for name, tt := range map[string]struct {
		n  int
		ok bool
	}{"none": {0, true}, "SHA-384": {48, true}, "64 bytes": {64, true}, "65 bytes": {65, false}, "1 MiB": {1 << 20, false}} {
		t.Run(name, func(t *testing.T) {
			var asked []byte
			a, _ := guest(t, &tsmtest.Driver{Provider: "tdx_guest\n", Out: func(in []byte) ([]byte, error) {
				asked = bytes.Clone(in)
				return []byte("quote"), nil
			}}, nil)
			data := bytes.Repeat([]byte{0xab}, tt.n)
			_, err := a.Evidence(t.Context(), data)
			if !tt.ok {
				if !errors.Is(err, tsm.ErrReportData) || podvm.Cause(err) == "" || asked != nil {
					t.Errorf("got %v, asked %x", err, asked)
				}
				return
			}
			if err != nil || !bytes.Equal(asked, append(data, make([]byte, 64-tt.n)...)) {
				t.Errorf("%v, asked for %x", err, asked)
			}
		})
	}
}

func TestEvidenceFails(t *testing.T) {
	for name, tt := range map[string]struct {
		driver *tsmtest.Driver
		files  map[string]string
		want   error
	}{
		"empty quote":         {driver: quotes(nil), want: tsm.ErrEmpty},
		"another TEE answers": {driver: &tsmtest.Driver{Provider: "sev_guest\n"}, want: tsm.ErrProvider},
		"a CCEL of zeros":     {driver: quotes([]byte("q")), files: map[string]string{eventlog.CCELPath: "\x00\x00"}, want: eventlog.ErrCCEL},
	} {
		t.Run(name, func(t *testing.T) {
			a, sub := guest(t, tt.driver, tt.files)
			out, err := a.Evidence(t.Context(), nil)
			if !errors.Is(err, tt.want) || out != nil || len(sub.Entries) != 0 {
				t.Errorf("%s, %v, %d entries", out, err, len(sub.Entries))
			}
			if podvm.Cause(err) == "" {
				t.Error("nothing to tell the caller")
			}
		})
	}
}

func TestEvidenceWithoutConfigfs(t *testing.T) {
	if _, err := New(podvm.Host{Root: t.TempDir()}).Evidence(t.Context(), nil); !errors.Is(err, tsm.ErrUnavailable) || !strings.Contains(podvm.Cause(err), "configfs") {
		t.Errorf("got %v", err)
	}
}

// A thousand calls, some at once, leave no entry and no file descriptor.
func TestEvidenceLeavesNothingBehind(t *testing.T) {
	a, sub := guest(t, quotes(testdata.RawQuote), map[string]string{eventlog.Path: ""})
	before := openFiles(t)
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			for range 100 {
				if _, err := a.Evidence(t.Context(), nil); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if after := openFiles(t); after > before || len(sub.Entries) != 0 {
		t.Errorf("%d files open, before %d; %d entries", after, before, len(sub.Entries))
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}

// A slow platform does not hold a caller longer than it wants to wait, and the
// event log waits for the quote.
func TestWaitingEndsWithTheContext(t *testing.T) {
	in, out := make(chan bool), make(chan bool)
	a, _ := guest(t, &tsmtest.Driver{Provider: "tdx_guest\n", Out: func([]byte) ([]byte, error) {
		in <- true
		<-out
		return []byte("quote"), nil
	}}, map[string]string{rtmrPath(4): ""})
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := a.Evidence(t.Context(), nil); err != nil {
			t.Error(err)
		}
	})
	<-in
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.Evidence(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("evidence: %v", err)
	}
	if err := a.Registers().Lock(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("lock: %v", err)
	}
	close(out)
	wg.Wait()
}

func TestBindInitData(t *testing.T) {
	fill := func(n int) []byte { return bytes.Repeat([]byte{0x5a}, n) }
	padded := func(n int) string { return string(append(fill(n), make([]byte, 48-n)...)) }
	for name, tt := range map[string]struct {
		launched string
		digest   []byte
		want     error
	}{
		"SHA-384":              {padded(48), fill(48), nil},
		"SHA-256 is padded":    {padded(32), fill(32), nil},
		"SHA-512 is cut":       {padded(48), fill(64), nil},
		"one byte differs":     {padded(48), append(fill(47), 0), ErrInitData},
		"nothing at launch":    {padded(0), fill(48), ErrInitData},
		"padded, not repeated": {padded(48), fill(32), ErrInitData},
		"file too short":       {"abc", fill(48), ErrSize},
		"file too long":        {padded(48) + "x", fill(48), podvm.ErrTooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			a, _ := guest(t, quotes(nil), map[string]string{measurements + "/mrconfigid": tt.launched})
			err := a.BindInitData(t.Context(), tt.digest)
			if !errors.Is(err, tt.want) {
				t.Errorf("got %v", err)
			}
			if none := tt.launched == padded(0); errors.Is(err, ErrNoInitData) != none {
				t.Errorf("launched without: %v, got %v", none, err)
			}
			if errors.Is(tt.want, ErrInitData) && !strings.Contains(podvm.Cause(err), "MRCONFIGID") {
				t.Errorf("the cause is %q", podvm.Cause(err))
			}
		})
	}
}

func BenchmarkEvidence(b *testing.B) {
	a, _ := guest(b, quotes(testdata.RawQuote), map[string]string{eventlog.Path: strings.Repeat("x", 4096)})
	b.ReportAllocs()
	for b.Loop() {
		if _, err := a.Evidence(b.Context(), make([]byte, 48)); err != nil {
			b.Fatal(err)
		}
	}
}
