package kms

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/sealpod/sealpod/cdh/kms/aws"
	"github.com/sealpod/sealpod/podvm"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func object(t testing.TB, text string) Object {
	t.Helper()
	o, err := ParseObject([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func TestProvidersByName(t *testing.T) {
	c := New(Config{Log: slog.New(slog.DiscardHandler)})
	t.Cleanup(c.Close)
	for name, settings := range map[string]string{
		"aliyun": `{"client_type":"ecs_ram_role"}`,
		"aws":    `{"region":"eu-west-1"}`,
		"azure":  `{"vault_url":"https://acme.vault.azure.net","client_type":"managed_identity"}`,
		"vault":  `{}`,
	} {
		for _, n := range []string{name, strings.ToUpper(name), strings.ToUpper(name[:1]) + name[1:]} {
			if p, err := c.Open(t.Context(), n, object(t, settings)); err != nil || p == nil {
				t.Errorf("%s: %v", n, err)
			}
		}
	}
	for name, printed := range map[string]string{"": `""`, "kbs": `"kbs"`, "ehsm": `"ehsm"`, "aws ": `"aws "`, "a\x1bb": `"a b"`} {
		p, err := c.Open(t.Context(), name, Object{})
		want := "unknown KMS provider " + printed + ": this build has aliyun, aws, azure, vault"
		if !errors.Is(err, ErrUnknownProvider) || p != nil || podvm.Cause(err) != want {
			t.Errorf("%q: %v", name, err)
		}
	}
	if p, err := c.Open(t.Context(), "aws", nil); !errors.Is(err, ErrSettings) || p != nil || !strings.Contains(podvm.Cause(err), `"region" is missing`) {
		t.Errorf("no settings: %v", err)
	}
}

func TestObjectsAreParsedStrictly(t *testing.T) {
	for _, bad := range []string{``, `null`, `[]`, `{"a":1,"a":1}`, `{} {}`, "{\"a\":\"\xff\"}"} {
		if _, err := ParseObject([]byte(bad)); !errors.Is(err, ErrSettings) || podvm.Cause(err) == "" {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

// TestGuestFromItsFilesToTheService goes the whole way: the machine's credential
// directory, the environment, the request, the answer.
func TestGuestFromItsFilesToTheService(t *testing.T) {
	var auth string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		auth = r.Header.Get("Authorization")
		_, _ = fmt.Fprint(w, `{"CiphertextBlob":"AAE=","SecretString":"hello"}`)
	}))
	t.Cleanup(s.Close)
	host := podvm.Host{Root: t.TempDir(), LookupEnv: func(name string) (string, bool) {
		if strings.HasPrefix(name, "AWS_ENDPOINT_URL_") {
			return s.URL, true
		}
		return "", false
	}}
	cfg := Config{Host: host, Log: slog.New(slog.DiscardHandler)}
	c := New(cfg)
	t.Cleanup(c.Close)
	p, err := c.Open(t.Context(), "AWS", object(t, `{"region":"eu-west-1"}`))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Secret(t.Context(), "db", nil); !errors.Is(err, ErrCredential) || auth != "" {
		t.Errorf("without a credential: %v", err)
	}
	credential := []byte(`{"access_key_id":"AKIDEXAMPLE","secret_access_key":"x"}`)
	dir := host.Path("/run/confidential-containers/cdh/kbs/kms-credential/aws")
	if err := errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(filepath.Join(dir, aws.CredentialFile), credential, 0o600)); err != nil {
		t.Fatal(err)
	}
	got, err := p.Secret(t.Context(), "db", nil)
	if err != nil || string(got) != "hello" || !strings.Contains(auth, "AKIDEXAMPLE") {
		t.Errorf("%q, %v, %s", []byte(got), err, auth)
	}
	env, done := OwnerEnv(cfg)
	defer done()
	if w, err := aws.Encrypt(t.Context(), env, aws.Owner{Region: "eu-west-1", Credential: credential}, "alias/x", podvm.Secret("key"), nil); err != nil || len(w.Ciphertext) != 2 {
		t.Errorf("%v, %v", w, err)
	}
}

// stuck waits for its context.
type stuck struct{}

func (stuck) Decrypt(ctx context.Context, _ string, _ []byte, _ Object) (podvm.Secret, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func (s stuck) Secret(ctx context.Context, _ string, _ Object) (podvm.Secret, error) {
	return s.Decrypt(ctx, "", nil, nil)
}

func TestCallsEndBeforeTheirCallersGiveUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := New(Config{})
		c.providers["stuck"] = func(Object) (Provider, error) { return stuck{}, nil }
		p, err := c.Open(t.Context(), "stuck", nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, call := range []func() (podvm.Secret, error){
			func() (podvm.Secret, error) { return p.Decrypt(t.Context(), "", nil, nil) },
			func() (podvm.Secret, error) { return p.Secret(t.Context(), "", nil) },
		} {
			start := time.Now()
			if _, err := call(); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) >= 50*time.Second {
				t.Errorf("%v after %s", err, time.Since(start))
			}
		}
	})
}
