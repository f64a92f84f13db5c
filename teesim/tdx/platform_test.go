package tdx

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// open returns a platform in memory whose clock stands still.
func open(t testing.TB, o Options) *Platform {
	t.Helper()
	if o.Now == nil {
		o.Now = func() time.Time { return start }
	}
	p, err := Open("", o)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func read(t *testing.T, path ...string) []byte {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		t.Fatal(err)
	}
	return content
}

func TestSecondOpenIsTheSamePlatform(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "intel")
	var mu sync.Mutex
	var all []*Platform
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			p, err := Open(dir, Options{})
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			all = append(all, p)
		})
	}
	group.Wait()
	if t.Failed() {
		return
	}
	td := all[0].NewTD(Launch{})
	report := td.Report([64]byte{1})
	for _, p := range all {
		if !p.Root().Equal(all[0].Root()) || !bytes.Equal(p.Certificates().Chain(), all[0].Certificates().Chain()) {
			t.Error("another identity")
		}
		if _, err := p.QuoteOfReport(report[:]); err != nil {
			t.Errorf("the CPU is another one: %v", err)
		}
	}
	block, _ := pem.Decode(read(t, dir, "trust", "tdx-root.pem"))
	if root, err := x509.ParseCertificate(block.Bytes); err != nil || !root.Equal(all[0].Root()) {
		t.Errorf("published root: %v", err)
	}
	if !json.Valid(read(t, dir, "trust", "tdx-collateral.json")) {
		t.Error("published collateral is no JSON")
	}
	for name, want := range map[string]fs.FileMode{"keys": 0o700, "keys/tdx.pem": 0o600, "trust": 0o755, "trust/tdx-root.pem": 0o644, "trust/tdx-collateral.json": 0o644} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
	for _, secret := range []string{"trust/tdx-root.pem", "trust/tdx-collateral.json"} {
		if bytes.Contains(read(t, dir, secret), []byte("PRIVATE")) {
			t.Errorf("%s has a key", secret)
		}
	}
}

func TestCollateralIsSignedAnewBeforeItExpires(t *testing.T) {
	dir, now := t.TempDir(), start
	p, err := Open(dir, Options{Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	next := func(text []byte) time.Time {
		t.Helper()
		var f struct {
			Collaterals struct {
				TCBInfos []struct {
					TDX struct {
						Info struct{ NextUpdate time.Time } `json:"tcbInfo"`
					} `json:"tdx_tcbinfo"`
				} `json:"tcbinfos"`
			} `json:"collaterals"`
		}
		if err := json.Unmarshal(text, &f); err != nil || len(f.Collaterals.TCBInfos) != 1 {
			t.Fatal(err)
		}
		return f.Collaterals.TCBInfos[0].TDX.Info.NextUpdate
	}
	file := func() []byte { return read(t, dir, "trust", "tdx-collateral.json") }
	first, err := p.CollateralJSON()
	if err != nil || !bytes.Equal(first, file()) || !next(first).Equal(start.Add(collateralLife)) {
		t.Fatalf("%v", err)
	}
	now = start.Add(collateralLife - collateralSpare - time.Second)
	if again, err := p.CollateralJSON(); err != nil || !bytes.Equal(again, first) {
		t.Errorf("signed anew too early: %v", err)
	}
	now = now.Add(time.Second)
	if again, err := p.CollateralJSON(); err != nil || !next(again).Equal(now.Add(collateralLife)) || !bytes.Equal(again, file()) {
		t.Errorf("not signed anew: %v", err)
	}
	now = now.Add(collateralLife)
	if _, err := p.Quote(p.NewTD(Launch{}), [64]byte{}); err != nil || !next(file()).Equal(now.Add(collateralLife)) {
		t.Errorf("not signed anew by a quote: %v", err)
	}
	now = now.Add(2 * collateralLife) // nobody was there in between
	if _, err := Open(dir, Options{Now: func() time.Time { return now }}); err != nil || !next(file()).Equal(now.Add(collateralLife)) {
		t.Errorf("not signed anew by Open: %v", err)
	}
}

func TestOpenRefuses(t *testing.T) {
	if _, err := Open("", Options{QuoteVersion: 3}); err == nil {
		t.Error("quotes of version 3")
	}
	good, err := generateKeys(start, false)
	if err != nil {
		t.Fatal(err)
	}
	other, err := generateKeys(start, false)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(good, []byte("-----BEGIN CERTIFICATE"))
	otherAt := bytes.Index(other, []byte("-----BEGIN CERTIFICATE"))
	for name, c := range map[string]struct {
		file []byte
		now  time.Time
	}{
		"empty": {nil, start}, "cut": {good[:len(good)-100], start}, "more behind": {append(bytes.Clone(good), "x"...), start},
		"no keys": {good[at:], start}, "certificates of another": {append(bytes.Clone(good[:at]), other[otherAt:]...), start},
		"too late": {good, start.AddDate(6, 0, 0)}, "too early": {good, start.AddDate(-6, 0, 0)},
	} {
		dir := t.TempDir()
		if err := os.MkdirAll(filepath.Join(dir, "keys"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "keys", keysFile), c.file, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir, Options{Now: func() time.Time { return c.now }}); !errors.Is(err, errKeys) || !strings.Contains(err.Error(), keysFile) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := parseKeys(good, start.AddDate(4, 0, 0)); err != nil {
		t.Errorf("within the validity: %v", err)
	}
}

func FuzzKeys(f *testing.F) {
	good, err := generateKeys(start, false)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte("-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if _, err := parseKeys(text, start); err != nil && !errors.Is(err, errKeys) {
			t.Error(err)
		}
	})
}
