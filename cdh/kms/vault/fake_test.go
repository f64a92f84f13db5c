package vault

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sealpod/sealpod/cdh/internal/strict"
	"github.com/sealpod/sealpod/cdh/kms/internal/wire"
	"github.com/sealpod/sealpod/podvm"
)

const (
	rootToken = "hvs.root"
	roleID    = "role-1"
	secretID  = "secret-1"
)

// fake is a Vault with the transit engine, KV version 2 and AppRole, whose paths,
// statuses and error texts are those of Vault 1.21.4, compared by hand with one
// (but for namespaces, which its Enterprise edition has). It encrypts.
// Source: Vault API documentation, "Transit secrets engine", "KV secrets engine
// version 2", "AppRole auth method".
type fake struct {
	*httptest.Server
	mu       sync.Mutex
	skew     time.Duration // of its clock
	lease    time.Duration // of logins
	tokens   map[string]token
	keys     map[string]key
	secrets  map[string][]string // mount/path -> JSON of each version, "" when deleted
	requests int
	logins   int
	// answer, when not nil, answers in place of the Vault if it returns true.
	answer func(w http.ResponseWriter, r *http.Request, n int) bool
}

type token struct {
	until  time.Time // zero: for ever
	denied string    // what is denied has this in its path; "" for nothing
}

type key struct {
	raw     []byte
	derived bool
}

func newFake(t testing.TB) *fake {
	f := &fake{
		lease:   time.Hour,
		tokens:  map[string]token{rootToken: {}},
		keys:    map[string]key{"/transit/kek": {[]byte("k1"), false}, "/transit/other": {[]byte("k2"), false}, "/transit/derived": {[]byte("k3"), true}, "team/a/b/kek.1": {[]byte("k4"), false}},
		secrets: map[string][]string{},
	}
	f.Server = httptest.NewServer(f)
	t.Cleanup(f.Close)
	return f
}

func fail(w http.ResponseWriter, status int, errors ...string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"errors": append([]string{}, errors...)})
}

func reply(w http.ResponseWriter, status int, members map[string]any) {
	out := map[string]any{
		"request_id": "2f6a9ab3", "lease_id": "", "renewable": false, "lease_duration": 0,
		"data": nil, "wrap_info": nil, "warnings": nil, "auth": nil, "mount_type": "",
	}
	for k, v := range members {
		out[k] = v
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(out)
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.requests++
	if f.answer != nil && f.answer(w, r, f.requests) {
		return
	}
	path, ok := strings.CutPrefix(r.URL.Path, "/v1/")
	if !ok || r.Header.Get("X-Vault-Request") != "true" {
		fail(w, 404)
		return
	}
	namespace := r.Header.Get("X-Vault-Namespace") + "/"
	if mount, ok := strings.CutSuffix(path, "/login"); ok && r.Method == http.MethodPost {
		f.login(w, r, namespace+mount)
		return
	}
	now := time.Now().Add(f.skew)
	tok, ok := f.tokens[r.Header.Get("X-Vault-Token")]
	if !ok || !tok.until.IsZero() && now.After(tok.until) {
		fail(w, 403, "2 errors occurred:\n\t* permission denied\n\t* invalid token\n\n")
		return
	}
	if tok.denied != "" && strings.Contains(path, tok.denied) {
		fail(w, 403, "1 error occurred:\n\t* permission denied\n\n")
		return
	}
	for _, operation := range []string{"/encrypt/", "/decrypt/"} {
		if mount, name, ok := strings.Cut(path, operation); ok && r.Method == http.MethodPost {
			f.transit(w, r, operation, namespace+mount+"/"+name)
			return
		}
	}
	if mount, name, ok := strings.Cut(path, "/data/"); ok && r.Method == http.MethodGet {
		f.kv(w, r, namespace+mount+"/"+name)
		return
	}
	fail(w, 404, fmt.Sprintf("no handler for route %q. route entry not found.", path))
}

func (f *fake) login(w http.ResponseWriter, r *http.Request, mount string) {
	var in struct {
		RoleID   string `json:"role_id"`
		SecretID string `json:"secret_id"`
	}
	if json.NewDecoder(r.Body).Decode(&in) != nil || mount != "/auth/approle" && mount != "admin/auth/team/approle" ||
		in.RoleID != roleID || in.SecretID != secretID || r.Header.Get("X-Vault-Token") != "" {
		fail(w, 400, "invalid role or secret ID")
		return
	}
	f.logins++
	id := fmt.Sprintf("hvs.login-%d", f.logins)
	tok := token{denied: "forbidden"}
	if f.lease > 0 {
		tok.until = time.Now().Add(f.skew + f.lease)
	}
	f.tokens[id] = tok
	reply(w, 200, map[string]any{"auth": map[string]any{
		"client_token": id, "accessor": "x", "policies": []string{"default"}, "lease_duration": int(f.lease.Seconds()), "renewable": true,
	}})
}

func (f *fake) transit(w http.ResponseWriter, r *http.Request, operation, name string) {
	var in struct{ Plaintext, Ciphertext, Context *string }
	body, err := io.ReadAll(r.Body)
	if err != nil || json.Unmarshal(body, &in) != nil {
		fail(w, 400, "error parsing JSON")
		return
	}
	k, ok := f.keys[name]
	if !ok {
		fail(w, 400, "encryption key not found")
		return
	}
	raw := k.raw
	if k.derived {
		if in.Context == nil {
			fail(w, 400, "missing 'context' for key derivation; the key was created using a derived key, which means additional, per-request information must be included in order to perform operations with the key")
			return
		}
		m := hmac.New(sha256.New, raw)
		m.Write([]byte(*in.Context))
		raw = m.Sum(nil)
	}
	sum := sha256.Sum256(raw)
	block, err := aes.NewCipher(sum[:])
	if err != nil {
		panic(err)
	}
	gcm, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic(err)
	}
	if operation == "/encrypt/" {
		plain, err := base64.StdEncoding.DecodeString(*in.Plaintext)
		if err != nil {
			fail(w, 400, "failed to base64-decode plaintext")
			return
		}
		sealed := base64.StdEncoding.EncodeToString(gcm.Seal(nil, nil, plain, nil))
		reply(w, 200, map[string]any{"data": map[string]any{"ciphertext": "vault:v1:" + sealed, "key_version": 1}})
		return
	}
	sealed, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(*in.Ciphertext, "vault:v1:"))
	if err == nil {
		sealed, err = gcm.Open(nil, nil, sealed, nil)
	}
	if err != nil {
		fail(w, 400, "cipher: message authentication failed")
		return
	}
	reply(w, 200, map[string]any{"data": map[string]any{"plaintext": base64.StdEncoding.EncodeToString(sealed)}})
}

func (f *fake) kv(w http.ResponseWriter, r *http.Request, name string) {
	versions := f.secrets[name]
	n := len(versions)
	if v := r.URL.Query().Get("version"); v != "" {
		n, _ = strconv.Atoi(v)
	}
	if n < 1 || n > len(versions) {
		fail(w, 404)
		return
	}
	status, data := 200, any(json.RawMessage(versions[n-1]))
	if versions[n-1] == "" {
		status, data = 404, nil
	}
	reply(w, status, map[string]any{"data": map[string]any{"data": data, "metadata": map[string]any{"version": n, "destroyed": false}}})
}

// world is a guest with a credential for a Vault.
type world struct {
	*fake
	wire.Env
	dir string
	now time.Duration // how far the guest's clock, and the Vault's, is ahead
}

func newWorld(t testing.TB, credential string) *world {
	t.Helper()
	w := &world{fake: newFake(t), dir: t.TempDir()}
	quiet := slog.New(slog.DiscardHandler)
	w.Env = wire.Env{
		HTTP:  wire.NewClient(wire.ClientConfig{Log: quiet, Backoff: time.Microsecond}),
		Files: wire.Dir(w.dir),
		Now:   func() time.Time { return time.Now().Add(w.now) },
		Log:   quiet,
		Host:  podvm.Host{},
	}
	t.Cleanup(w.HTTP.Close)
	w.place(t, credential)
	return w
}

// The credentials of a world; ADDRESS is that of its Vault.
const (
	withToken = `{"address":"ADDRESS","token":"` + rootToken + `"}`
	withRole  = `{"address":"ADDRESS/","role_id":"` + roleID + `","secret_id":"` + secretID + `"}`
)

func (w *world) credential(text string) []byte {
	return []byte(strings.ReplaceAll(text, "ADDRESS", w.URL))
}

func (w *world) place(t testing.TB, credential string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(w.dir, CredentialFile), w.credential(credential), 0o600); err != nil {
		t.Fatal(err)
	}
}

// pass moves the clocks.
func (w *world) pass(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now += d
	w.skew += d
}

func (w *world) open(t testing.TB, settings string) wire.Provider {
	t.Helper()
	p, err := New(w.Env)(parse(t, string(w.credential(settings))))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func parse(t testing.TB, text string) wire.Object {
	t.Helper()
	o, err := strict.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func asObject(t testing.TB, members map[string]any) wire.Object {
	t.Helper()
	raw, err := json.Marshal(members)
	if err != nil {
		t.Fatal(err)
	}
	return parse(t, string(raw))
}

func random(n int) podvm.Secret {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return b
}
