package azure

import (
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sealpod/sealpod/cdh/kms/internal/wire"
)

func TestOneTokenServesAll(t *testing.T) {
	a := newCloud(t)
	open := New(a.Env)
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			for _, settings := range []string{miSets, csSets} {
				p, err := open(object(t, settings))
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := p.Secret(t.Context(), "db", nil); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if v, l := a.counts(); v != 64 || l != 2 {
		t.Errorf("%d requests, %d logins", v, l)
	}
}

func TestLoginsDoNotShareTokens(t *testing.T) {
	a := newCloud(t)
	open := New(a.Env)
	hsm := strings.Replace(miSets, vaultURL, hsmURL, 1)
	for i, settings := range []string{miSets, strings.TrimSuffix(miSets, "}") + `,"client_id":"id-2"}`, csSets, hsm} {
		for range 2 {
			p, err := open(object(t, settings))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := p.Secret(t.Context(), "db", nil); err != nil {
				t.Error(err)
			}
		}
		if _, l := a.counts(); l != i+1 {
			t.Errorf("%d logins after %s", l, settings)
		}
	}
}

func TestRefusedTokenIsReplacedOnce(t *testing.T) {
	a := newCloud(t)
	var skew atomic.Int64
	a.Now = func() time.Time { return time.Now().Add(time.Duration(skew.Load())) }
	open := New(a.Env)
	p, err := open(object(t, csSets))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Secret(t.Context(), "db", nil); err != nil {
		t.Fatal(err)
	}
	skew.Store(int64(freshToken))
	a.revoke()
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			if _, err := p.Secret(t.Context(), "db", nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if _, l := a.counts(); l != 2 {
		t.Errorf("%d logins", l)
	}
	skew.Store(int64(2 * freshToken))
	before, _ := a.counts()
	a.atVault = func(w http.ResponseWriter, _ int) bool {
		deny(w, 401, "Unauthorized", "AKV10032: Invalid issuer")
		return true
	}
	got, err := p.Secret(t.Context(), "db", nil)
	fails(t, got, err, wire.ErrService, "Unauthorized: AKV10032")
	if v, l := a.counts(); v != before+2 || l != 3 {
		t.Errorf("%d requests, %d logins", v-before, l)
	}
	for range 9 { // who keeps asking does not make it log in each time
		got, err := p.Secret(t.Context(), "db", nil)
		fails(t, got, err, wire.ErrService, "Unauthorized")
	}
	if _, l := a.counts(); l != 3 {
		t.Errorf("%d logins", l)
	}
}

func TestVaultThatBreaksAfterItRefusedAToken(t *testing.T) {
	a := newCloud(t)
	var skew atomic.Int64
	a.Now = func() time.Time { return time.Now().Add(time.Duration(skew.Add(int64(freshToken)))) }
	a.atVault = func(w http.ResponseWriter, n int) bool {
		if n == 1 {
			deny(w, 401, "Unauthorized", "expired")
			return true
		}
		c, _, _ := w.(http.Hijacker).Hijack()
		_ = c.Close()
		return true
	}
	got, err := a.open(t, miSets).Secret(t.Context(), "db", nil)
	fails(t, got, err, wire.ErrUnreachable, "broke")
	if v, l := a.counts(); v < 4 || l != 2 { // net/http tries once more by itself
		t.Errorf("%d requests, %d logins", v, l)
	}
}

func TestChangedCredentialCounts(t *testing.T) {
	a := newCloud(t)
	p := a.open(t, csSets)
	if _, err := p.Secret(t.Context(), "db", nil); err != nil {
		t.Fatal(err)
	}
	a.Write(t, CredentialFile, []byte(strings.Replace(credFile, password, "withdrawn", 1)))
	got, err := p.Secret(t.Context(), "db", nil)
	fails(t, got, err, wire.ErrService, "invalid_client")
}

func TestTokenIsRenewedShortlyBeforeItsEnd(t *testing.T) {
	for name, tt := range map[string]struct {
		life       any
		kept, gone time.Duration
	}{
		"an hour":        {3600, 54 * time.Minute, 56 * time.Minute},
		"a day, as text": {"86400", 23 * time.Hour, 24*time.Hour - 4*time.Minute},
		"a month":        {2592000, 23 * time.Hour, 25 * time.Hour},
		"ten seconds":    {10, 7 * time.Second, 9 * time.Second},
	} {
		a := newCloud(t)
		a.life = tt.life
		start := time.Now()
		now := start
		a.Now = func() time.Time { return now }
		p := a.open(t, miSets)
		for _, step := range []struct {
			at     time.Duration
			logins int
		}{{0, 1}, {tt.kept, 1}, {tt.gone, 2}} {
			now = start.Add(step.at)
			if _, err := p.Secret(t.Context(), "db", nil); err != nil {
				t.Fatal(err)
			}
			if _, l := a.counts(); l != step.logins {
				t.Errorf("%s: %d logins after %s", name, l, step.at)
			}
		}
	}
}
