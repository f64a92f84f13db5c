package azure

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/sealpod/sealpod/cdh/internal/strict"
	"github.com/sealpod/sealpod/cdh/kms/internal/kmstest"
	"github.com/sealpod/sealpod/cdh/kms/internal/wire"
	"github.com/sealpod/sealpod/podvm"
)

func object(t testing.TB, text string) wire.Object {
	t.Helper()
	o, err := strict.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func (a *azureCloud) open(t testing.TB, settings string) wire.Provider {
	t.Helper()
	p, err := New(a.Env)(object(t, settings))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// fails checks an error and what it says to whom.
func fails(t testing.TB, got podvm.Secret, err, is error, cause string) {
	t.Helper()
	if !errors.Is(err, is) || got != nil {
		t.Fatalf("got %q, %v; want %v", []byte(got), err, is)
	}
	if c := podvm.Cause(err); c == "" || !strings.Contains(c, cause) {
		t.Errorf("cause %q, want %q", c, cause)
	}
	if text := err.Error(); strings.Contains(text, "hush") || strings.Contains(text, "token-") || strings.Contains(text, "\x1b") {
		t.Errorf("it says too much: %v", err)
	}
}

func TestWhatTheOwnerEncryptsTheGuestDecrypts(t *testing.T) {
	dek := bytes.Repeat([]byte{7}, 32)
	for name, o := range map[string]Owner{
		"a vault":           {VaultURL: vaultURL},
		"another way":       {VaultURL: "https://ACME-1.Vault.Azure.NET/", ClientType: "client_secret"},
		"an identity":       {VaultURL: vaultURL, ClientID: "id-2"},
		"an HSM":            {VaultURL: hsmURL, Algorithm: "A256KW"},
		"an RSA key of one": {VaultURL: hsmURL},
	} {
		t.Run(name, func(t *testing.T) {
			a := newCloud(t)
			a.Files = nil // it is not for owners
			o.Credential = []byte(credFile)
			wrapped, err := Encrypt(t.Context(), a.Env, o, keyID, dek)
			if err != nil {
				t.Fatal(err)
			}
			a.Files = wire.CredentialDir(a.Host, "azure")
			settings, _ := json.Marshal(wrapped.Settings)
			annotations, _ := json.Marshal(wrapped.Annotations)
			got, err := a.open(t, string(settings)).Decrypt(t.Context(), keyID, wrapped.Ciphertext, object(t, string(annotations)))
			if err != nil || !bytes.Equal(got, dek) || bytes.Contains(wrapped.Ciphertext, dek) {
				t.Fatalf("%x, %v; %s", []byte(got), err, settings)
			}
			if o.ClientID != "" && !strings.Contains(string(settings), `"client_id":"id-2"`) {
				t.Error(string(settings))
			}
		})
	}
}

func TestOwnerWithATokenNeedsNoCredential(t *testing.T) {
	a := newCloud(t)
	a.tokens["mine.for.vault.azure.net"] = true
	o := Owner{VaultURL: vaultURL, Token: podvm.Secret("mine.for.vault.azure.net")}
	w, err := Encrypt(t.Context(), a.Env, o, vaultURL+"/keys/"+keyID, []byte("key"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := a.open(t, miSets).Decrypt(t.Context(), keyID, w.Ciphertext, nil); err != nil || string(got) != "key" {
		t.Errorf("%q, %v", []byte(got), err)
	}
	o.Token = nil
	if _, err := Encrypt(t.Context(), a.Env, o, keyID, []byte("key")); !errors.Is(err, wire.ErrCredential) {
		t.Error(err)
	}
	if _, err := Encrypt(t.Context(), a.Env, o, keyID, nil); !errors.Is(err, wire.ErrSettings) {
		t.Error(err)
	}
	o.VaultURL = "https://evil.example"
	if _, err := Encrypt(t.Context(), a.Env, o, keyID, []byte("key")); !errors.Is(err, wire.ErrSettings) {
		t.Error(err)
	}
}

func TestSecrets(t *testing.T) {
	a := newCloud(t)
	for _, settings := range []string{miSets, csSets} {
		p := a.open(t, settings)
		for name, want := range map[string]string{
			"db": "s3cret <current>", "db/v1": "s3cret old", vaultURL + "/secrets/db/v1": "s3cret old",
		} {
			if got, err := p.Secret(t.Context(), name, nil); err != nil || string(got) != want {
				t.Errorf("%s: %q, %v", name, []byte(got), err)
			}
		}
		got, err := p.Secret(t.Context(), "nope", nil)
		fails(t, got, err, wire.ErrService, "KeyNotFound: A key")
		if addr := a.Dialled(); settings == miSets && addr != "acme-1.vault.azure.net:443" {
			t.Errorf("dialled %s", addr)
		}
	}
}

func TestUnusableSettings(t *testing.T) {
	a := newCloud(t)
	with := func(url string) string { return `{"vault_url":"` + url + `","client_type":"managed_identity"}` }
	for settings, cause := range map[string]string{
		`{"client_type":"managed_identity"}`:                                                    `"vault_url" is missing`,
		`{"vault_url":"` + vaultURL + `"}`:                                                      `"client_type" is missing`,
		`{"vault_url":"` + vaultURL + `","client_type":"Managed_Identity"}`:                     "none of managed_identity, client_secret",
		`{"vault_url":"` + vaultURL + `","client_type":"managed_identity","client_id":"a&b=c"}`: `"client_id": want`,
		`{"vault_url":"` + vaultURL + `","client_type":"managed_identity","client_id":null}`:    `"client_id": not a string`,
		with("https://evil.example"):                                                            `"vault_url": want`,
		with("https://vault.azure.net"):                                                         `"vault_url": want`,
		with("https://evil.example/.vault.azure.net"):                                           `"vault_url": want`,
		with("https://evil.example?.vault.azure.net"):                                           `"vault_url": want`,
		with("https://evil.example#.vault.azure.net"):                                           `"vault_url": want`,
		with("https://acme.vault.azure.net@evil.example"):                                       `"vault_url": want`,
		with("https://x:y@acme.vault.azure.net"):                                                `"vault_url": want`,
		with("https://acme.vault.azure.net.evil.example"):                                       `"vault_url": want`,
		with("https://a.b.vault.azure.net"):                                                     `"vault_url": want`,
		with("https://acmevault.azure.net"):                                                     `"vault_url": want`,
		with("https://acme.vault.azure.net:8443"):                                               `"vault_url": want`,
		with("https://acme.vault.azure.net/keys"):                                               `"vault_url": want`,
		with("http://acme.vault.azure.net"):                                                     `"vault_url": want`,
		with("http://127.0.0.1:8080"):                                                           `"vault_url": want`,
		with("https://127.0.0.1"):                                                               `"vault_url": want`,
		with("https://a%63me.vault.azure.net\\u0000"):                                           `"vault_url": not a URL`,
		with("https://ac\u212ae.vault.azure.net"):                                               `"vault_url": want`,
		with(""): `"vault_url": want`,
	} {
		p, err := New(a.Env)(object(t, settings))
		if p != nil {
			t.Errorf("%s: opened", settings)
		}
		fails(t, nil, err, wire.ErrSettings, cause)
	}
	p := a.open(t, miSets)
	for _, id := range []string{"", "kek", "kek/", "/v", "kek/v/w", "../secrets/db", "kek/..", "kek/v?x", "kek/v%2f", "https://evil.example/keys/kek/v", strings.Repeat("k", 128) + "/v"} {
		got, err := p.Decrypt(t.Context(), id, []byte("x"), nil)
		fails(t, got, err, wire.ErrSettings, "VERSION")
	}
	for _, name := range []string{"", "db/", "/db", "db/v/w", "../keys/kek", "d b", "db#", "ü"} {
		got, err := p.Secret(t.Context(), name, nil)
		fails(t, got, err, wire.ErrSettings, "NAME")
	}
	for annotations, size := range map[string]int{
		`{"algorithm":"RSA-OAEP"}`: 1, `{"algorithm":"RSA1_5"}`: 1, `{"algorithm":""}`: 1, `{"algorithm":null}`: 1, `{}`: 0, `{"x":1}`: maxWrapped + 1,
	} {
		got, err := p.Decrypt(t.Context(), keyID, make([]byte, size), object(t, annotations))
		fails(t, got, err, wire.ErrSettings, "settings")
	}
	if n := a.Requests.Load() + a.Metadata.Load(); n != 0 {
		t.Errorf("%d requests", n)
	}
}

func TestDamagedCiphertext(t *testing.T) {
	a := newCloud(t)
	got, err := a.open(t, miSets).Decrypt(t.Context(), keyID, bytes.Repeat([]byte{1}, 256), nil)
	fails(t, got, err, wire.ErrService, "BadParameter")
	got, err = a.open(t, miSets).Decrypt(t.Context(), keyID, bytes.Repeat([]byte{1}, 40), object(t, `{"algorithm":"A256KW"}`))
	fails(t, got, err, wire.ErrService, "BadParameter")
}

func TestUnusableCredentials(t *testing.T) {
	for name, tt := range map[string]struct {
		content string
		is      error
		cause   string
	}{
		"absent":            {"", wire.ErrCredential, CredentialFile},
		"not JSON":          {"app-1:hush", wire.ErrCredential, CredentialFile},
		"no tenant":         {`{"client_id":"a","client_secret":"hush"}`, wire.ErrCredential, CredentialFile},
		"no id":             {`{"tenant_id":"t","client_secret":"hush"}`, wire.ErrCredential, CredentialFile},
		"an empty secret":   {`{"tenant_id":"t","client_id":"a","client_secret":""}`, wire.ErrCredential, CredentialFile},
		"tenant elsewhere":  {`{"tenant_id":"../x","client_id":"a","client_secret":"hush"}`, wire.ErrCredential, CredentialFile},
		"another authority": {strings.Replace(credFile, "}", `,"authority":1}`, 1), wire.ErrCredential, CredentialFile},
		"tenant of dots":    {`{"tenant_id":"a..b","client_id":"a","client_secret":"hush"}`, wire.ErrCredential, CredentialFile},
		"a wrong secret":    {strings.Replace(credFile, password, "hush", 1), wire.ErrService, "invalid_client: AADSTS7000215"},
		"a wrong tenant":    {strings.Replace(credFile, tenant, "acme.onmicrosoft.com", 1), wire.ErrService, "invalid_request"},
	} {
		t.Run(name, func(t *testing.T) {
			a := newCloud(t)
			if tt.content == "" {
				a.Remove(t, CredentialFile)
			} else {
				a.Write(t, CredentialFile, []byte(tt.content))
			}
			got, err := a.open(t, csSets).Secret(t.Context(), "db", nil)
			fails(t, got, err, tt.is, tt.cause)
			if n, _ := a.counts(); n != 0 {
				t.Error("the vault was asked")
			}
		})
	}
}

// TestPasswordGoesOnlyToTheCloudOfItsCredential: logins in China and of the US
// government are other companies and other machines.
func TestPasswordGoesOnlyToTheCloudOfItsCredential(t *testing.T) {
	a := newCloud(t, func(c *kmstest.Config) {
		c.Names = []string{"login.microsoftonline.com", "login.chinacloudapi.cn", "login.microsoftonline.us", "*.vault.azure.cn"}
	})
	settings := func(domain string) string { return strings.Replace(csSets, "vault.azure.net", domain, 1) }
	for _, domain := range []string{"vault.azure.cn", "managedhsm.azure.cn", "vault.usgovcloudapi.net", "managedhsm.usgovcloudapi.net"} {
		got, err := a.open(t, settings(domain)).Secret(t.Context(), "db", nil)
		fails(t, got, err, wire.ErrSettings, "another cloud")
	}
	a.Write(t, CredentialFile, []byte(strings.Replace(credFile, "}", `,"authority":"login.chinacloudapi.cn"}`, 1)))
	got, err := a.open(t, csSets).Secret(t.Context(), "db", nil)
	fails(t, got, err, wire.ErrSettings, "another cloud")
	if n := a.Requests.Load(); n != 0 {
		t.Errorf("%d requests", n)
	}
	if got, err := a.open(t, settings("vault.azure.cn")).Secret(t.Context(), "db", nil); err != nil || string(got) != "s3cret <current>" {
		t.Errorf("%q, %v", []byte(got), err)
	}
}

func TestMachineWithoutTheIdentity(t *testing.T) {
	a := newCloud(t)
	got, err := a.open(t, strings.TrimSuffix(miSets, "}")+`,"client_id":"id-9"}`).Secret(t.Context(), "db", nil)
	fails(t, got, err, wire.ErrService, "the Azure metadata service refused (HTTP status 400): invalid_request: Identity not found")
}

func TestServicesThatAreBusyAreAskedAgain(t *testing.T) {
	for name, tt := range map[string]struct {
		status int
		login  bool
	}{
		"vault 429": {429, false}, "vault 503": {503, false},
		"login 404": {404, true}, "login 410": {410, true}, "login 429": {429, true}, "login 500": {500, true},
	} {
		for _, tries := range []int{2, 9} {
			a := newCloud(t)
			busy := func(w http.ResponseWriter, n int) bool {
				if n <= tries {
					w.WriteHeader(tt.status)
				}
				return n <= tries
			}
			is := wire.ErrUnreachable
			if tt.login {
				a.atLogin = busy
			} else {
				a.atVault = busy
			}
			if tt.status < 429 {
				is = wire.ErrService
			}
			got, err := a.open(t, miSets).Secret(t.Context(), "db", nil)
			vault, logins := a.counts()
			if n := map[bool]int{true: logins, false: vault}[tt.login]; n != 3 {
				t.Errorf("%s: %d requests", name, n)
			}
			if tries == 9 {
				fails(t, got, err, is, "HTTP status")
			} else if err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

func TestAnswersThatAreNone(t *testing.T) {
	for name, tt := range map[string]struct {
		body  string
		login bool
	}{
		"empty":              {``, false},
		"not JSON":           {`<html>`, false},
		"no value":           {`{"kid":"k"}`, false},
		"null":               {`{"value":null}`, false},
		"a number":           {`{"value":1}`, false},
		"empty value":        {`{"value":""}`, false},
		"value twice":        {`{"value":"AAAA","value":"AAAB"}`, false},
		"data after it":      {`{"value":"AAAA"}x`, false},
		"not UTF-8":          {"{\"value\":\"\xff\"}", false},
		"huge":               {`{"value":"` + strings.Repeat("A", 2<<20) + `"}`, false},
		"login empty":        {``, true},
		"login not JSON":     {`<html>`, true},
		"no token":           {`{"token_type":"Bearer","expires_in":1}`, true},
		"an empty token":     {`{"token_type":"Bearer","expires_in":1,"access_token":""}`, true},
		"a token of 2 lines": {`{"token_type":"Bearer","expires_in":1,"access_token":"a\r\nX-Evil: 1"}`, true},
		"a huge token":       {`{"token_type":"Bearer","expires_in":1,"access_token":"` + strings.Repeat("a", 40<<10) + `"}`, true},
		"another type":       {`{"token_type":"mac","expires_in":1,"access_token":"a"}`, true},
		"no life":            {`{"token_type":"Bearer","access_token":"a"}`, true},
		"a life of zero":     {`{"token_type":"Bearer","expires_in":"0","access_token":"a"}`, true},
		"a negative life":    {`{"token_type":"Bearer","expires_in":-5,"access_token":"a"}`, true},
		"a life in words":    {`{"token_type":"Bearer","expires_in":"soon","access_token":"a"}`, true},
		"an endless life":    {`{"token_type":"Bearer","expires_in":99999999999,"access_token":"a"}`, true},
	} {
		t.Run(name, func(t *testing.T) {
			a := newCloud(t)
			answer := func(w http.ResponseWriter, _ int) bool { _, _ = w.Write([]byte(tt.body)); return true }
			if tt.login {
				a.atLogin = answer
			} else {
				a.atVault = answer
			}
			for _, settings := range []string{miSets, csSets} {
				got, err := a.open(t, settings).Secret(t.Context(), "db", nil)
				fails(t, got, err, wire.ErrService, "unusable")
				got, err = a.open(t, settings).Decrypt(t.Context(), keyID, []byte("x"), nil)
				fails(t, got, err, wire.ErrService, "unusable")
			}
		})
	}
}

func TestKeyThatIsNotBase64(t *testing.T) {
	for _, value := range []string{"%%%%", "AAA=", "AA", "A+/A", "AA\\nAA", "AAAA\\r\\n", "A"} {
		a := newCloud(t)
		a.atVault = func(w http.ResponseWriter, _ int) bool {
			_, _ = w.Write([]byte(`{"value":"` + value + `"}`))
			return true
		}
		got, err := a.open(t, miSets).Decrypt(t.Context(), keyID, []byte("x"), nil)
		if value == "AA" { // no bits left over: one zero byte
			if err != nil || !bytes.Equal(got, []byte{0}) {
				t.Errorf("%x, %v", []byte(got), err)
			}
			continue
		}
		fails(t, got, err, wire.ErrService, "unusable")
	}
}

func TestRedirectsAreNotFollowed(t *testing.T) {
	for _, login := range []bool{false, true} {
		a := newCloud(t)
		away := func(w http.ResponseWriter, _ int) bool {
			w.Header().Set("Location", "https://other.vault.azure.net/secrets/db")
			w.WriteHeader(307)
			return true
		}
		if login {
			a.atLogin = away
		} else {
			a.atVault = away
		}
		got, err := a.open(t, csSets).Secret(t.Context(), "db", nil)
		fails(t, got, err, wire.ErrService, "redirects")
		if v, l := a.counts(); l != 1 || login && v != 0 || !login && v != 1 {
			t.Errorf("%d, %d requests", v, l)
		}
	}
}

func TestVaultNobodyVouchesFor(t *testing.T) {
	a := newCloud(t, func(c *kmstest.Config) { c.Untrusted = true })
	got, err := a.open(t, miSets).Secret(t.Context(), "db", nil)
	fails(t, got, err, wire.ErrUnreachable, "not trusted")
	a = newCloud(t, func(c *kmstest.Config) { c.Names = []string{"*.managedhsm.azure.net"} })
	got, err = a.open(t, miSets).Secret(t.Context(), "db", nil)
	fails(t, got, err, wire.ErrUnreachable, "for another name")
	if n, _ := a.counts(); n != 0 {
		t.Error("a token was sent")
	}
}

func TestAnswerThatDrips(t *testing.T) {
	a := newCloud(t, func(c *kmstest.Config) { c.TryTimeout = 30 * time.Millisecond })
	stop := make(chan struct{})
	a.atLogin = func(w http.ResponseWriter, _ int) bool {
		_, _ = w.Write([]byte(`{`))
		w.(http.Flusher).Flush()
		<-stop
		return true
	}
	defer close(stop)
	ctx, cancel := context.WithTimeout(t.Context(), 40*time.Millisecond)
	defer cancel()
	got, err := a.open(t, miSets).Secret(ctx, "db", nil)
	fails(t, got, err, wire.ErrUnreachable, "no answer in time")
}
