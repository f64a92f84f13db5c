package snp

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/sealpod/sealpod/relyingparty/verifier"
)

// fakeKDS serves a body for each request URI and counts.
func fakeKDS(t *testing.T, answers map[string][]byte) (*KDS, *atomic.Int32) {
	t.Helper()
	asked := new(atomic.Int32)
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		body, ok := answers[r.URL.RequestURI()]
		if !ok {
			http.NotFound(w, r)
			return
		}
		if body == nil {
			http.Error(w, "slow down", http.StatusTooManyRequests)
			return
		}
		if _, err := w.Write(body); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(server.Close)
	k, err := NewKDS(server.URL+"/", server.Client(), clock)
	if err != nil {
		t.Fatal(err)
	}
	return k, asked
}

func TestKeyFromTheKeyServer(t *testing.T) {
	for product, query := range map[string]string{
		Genoa: "blSPL=04&teeSPL=01&snpSPL=22&ucodeSPL=213",
		Turin: "fmcSPL=01&blSPL=04&teeSPL=01&snpSPL=22&ucodeSPL=213",
	} {
		s := newSimulator(t, product)
		m := s.model()
		key := s.endorse(m.ChipID, m.TCB)
		uri := "/vcek/v1/" + product + "/" + hexOf(m.ChipID) + "?" + query
		kds, asked := fakeKDS(t, map[string][]byte{
			uri: key.Certificate.Raw, "/vcek/v1/" + product + "/crl": crl(t, s.Makers().ARK, testTime.AddDate(0, 1, 0)),
		})
		v := s.verifier(Config{Sources: []Source{kds}})
		for range 3 {
			if _, err := v.Verify(t.Context(), toJSON(t, s.report(m, key)), verifier.Expected{ReportData: digest}); err != nil {
				t.Errorf("%s: %v", product, err)
			}
		}
		if asked.Load() != 2 { // for the key, and for a list
			t.Errorf("%s: asked %d times", product, asked.Load())
		}
		parked := 0
		ctx := verifier.WithPark(t.Context(), func(call func()) { parked++; call() })
		if _, err := v.Verify(ctx, toJSON(t, s.report(m, key)), verifier.Expected{ReportData: digest}); err != nil || parked != 2 {
			t.Errorf("%s: others could go first %d times, %v", product, parked, err)
		}
	}
}

func TestKeyOfReportThatDoesNotNameItsProduct(t *testing.T) {
	s := newSimulator(t, Genoa)
	m := s.model()
	m.Version = 2
	key := s.endorse(m.ChipID, m.TCB)
	kds, _ := fakeKDS(t, map[string][]byte{
		"/vcek/v1/Genoa/" + hexOf(m.ChipID) + "?blSPL=04&teeSPL=01&snpSPL=22&ucodeSPL=213": key.Certificate.Raw,
		"/vcek/v1/Genoa/crl": crl(t, s.Makers().ARK, testTime.AddDate(0, 1, 0)),
	})
	v := s.verifier(Config{Sources: []Source{kds}})
	if _, err := v.Verify(t.Context(), toJSON(t, s.report(m, key)), verifier.Expected{ReportData: digest}); err != nil {
		t.Error(err)
	}
}

func TestKeyServerThatFails(t *testing.T) {
	chip := Chip{Milan, otherChip, TCB{}}
	uri := "/vcek/v1/Milan/" + hexOf(otherChip) + "?blSPL=00&teeSPL=00&snpSPL=00&ucodeSPL=00"
	none, _ := fakeKDS(t, nil)
	if _, err := none.VCEK(t.Context(), chip); !errors.Is(err, ErrNoKey) {
		t.Errorf("unknown chip: %v", err)
	}
	busy, _ := fakeKDS(t, map[string][]byte{uri: nil})
	if _, err := busy.VCEK(t.Context(), chip); err == nil || errors.Is(err, ErrNoKey) || !strings.Contains(err.Error(), "429") {
		t.Errorf("throttled: %v", err)
	}
	junk, asked := fakeKDS(t, map[string][]byte{uri: []byte("<html>")})
	for range 2 {
		if _, err := junk.VCEK(t.Context(), chip); err == nil {
			t.Error("page of a proxy")
		}
	}
	if asked.Load() != 2 {
		t.Error("page of a proxy was kept")
	}
	large, _ := fakeKDS(t, map[string][]byte{uri: make([]byte, maxCertificate+1)})
	if _, err := large.VCEK(t.Context(), chip); err == nil {
		t.Error("answer without end")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := large.VCEK(ctx, chip); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestKeyServerThatLies(t *testing.T) {
	s, evil := newSimulator(t, Genoa), newSimulator(t, Genoa)
	m := s.model()
	uri := "/vcek/v1/Genoa/" + hexOf(m.ChipID) + "?blSPL=04&teeSPL=01&snpSPL=22&ucodeSPL=213"
	fake := evil.endorse(m.ChipID, m.TCB)
	kds, _ := fakeKDS(t, map[string][]byte{uri: fake.Certificate.Raw})
	_, err := s.verifier(Config{Sources: []Source{kds}}).Verify(t.Context(), toJSON(t, evil.report(m, fake)), verifier.Expected{ReportData: digest})
	if !errors.Is(err, verifier.ErrEvidence) {
		t.Error(err)
	}
}

func TestOfflineStore(t *testing.T) {
	for product, file := range map[string]string{
		Genoa: "bl04_tee01_snp22_ucode213_vcek.der", Turin: "bl04_tee01_snp22_ucode213_fmc01_vcek.der", Milan: "vcek.der",
	} {
		s := newSimulator(t, product)
		m := s.model()
		key := s.endorse(m.ChipID, m.TCB)
		dir := t.TempDir()
		empty, store := OfflineStore(t.TempDir()), OfflineStore(dir)
		raw := toJSON(t, s.report(m, key))
		for _, sources := range [][]Source{nil, {empty}} {
			_, err := s.verifier(Config{Sources: sources}).Verify(t.Context(), raw, verifier.Expected{ReportData: digest})
			if !errors.Is(err, ErrNoKey) || errors.Is(err, verifier.ErrEvidence) {
				t.Errorf("%s, nothing stored: %v", product, err)
			}
		}
		write(t, filepath.Join(dir, "vcek", hexOf(m.ChipID), file), key.Certificate.Raw)
		if _, err := s.verifier(Config{Sources: []Source{empty, store}}).Verify(t.Context(), raw, verifier.Expected{ReportData: digest}); err != nil {
			t.Errorf("%s: %v", product, err)
		}
	}
}

// TestStoreThatMissedAnUpdate: after a firmware update the fallback of a store is
// of the old firmware, and the next source has the key.
func TestStoreThatMissedAnUpdate(t *testing.T) {
	s := newSimulator(t, Milan)
	m := s.model()
	key, before := s.endorse(m.ChipID, m.TCB), m.TCB
	before.SNP--
	old, current := t.TempDir(), t.TempDir()
	write(t, filepath.Join(old, "vcek", hexOf(m.ChipID), "vcek.der"), s.endorse(m.ChipID, before).Certificate.Raw)
	write(t, filepath.Join(current, "vcek", hexOf(m.ChipID), "vcek.der"), key.Certificate.Raw)
	raw := toJSON(t, s.report(m, key))
	verify := func(sources ...Source) error {
		_, err := s.verifier(Config{Sources: sources}).Verify(t.Context(), raw, verifier.Expected{ReportData: digest})
		return err
	}
	if err := verify(OfflineStore(old), OfflineStore(current)); err != nil {
		t.Error(err)
	}
	if err := verify(OfflineStore(old)); !errors.Is(err, ErrNoKey) || !strings.Contains(err.Error(), "other firmware") {
		t.Error(err)
	}
}

func TestHiddenChip(t *testing.T) {
	s := newSimulator(t, Milan)
	m := s.model()
	key := s.endorse(m.ChipID, m.TCB)
	m.ChipID = nil
	report := s.report(m, key)
	if _, err := s.verifier(Config{}).VerifyReport(t.Context(), report, nil); !errors.Is(err, verifier.ErrEvidence) {
		t.Errorf("nothing to ask for: %v", err)
	}
	if _, err := s.verifier(Config{}).VerifyReport(t.Context(), report, []Certificate{vcek(key)}); err != nil {
		t.Errorf("key sent along: %v", err)
	}
}

func hexOf(b []byte) string {
	const digits = "0123456789abcdef"
	var out []byte
	for _, c := range slices.Clone(b) {
		out = append(out, digits[c>>4], digits[c&15])
	}
	return string(out)
}

func write(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}
