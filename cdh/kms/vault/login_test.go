package vault

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sealpod/sealpod/cdh/kms/internal/wire"
	"github.com/sealpod/sealpod/podvm"
)

// get reads a secret of p and tells whether it was there.
func get(t *testing.T, p wire.Provider, name string) error {
	t.Helper()
	got, err := p.Secret(t.Context(), name, nil)
	if err == nil && string(got) != "x" {
		t.Errorf("%q", []byte(got))
	}
	return err
}

func roleWorld(t *testing.T) *world {
	w := newWorld(t, withRole)
	w.secrets["/secret/a"] = []string{`{"value":"x"}`}
	w.secrets["/secret/forbidden"] = w.secrets["/secret/a"]
	return w
}

func (w *world) want(t *testing.T, logins, requests int) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.logins != logins || w.requests != requests {
		t.Errorf("%d logins and %d requests, want %d and %d", w.logins, w.requests, logins, requests)
	}
}

func TestLoginLastsForItsLease(t *testing.T) {
	w := roleWorld(t)
	open := New(w.Env)
	for range 3 { // also across providers
		p, err := open(nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := get(t, p, "a"); err != nil {
			t.Fatal(err)
		}
	}
	w.want(t, 1, 4)
	w.pass(53 * time.Minute)
	p, err := open(nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := get(t, p, "a"); err != nil {
		t.Fatal(err)
	}
	w.want(t, 1, 5)
	w.pass(2 * time.Minute)
	if err := get(t, p, "a"); err != nil {
		t.Fatal(err)
	}
	w.want(t, 2, 7)
}

func TestRevokedTokenIsReplacedOnce(t *testing.T) {
	w := roleWorld(t)
	w.lease = 0 // for ever
	p := w.open(t, `{}`)
	if err := get(t, p, "a"); err != nil {
		t.Fatal(err)
	}
	w.pass(1000 * time.Hour)
	delete(w.tokens, "hvs.login-1")
	if err := get(t, p, "a"); err != nil {
		t.Fatal(err)
	}
	w.want(t, 2, 5)
}

func TestDeniedPathCostsOneLoginAndNoMoreForAWhile(t *testing.T) {
	w := roleWorld(t)
	p := w.open(t, `{}`)
	if err := get(t, p, "a"); err != nil {
		t.Fatal(err)
	}
	w.pass(time.Minute)
	for range 20 { // a container that keeps asking
		if err := get(t, p, "forbidden"); !errors.Is(err, wire.ErrService) || !strings.Contains(podvm.Cause(err), "permission denied") {
			t.Fatal(err)
		}
	}
	w.want(t, 2, 2+2+20)
}

func TestRefusedLogin(t *testing.T) {
	w := roleWorld(t)
	w.place(t, `{"address":"ADDRESS","role_id":"role-1","secret_id":"hunter2"}`)
	err := get(t, w.open(t, `{}`), "a")
	if !errors.Is(err, wire.ErrService) || podvm.Cause(err) != "HashiCorp Vault refused (HTTP status 400): invalid role or secret ID" || strings.Contains(err.Error(), "hunter2") {
		t.Error(err)
	}
	w.want(t, 0, 1)
	w.place(t, withRole) // the owner corrects it
	if err := get(t, w.open(t, `{}`), "a"); err != nil {
		t.Error(err)
	}
}

// TestSettingsDoNotChooseWhereALoginIs: an image nobody has verified names a
// namespace after the other. The role logs in where the owner said, and once.
func TestSettingsDoNotChooseWhereALoginIs(t *testing.T) {
	w := roleWorld(t)
	open := New(w.Env)
	for i := range 20 {
		namespace := fmt.Sprintf("evil-%d", i)
		w.secrets[namespace+"/secret/a"] = w.secrets["/secret/a"]
		p, err := open(asObject(t, map[string]any{"namespace": namespace}))
		if err != nil {
			t.Fatal(err)
		}
		if err := get(t, p, "a"); err != nil {
			t.Error(err)
		}
	}
	w.want(t, 1, 21)
}

func TestLoginElsewhereInTheServer(t *testing.T) {
	w := newWorld(t, `{"address":"ADDRESS","role_id":"role-1","secret_id":"secret-1","namespace":"admin","approle_mount":"team/approle","ca":""}`)
	w.secrets["admin/team/secret/a"] = []string{`{"value":"x"}`}
	if err := get(t, w.open(t, `{"namespace":"admin/team"}`), "a"); err != nil {
		t.Error(err)
	}
	w.place(t, withRole) // whose login is in no namespace, whatever the settings say
	if err := get(t, w.open(t, `{"namespace":"admin/team"}`), "a"); err != nil {
		t.Error(err)
	}
}

func TestMalformedLogins(t *testing.T) {
	for _, answer := range []string{
		`{}`, `{"auth":null}`, `{"auth":{}}`, `{"auth":{"client_token":"hunter2"}}`, `{"auth":{"client_token":"","lease_duration":1}}`,
		`{"auth":{"client_token":"hunter2\r\nX: y","lease_duration":1}}`, `{"auth":{"client_token":"hunter2","lease_duration":-1}}`,
		`{"auth":{"client_token":"hunter2","lease_duration":99999999999}}`, `{"auth":{"client_token":"hunter2","lease_duration":"1"}}`,
	} {
		w := roleWorld(t)
		w.answer = func(rw http.ResponseWriter, _ *http.Request, _ int) bool {
			_, _ = rw.Write([]byte(answer))
			return true
		}
		if err := get(t, w.open(t, `{}`), "a"); !errors.Is(err, wire.ErrService) || strings.Contains(err.Error(), "hunter2") || podvm.Cause(err) == "" || w.requests != 1 {
			t.Errorf("%s: %v after %d requests", answer, err, w.requests)
		}
	}
}

func TestConcurrentCallersShareOneLoginAndGiveUpAlone(t *testing.T) {
	w := roleWorld(t)
	asked, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	slow := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/login") {
			once.Do(func() { close(asked) })
			<-release
		}
		w.ServeHTTP(rw, r)
	}))
	t.Cleanup(slow.Close)
	w.place(t, strings.ReplaceAll(withRole, "ADDRESS", slow.URL))
	p := w.open(t, `{}`)
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := get(t, p, "a"); err != nil {
			t.Error(err)
		}
	})
	<-asked
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.Secret(ctx, "a", nil); !errors.Is(err, wire.ErrUnreachable) || !errors.Is(err, context.Canceled) || podvm.Cause(err) == "" {
		t.Errorf("the caller who gave up: %v", err)
	}
	for range 20 {
		wg.Go(func() {
			if err := get(t, p, "a"); err != nil {
				t.Error(err)
			}
		})
	}
	close(release)
	wg.Wait()
	w.want(t, 1, 22)
}

func TestCAOfTheCredential(t *testing.T) {
	w := roleWorld(t)
	s := httptest.NewUnstartedServer(w.fake)
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.StartTLS()
	t.Cleanup(s.Close)
	credential := map[string]string{"address": s.URL, "token": rootToken}
	place := func() {
		raw, err := json.Marshal(credential)
		if err != nil {
			t.Fatal(err)
		}
		w.place(t, string(raw))
	}
	place()
	if err := get(t, w.open(t, `{}`), "a"); podvm.Cause(err) != "HashiCorp Vault not reachable: its TLS certificate is not trusted" {
		t.Errorf("without: %v", err)
	}
	credential["ca"] = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
	place()
	if err := get(t, w.open(t, `{}`), "a"); err != nil {
		t.Errorf("with: %v", err)
	}
}
