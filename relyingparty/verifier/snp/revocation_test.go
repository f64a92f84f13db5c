package snp

import (
	"context"
	"crypto/x509"
	"errors"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sealpod/sealpod/relyingparty/verifier"
	sim "github.com/sealpod/sealpod/teesim/snp"
)

const (
	vcekList = "/vcek/v1/Milan/crl"
	vlekList = "/vlek/v1/Milan/crl"
)

func crl(t *testing.T, signer sim.Key, until time.Time, revoked ...*x509.Certificate) []byte {
	t.Helper()
	der, err := signer.CRL(until, revoked...)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// evidenceOf returns a genuine report of the simulator and its key.
func evidenceOf(s *simulator) (report []byte, key Certificate) {
	m := s.model()
	k := s.endorse(m.ChipID, m.TCB)
	return s.report(m, k), vcek(k)
}

func TestRevocation(t *testing.T) {
	s := newSimulator(t, Milan)
	report, key := evidenceOf(s)
	ark, later, before := s.Makers().ARK, testTime.AddDate(0, 1, 0), testTime.AddDate(0, 0, -1)
	const accepted, noProof, refused = 0, 1, 2 // noProof is an error that does not blame the guest
	for name, c := range map[string]struct {
		der                 []byte
		fromSource, fromOwn int // what comes of a list of a source, and of one that was sent along
	}{
		"nothing revoked":      {crl(t, ark, later), accepted, accepted},
		"another key revoked":  {crl(t, ark, later, s.root.ASVK), accepted, accepted},
		"ASK revoked":          {crl(t, ark, later, s.root.ASVK, s.root.ASK), refused, refused},
		"ARK revoked":          {crl(t, ark, later, s.root.ARK), refused, refused},
		"ASK revoked long ago": {crl(t, ark, before, s.root.ASK), refused, refused},
		"list too old":         {crl(t, ark, before), noProof, accepted},
		"list of another root": {crl(t, newSimulator(t, Milan).Makers().ARK, later), noProof, refused},
		"no list at all":       {[]byte("x"), noProof, refused},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, filepath.Join(dir, "crl", "Milan.der"), c.der)
			kds, _ := fakeKDS(t, map[string][]byte{vcekList: c.der})
			for from, got := range map[string]struct {
				sources []Source
				chain   []Certificate
				want    int
			}{
				"store":  {[]Source{OfflineStore(dir)}, []Certificate{key}, c.fromSource},
				"server": {[]Source{kds}, []Certificate{key}, c.fromSource},
				"guest":  {nil, []Certificate{key, {"CRL", c.der}}, c.fromOwn},
			} {
				_, err := s.verifier(Config{Sources: got.sources}).VerifyReport(t.Context(), report, got.chain)
				if (err == nil) != (got.want == accepted) || errors.Is(err, verifier.ErrEvidence) != (got.want == refused) {
					t.Errorf("%s: %v", from, err)
				}
				if strings.HasSuffix(name, "revoked") && got.want == refused && !strings.Contains(err.Error(), "is revoked since") {
					t.Errorf("%s: the reason is missing: %v", from, err)
				}
			}
		})
	}
}

func TestVLEKsHaveAListOfTheirOwn(t *testing.T) {
	s := newSimulator(t, Milan)
	m := s.model()
	m.Signer, m.ChipID = sim.ByVLEK, nil
	k := s.endorse(nil, m.TCB)
	report, chain := s.report(m, k), []Certificate{{"VLEK", k.Certificate.Raw}}
	later := testTime.AddDate(0, 1, 0)
	good, bad := crl(t, s.Makers().ARK, later), crl(t, s.Makers().ARK, later, s.root.ASVK)
	dir := t.TempDir()
	write(t, filepath.Join(dir, "crl", "Milan.der"), good)
	write(t, filepath.Join(dir, "crl", "Milan_vlek.der"), bad)
	kds, _ := fakeKDS(t, map[string][]byte{vcekList: good, vlekList: bad})
	for name, source := range map[string]Source{"store": OfflineStore(dir), "server": kds} {
		_, err := s.verifier(Config{Sources: []Source{source}}).VerifyReport(t.Context(), report, chain)
		if !errors.Is(err, verifier.ErrEvidence) || !strings.Contains(err.Error(), `"SEV-VLEK-Milan" is revoked`) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// keysOnly is a source without lists.
type keysOnly struct{}

func (keysOnly) VCEK(context.Context, Chip) ([]byte, error) { return nil, ErrNoKey }

func TestWhoIsAskedForLists(t *testing.T) {
	s := newSimulator(t, Milan)
	report, key := evidenceOf(s)
	empty := OfflineStore(t.TempDir())
	for name, c := range map[string]struct {
		answer      map[string][]byte
		before      []Source
		good, asked bool
	}{
		"AMD says that it has none":           {nil, nil, false, true}, // it has one for every product: somebody holds it back
		"an offline store without a list":     {nil, []Source{empty}, true, false},
		"an offline store while AMD is down":  {map[string][]byte{vcekList: nil}, []Source{empty}, true, false},
		"AMD is down":                         {map[string][]byte{vcekList: nil}, nil, false, true},
		"AMD after a source that has no list": {map[string][]byte{vcekList: nil}, []Source{keysOnly{}}, false, true},
	} {
		kds, asked := fakeKDS(t, c.answer)
		_, err := s.verifier(Config{Sources: append(c.before, kds)}).VerifyReport(t.Context(), report, []Certificate{key})
		if (err == nil) != c.good || errors.Is(err, verifier.ErrEvidence) || (asked.Load() > 0) != c.asked {
			t.Errorf("%s: asked %d times, %v", name, asked.Load(), err)
		}
	}
}

func TestForgedEvidenceMakesNobodyAskForLists(t *testing.T) {
	s := newSimulator(t, Milan)
	report, key := evidenceOf(s)
	forged := slices.Clone(report)
	forged[0x90] ^= 1
	kds, asked := fakeKDS(t, map[string][]byte{vcekList: crl(t, s.Makers().ARK, testTime.AddDate(0, 1, 0))})
	v := s.verifier(Config{Sources: []Source{kds}})
	if _, err := v.VerifyReport(t.Context(), forged, []Certificate{key}); !errors.Is(err, verifier.ErrEvidence) || asked.Load() != 0 {
		t.Errorf("asked %d times, %v", asked.Load(), err)
	}
}

func TestListServesOnWhileTheKeyServerIsDown(t *testing.T) {
	s := newSimulator(t, Milan)
	report, key := evidenceOf(s)
	due := testTime.Add(72 * time.Hour)
	list := crl(t, s.Makers().ARK, due)
	var down atomic.Bool
	var asked atomic.Int32
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		if down.Load() {
			http.Error(w, "down", http.StatusBadGateway)
			return
		}
		_, _ = w.Write(list)
	}))
	defer server.Close()
	now := testTime
	tick := func() time.Time { return now }
	kds, err := NewKDS(server.URL, server.Client(), tick)
	if err != nil {
		t.Fatal(err)
	}
	v, err := New(Config{Roots: map[string]Root{Milan: s.root}, Sources: []Source{kds}, Now: tick})
	if err != nil {
		t.Fatal(err)
	}
	for i, step := range []struct {
		at    time.Duration
		down  bool
		good  bool
		asked int32 // since the start
	}{
		{0, false, true, 1},
		{59 * time.Minute, true, true, 1},  // fresh
		{61 * time.Minute, true, true, 2},  // not fresh, but all there is
		{61 * time.Minute, true, true, 2},  // not asked again at once
		{63 * time.Minute, true, true, 3},  // but a minute later
		{73 * time.Hour, true, false, 4},   // a newer one was due
		{74 * time.Hour, false, false, 5},  // it is still the old one
		{74 * time.Hour, false, false, 5},  // and is fresh
		{100 * time.Hour, true, false, 6},  // down again
		{100 * time.Hour, false, false, 6}, // within the minute
	} {
		now = testTime.Add(step.at)
		down.Store(step.down)
		_, err := v.VerifyReport(t.Context(), report, []Certificate{key})
		if (err == nil) != step.good || asked.Load() != step.asked {
			t.Errorf("step %d: asked %d times, %v", i, asked.Load(), err)
		}
	}
}

func TestGuestsWaitForOneFetchOfAList(t *testing.T) {
	s := newSimulator(t, Milan)
	report, key := evidenceOf(s)
	kds, asked := fakeKDS(t, map[string][]byte{vcekList: crl(t, s.Makers().ARK, testTime.AddDate(0, 1, 0))})
	v := s.verifier(Config{Sources: []Source{kds}})
	var group sync.WaitGroup
	for range 16 {
		group.Go(func() {
			if _, err := v.VerifyReport(t.Context(), report, []Certificate{key}); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if asked.Load() != 1 {
		t.Errorf("asked %d times", asked.Load())
	}
}

func TestGuestThatLeavesSpoilsNoList(t *testing.T) {
	kds, asked := fakeKDS(t, map[string][]byte{vcekList: crl(t, newSimulator(t, Milan).Makers().ARK, testTime.AddDate(0, 1, 0))})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := kds.CRL(ctx, Issuer{Product: Milan}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if der, err := kds.CRL(t.Context(), Issuer{Product: Milan}); err != nil || der == nil || asked.Load() != 1 {
		t.Errorf("asked %d times, %v", asked.Load(), err)
	}
}

func FuzzRevocationList(f *testing.F) {
	chip, err := sim.Open("", sim.Options{Now: clock})
	if err != nil {
		f.Fatal(err)
	}
	ark, ask, _ := chip.Roots()
	good, err := chip.Makers().ARK.CRL(testTime.AddDate(0, 1, 0), ask)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:len(good)/2])
	f.Add([]byte{0x30, 0x80})
	f.Fuzz(func(t *testing.T, der []byte) {
		// Whatever the root did not sign is neither a list nor a revocation.
		if _, err := search(der, ark, ask); err == nil || errors.Is(err, verifier.ErrEvidence) && !slices.Equal(der, good) {
			t.Errorf("%x: %v", der, err)
		}
	})
}
