package vault

import (
	"bytes"
	"errors"
	"net/http"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/sealpod/sealpod/cdh/internal/strict"
	"github.com/sealpod/sealpod/cdh/kms/internal/wire"
	"github.com/sealpod/sealpod/podvm"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestKeyWrappedByTheOwnerOpensInTheGuest(t *testing.T) {
	for name, tt := range map[string]struct {
		owner  Owner
		key    string
		derive []byte
	}{
		"plain":                 {key: "kek"},
		"derived":               {key: "derived", derive: []byte("pod \x00 1")},
		"mount in a namespace":  {Owner{Mount: "a/b", Namespace: "team"}, "kek.1", nil},
		"context and not asked": {key: "kek", derive: []byte("x")},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, withToken)
			key := random(32)
			tt.owner.Credential = w.credential(withToken)
			out, err := Encrypt(t.Context(), w.Env, tt.owner, tt.key, key, tt.derive)
			if err != nil {
				t.Fatal(err)
			}
			p, err := New(w.Env)(asObject(t, out.Settings))
			if err != nil {
				t.Fatal(err)
			}
			got, err := p.Decrypt(t.Context(), tt.key, out.Ciphertext, asObject(t, out.Annotations))
			if err != nil || !bytes.Equal(got, key) {
				t.Fatalf("%x, %v", []byte(got), err)
			}
			if tt.key != "derived" {
				return
			}
			for annotations, cause := range map[string]string{
				`{}`:                     "HashiCorp Vault refused (HTTP status 400): missing 'context' for key derivation;",
				`{"context":"b3RoZXI="}`: "HashiCorp Vault refused (HTTP status 400): cipher: message authentication failed",
			} {
				if got, err := p.Decrypt(t.Context(), tt.key, out.Ciphertext, parse(t, annotations)); !errors.Is(err, wire.ErrService) || got != nil || !strings.HasPrefix(podvm.Cause(err), cause) {
					t.Errorf("%s: %v", annotations, err)
				}
			}
		})
	}
}

func TestWrongKey(t *testing.T) {
	w := newWorld(t, withToken)
	out, err := Encrypt(t.Context(), w.Env, Owner{Credential: w.credential(withToken)}, "kek", random(32), nil)
	if err != nil {
		t.Fatal(err)
	}
	for key, cause := range map[string]string{"other": "message authentication failed", "none": "encryption key not found"} {
		got, err := w.open(t, `{}`).Decrypt(t.Context(), key, out.Ciphertext, nil)
		if !errors.Is(err, wire.ErrService) || got != nil || !strings.HasSuffix(podvm.Cause(err), cause) {
			t.Errorf("%s: %v", key, err)
		}
	}
}

func TestFieldsAndVersionsOfSecrets(t *testing.T) {
	w := newWorld(t, withToken)
	w.secrets["/secret/team/db pass"] = []string{
		`{"password":"one"}`, ``, `{"value":"three","password":"p\n\"3\"","n":5}`, `{"a":"x","b":"y"}`, `{}`, `{"value":""}`,
	}
	w.secrets["/secret/50%2f?#ü"] = []string{`{"value":"odd"}`}
	w.secrets["admin/team/kv/x"] = []string{`{"value":"elsewhere"}`}
	for name, tt := range map[string]struct {
		settings, name, annotations string
		want, cause                 string
	}{
		"the last":            {name: "team/db pass", want: ""},
		"its only field":      {name: "team/db pass", annotations: `{"version":1}`, want: "one"},
		"value":               {name: "team/db pass", annotations: `{"version":"3"}`, want: "three"},
		"a field":             {name: "team/db pass", annotations: `{"version":3,"field":"password"}`, want: "p\n\"3\""},
		"an odd name":         {name: "50%2f?#ü", want: "odd"},
		"a mount":             {settings: `{"mount":"team/kv","namespace":"admin"}`, name: "x", want: "elsewhere"},
		"address":             {settings: `{"address":"ADDRESS///"}`, name: "team/db pass"},
		"a number":            {name: "team/db pass", annotations: `{"version":3,"field":"n"}`, cause: "the field of the secret is not text"},
		"not that field":      {name: "team/db pass", annotations: `{"version":3,"field":"N"}`, cause: "the secret does not have the field asked for"},
		"which of two":        {name: "team/db pass", annotations: `{"version":4}`, cause: "the secret does not have the field asked for"},
		"no fields":           {name: "team/db pass", annotations: `{"version":5}`, cause: "the secret does not have the field asked for"},
		"a deleted version":   {name: "team/db pass", annotations: `{"version":2}`, cause: "HashiCorp Vault refused (HTTP status 404): no such secret or version"},
		"a version not there": {name: "team/db pass", annotations: `{"version":7}`, cause: "HashiCorp Vault refused (HTTP status 404): no such secret or version"},
		"absent":              {name: "none", cause: "HashiCorp Vault refused (HTTP status 404): no such secret or version"},
	} {
		t.Run(name, func(t *testing.T) {
			if tt.settings == "" {
				tt.settings = `{}`
			}
			if tt.annotations == "" {
				tt.annotations = `{}`
			}
			got, err := w.open(t, tt.settings).Secret(t.Context(), tt.name, parse(t, tt.annotations))
			if tt.cause == "" {
				if err != nil || string(got) != tt.want {
					t.Errorf("%q, %v", []byte(got), err)
				}
			} else if !errors.Is(err, wire.ErrService) || podvm.Cause(err) != tt.cause {
				t.Errorf("%v", err)
			}
		})
	}
}

// TestTokenGoesOnlyWhereItsCredentialSays: the settings of an image nobody has
// verified name a server of their own.
func TestTokenGoesOnlyWhereItsCredentialSays(t *testing.T) {
	w, evil := newWorld(t, withToken), newFake(t)
	for _, address := range []string{evil.URL, "https://evil.example", strings.Replace(w.URL, "http:", "https:", 1), w.URL + "/x", strings.Replace(w.URL, "127.0.0.1", "localhost", 1)} {
		p, err := New(w.Env)(asObject(t, map[string]any{"address": address}))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.Secret(t.Context(), "x", nil); !errors.Is(err, wire.ErrSettings) ||
			podvm.Cause(err) != "the Vault address in the provider settings is not the one the credential is for" {
			t.Errorf("%s: %v", address, err)
		}
	}
	w.answer = func(rw http.ResponseWriter, _ *http.Request, _ int) bool {
		rw.Header().Set("Location", evil.URL)
		rw.WriteHeader(307)
		return true
	}
	if _, err := w.open(t, `{}`).Secret(t.Context(), "x", nil); !errors.Is(err, wire.ErrService) || w.requests != 1 {
		t.Errorf("redirected: %v after %d requests", err, w.requests)
	}
	if evil.requests != 0 {
		t.Errorf("%d requests elsewhere", evil.requests)
	}
}

func TestUnusableInputNeverReachesTheServer(t *testing.T) {
	w := newWorld(t, withToken)
	for _, settings := range []string{
		`{"address":1}`, `{"address":"http://vault.example"}`, `{"address":"https://u:p@vault.example"}`, `{"address":"https://vault.example/?x"}`,
		`{"mount":"../sys"}`, `{"mount":"a//b"}`, `{"mount":"/a"}`, `{"mount":"a/"}`, `{"mount":"a?b"}`, `{"mount":"a%2fb"}`, `{"mount":"."}`, `{"mount":null}`,
		`{"namespace":"a\r\nX-Vault-Token: b"}`, `{"namespace":".."}`, `{"mount":"` + strings.Repeat("a", 257) + `"}`, `{"address":"https://v/../x"}`,
	} {
		if _, err := New(w.Env)(parse(t, settings)); !errors.Is(err, wire.ErrSettings) || podvm.Cause(err) == "" {
			t.Errorf("%s: %v", settings, err)
		}
	}
	p := w.open(t, `{}`)
	good := "vault:v1:AAAA"
	for _, tt := range []struct{ key, ciphertext, annotations string }{
		{"", good, `{}`}, {"a/b", good, `{}`}, {"..", good, `{}`}, {"a?b", good, `{}`}, {strings.Repeat("a", 129), good, `{}`}, {"a\n", good, `{}`},
		{"k", "", `{}`}, {"k", "vault:v0:AAAA", `{}`}, {"k", "vault:v1:", `{}`}, {"k", "AAAA", `{}`}, {"k", good + "\n", `{}`}, {"k", good + `","x":"`, `{}`},
		{"k", "vault:v1:" + strings.Repeat("A", maxCiphertext), `{}`},
		{"k", good, `{"context":1}`}, {"k", good, `{"context":"not base64"}`}, {"k", good, `{"context":null}`},
	} {
		if _, err := p.Decrypt(t.Context(), tt.key, []byte(tt.ciphertext), parse(t, tt.annotations)); !errors.Is(err, wire.ErrSettings) || podvm.Cause(err) == "" {
			t.Errorf("%v: %v", tt, err)
		}
	}
	for _, tt := range []struct{ name, annotations string }{
		{"", `{}`}, {"/a", `{}`}, {"a/", `{}`}, {"a//b", `{}`}, {"a/../b", `{}`}, {".", `{}`}, {"a\x00", `{}`}, {"a\nb", `{}`}, {strings.Repeat("a", 1025), `{}`},
		{"a", `{"version":0}`}, {"a", `{"version":-1}`}, {"a", `{"version":"1&x=y"}`}, {"a", `{"version":1.5}`}, {"a", `{"version":null}`}, {"a", `{"version":[1]}`},
		{"a", `{"field":1}`}, {"a", `{"field":null}`},
	} {
		if _, err := p.Secret(t.Context(), tt.name, parse(t, tt.annotations)); !errors.Is(err, wire.ErrSettings) || podvm.Cause(err) == "" {
			t.Errorf("%v: %v", tt, err)
		}
	}
	for _, o := range []Owner{{Mount: ".."}, {Namespace: "a b"}} {
		o.Credential = w.credential(withToken)
		if _, err := Encrypt(t.Context(), w.Env, o, "kek", random(32), nil); !errors.Is(err, wire.ErrSettings) {
			t.Errorf("%+v: %v", o, err)
		}
	}
	for _, bad := range []string{
		``, `[]`, `{}`, `{"token":"hunter2"}`, `{"address":"ADDRESS"}`, `{"address":"ADDRESS","token":""}`, `{"address":"ADDRESS","secret_id":"hunter2"}`,
		`{"address":"ADDRESS","token":"hunter2","role_id":"x"}`, `{"address":"http://vault.example","token":"hunter2"}`, `{"address":"ADDRESS","token":"hunter2\r\nX: y"}`,
		`{"address":"ADDRESS","token":null}`, `{"address":"ADDRESS","token":"hunter2","ca":"not PEM"}`, `{"address":"ADDRESS","token":"hunter2","ca":1}`,
		`{"address":"ADDRESS","role_id":"x","approle_mount":"../sys"}`, `{"address":"ADDRESS","role_id":"x","namespace":"a b"}`,
		`{"address":"https://user:hunter2@v","token":"x"}`,
	} {
		w.place(t, bad)
		if _, err := p.Secret(t.Context(), "x", nil); !errors.Is(err, wire.ErrCredential) || strings.Contains(err.Error(), "hunter2") || podvm.Cause(err) == "" {
			t.Errorf("%s: %v", bad, err)
		}
	}
	if w.requests != 0 {
		t.Errorf("%d requests", w.requests)
	}
}

func TestTroubleOfTheServer(t *testing.T) {
	write := func(status int, body string) func(http.ResponseWriter, *http.Request, int) bool {
		return func(w http.ResponseWriter, _ *http.Request, _ int) bool {
			w.WriteHeader(status)
			_, _ = w.Write([]byte(body))
			return true
		}
	}
	for name, tt := range map[string]struct {
		answer   func(w http.ResponseWriter, r *http.Request, n int) bool
		is       error
		requests int
		cause    string
	}{
		"sealed":             {write(503, `{"errors":["Vault is sealed"]}`), wire.ErrUnreachable, 3, "HashiCorp Vault is overloaded or broken (HTTP status 503): Vault is sealed"},
		"rate limit":         {write(429, `{"errors":["request path \"x\": rate limit quota exceeded"]}`), wire.ErrUnreachable, 3, "rate limit quota exceeded"},
		"a standby behind":   {write(412, `{"errors":["required index state not present"]}`), wire.ErrUnreachable, 3, "HTTP status 412"},
		"denied":             {write(403, `{"errors":["1 error occurred:\n\t* permission denied\n\n"]}`), wire.ErrService, 1, "HashiCorp Vault refused (HTTP status 403): 1 error occurred:  * permission denied"},
		"hostile text":       {write(400, `{"errors":["\u001b[31m`+strings.Repeat("x", 5000)+`"]}`), wire.ErrService, 1, "HashiCorp Vault refused (HTTP status 400):  [31mxxx"},
		"errors no list":     {write(400, `{"errors":"hunter2"}`), wire.ErrService, 1, "HashiCorp Vault refused (HTTP status 400)"},
		"not JSON":           {write(200, `<html>hunter2`), wire.ErrService, 1, "HashiCorp Vault answered with something unusable"},
		"no content":         {write(204, ``), wire.ErrService, 1, "HTTP status 204"},
		"no data":            {write(200, `{"hunter2":1}`), wire.ErrService, 1, "unusable"},
		"data null":          {write(200, `{"data":null}`), wire.ErrService, 1, "unusable"},
		"data twice":         {write(200, `{"data":{"plaintext":"AA=="},"data":{"plaintext":"AA=="}}`), wire.ErrService, 1, "unusable"},
		"no plaintext":       {write(200, `{"data":{}}`), wire.ErrService, 1, "unusable"},
		"a huge answer":      {write(200, strings.Repeat(" ", 2<<20)), wire.ErrService, 1, "unusable"},
		"bad base64":         {write(200, `{"data":{"plaintext":"hunter2!"}}`), wire.ErrService, 1, "unusable"},
		"a wrapped response": {write(200, `{"data":null,"wrap_info":{"token":"hunter2"}}`), wire.ErrService, 1, "unusable"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, withToken)
			w.answer = tt.answer
			got, err := w.open(t, `{}`).Decrypt(t.Context(), "kek", []byte("vault:v1:AAAA"), nil)
			if !errors.Is(err, tt.is) || got != nil || w.requests != tt.requests {
				t.Fatalf("%q, %v after %d requests", []byte(got), err, w.requests)
			}
			if cause := podvm.Cause(err); !strings.Contains(cause, tt.cause) || len(cause) > 500 || strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), rootToken) {
				t.Errorf("%v, cause %q", err, cause)
			}
		})
	}
}

func FuzzSettings(f *testing.F) {
	f.Add([]byte(`{"address":"https://v:1/x","mount":"a/b","namespace":"c"}`), "a/b c")
	f.Add([]byte(`{"address":"http://127.0.0.1","mount":".."}`), "../x")
	f.Add([]byte(`{"address":"https://[::1]:443/"}`), "a?b#c%2fd")
	f.Fuzz(func(t *testing.T, raw []byte, secret string) {
		if path, err := escapeSecret(secret); err == nil {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://v/v1/m/data/"+path, nil)
			if err != nil || req.URL.Path != "/v1/m/data/"+secret || req.URL.RawQuery != "" || req.URL.Fragment != "" {
				t.Errorf("%q: %q, %v", secret, path, err)
			}
		}
		o, err := strict.Parse(raw)
		if err != nil {
			return
		}
		p, err := New(wire.Env{})(o)
		if err != nil {
			return
		}
		c, ok := p.(*client)
		if !ok || strings.ContainsAny(c.mount+c.namespace, " ?#%\\\r\n") || strings.Contains("/"+c.mount+"/", "/../") {
			t.Errorf("%+v", c)
		}
		if c.address != "" {
			if again, err := canonical(c.address); again != c.address || err != nil {
				t.Errorf("%q is not canonical: %q, %v", c.address, again, err)
			}
		}
	})
}

func FuzzAnswer(f *testing.F) {
	f.Add([]byte(`{"data":{"data":{"value":"x"},"plaintext":"AA=="},"errors":["a"],"auth":{"client_token":"x","lease_duration":1}}`), "")
	f.Add([]byte(`{"address":"https://v","role_id":"a","secret_id":"b","ca":"c","namespace":"d"}`), "field")
	f.Fuzz(func(_ *testing.T, raw []byte, field string) {
		_ = reasons(raw)
		_, _ = parseCredential(raw)
		if o, err := strict.Parse(raw); err == nil {
			if data, err := object(o, "data"); err == nil {
				_, _ = pick(data, field)
			}
		}
	})
}
