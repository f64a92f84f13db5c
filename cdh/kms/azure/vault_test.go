package azure

import (
	"crypto/aes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"

	josecipher "github.com/go-jose/go-jose/v4/cipher"

	"github.com/sealpod/sealpod/cdh/kms/internal/kmstest"
)

const (
	vaultURL = "https://acme-1.vault.azure.net"
	hsmURL   = "https://acme-1.managedhsm.azure.net"
	miSets   = `{"vault_url":"` + vaultURL + `","client_type":"managed_identity"}`
	csSets   = `{"vault_url":"` + vaultURL + `/","client_type":"client_secret"}`
	tenant   = "11111111-2222-3333-4444-555555555555"
	password = "hush~hush&x=1"
	credFile = `{"tenant_id":"` + tenant + `","client_id":"app-1","client_secret":"` + password + `"}`
	keyID    = "kek/0123456789abcdef0123456789abcdef"
)

// sharedKey is the key of every vault, made once because it takes long.
var sharedKey = sync.OnceValue(func() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key
})

var hsmKey = []byte("0123456789abcdef0123456789abcdef")

// azureCloud is a vault, an HSM, Entra and the metadata service of a machine. It
// takes only tokens that it gave out.
type azureCloud struct {
	*kmstest.Cloud
	t testing.TB

	mu     sync.Mutex
	n      int             // requests at vaults
	tokens map[string]bool // given out, and whether they are still good
	life   any             // of tokens, as expires_in
	// atVault and atLogin replace answers when they return true; n counts from 1.
	atVault, atLogin func(w http.ResponseWriter, n int) bool
	logins           int
}

func newCloud(t testing.TB, change ...func(*kmstest.Config)) *azureCloud {
	t.Helper()
	a := &azureCloud{t: t, tokens: map[string]bool{}, life: 3599}
	cfg := kmstest.Config{
		Provider: "azure", Handler: a.handle, Metadata: a.metadata,
		Names: []string{"*.vault.azure.net", "*.managedhsm.azure.net", "login.microsoftonline.com"},
	}
	for _, c := range change {
		c(&cfg)
	}
	a.Cloud = kmstest.New(t, cfg)
	a.Write(t, CredentialFile, []byte(credFile))
	return a
}

// revoke makes every token so far useless.
func (a *azureCloud) revoke() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for k := range a.tokens {
		a.tokens[k] = false
	}
}

func (a *azureCloud) counts() (vault, logins int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.n, a.logins
}

func reply(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}

func deny(w http.ResponseWriter, status int, code, message string) {
	reply(w, status, map[string]any{"error": map[string]any{"code": code, "message": message, "innererror": nil}})
}

// grant gives out a token that is good for one kind of vault.
func (a *azureCloud) grant(w http.ResponseWriter, resource string) {
	token := fmt.Sprintf("token-%d.for.%s", len(a.tokens), strings.TrimPrefix(resource, "https://"))
	a.tokens[token] = true
	reply(w, 200, map[string]any{"access_token": token, "token_type": "Bearer", "expires_in": a.life, "ext_expires_in": a.life, "resource": resource})
}

func (a *azureCloud) metadata(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.logins++
	q := r.URL.Query()
	switch {
	case a.atLogin != nil && a.atLogin(w, a.logins):
	case r.Method != "GET" || r.URL.Path != "/metadata/identity/oauth2/token" || q.Get("api-version") != "2018-02-01" || r.Header.Get("Metadata") != "true":
		reply(w, 400, map[string]string{"error": "invalid_request", "error_description": "no such request"})
	case q.Has("client_id") && q.Get("client_id") != "id-2":
		reply(w, 400, map[string]string{"error": "invalid_request", "error_description": "Identity not found"})
	default:
		a.grant(w, q.Get("resource"))
	}
}

func (a *azureCloud) handle(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if strings.HasPrefix(r.Host, "login.") {
		a.entra(w, r)
		return
	}
	a.n++
	body, err := io.ReadAll(r.Body)
	domain := strings.TrimPrefix(r.Host, "acme-1.")
	token, bearer := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	switch {
	case a.atVault != nil && a.atVault(w, a.n):
	case err != nil || domain == r.Host || r.URL.RawQuery != "api-version=7.4":
		deny(w, 400, "BadParameter", fmt.Sprint(r.Host, r.URL, err))
	case !bearer || !a.tokens[token] || !strings.HasSuffix(token, ".for."+domain):
		w.Header().Set("WWW-Authenticate", `Bearer authorization="https://login.windows.net/x", resource="https://vault.azure.net"`)
		deny(w, 401, "Unauthorized", "AKV10022: Invalid audience")
	case r.Method == "GET" && r.URL.Path == "/secrets/db":
		reply(w, 200, map[string]any{"value": "s3cret <current>", "id": vaultURL + "/secrets/db/v2", "attributes": map[string]any{"enabled": true}})
	case r.Method == "GET" && r.URL.Path == "/secrets/db/v1":
		reply(w, 200, map[string]any{"value": "s3cret old"})
	case r.Method == "POST" && strings.HasPrefix(r.URL.Path, "/keys/"+keyID+"/"):
		a.operate(w, strings.TrimPrefix(r.URL.Path, "/keys/"+keyID+"/"), domain, body)
	default:
		deny(w, 404, "KeyNotFound", "A key with (name/id) was not found \x1b in this key vault")
	}
}

// operate wraps and unwraps with the standard library and go-jose.
func (a *azureCloud) operate(w http.ResponseWriter, operation, domain string, body []byte) {
	var in struct{ Alg, Value string }
	err := json.Unmarshal(body, &in)
	var value, out []byte
	if err == nil {
		value, err = base64.RawURLEncoding.Strict().DecodeString(in.Value)
	}
	block, _ := aes.NewCipher(hsmKey)
	switch {
	case err != nil:
	case operation == "wrapkey" && in.Alg == "RSA-OAEP-256":
		out, err = rsa.EncryptOAEP(sha256.New(), rand.Reader, &sharedKey().PublicKey, value, nil)
	case operation == "unwrapkey" && in.Alg == "RSA-OAEP-256":
		out, err = rsa.DecryptOAEP(sha256.New(), nil, sharedKey(), value, nil)
	case operation == "wrapkey" && in.Alg == "A256KW" && domain == "managedhsm.azure.net":
		out, err = josecipher.KeyWrap(block, value)
	case operation == "unwrapkey" && in.Alg == "A256KW" && domain == "managedhsm.azure.net":
		out, err = josecipher.KeyUnwrap(block, value)
	default:
		err = fmt.Errorf("%s with %s", operation, in.Alg)
	}
	if err != nil {
		deny(w, 400, "BadParameter", err.Error())
		return
	}
	reply(w, 200, map[string]string{"kid": vaultURL + "/keys/" + keyID, "value": base64.RawURLEncoding.EncodeToString(out)})
}

func (a *azureCloud) entra(w http.ResponseWriter, r *http.Request) {
	a.logins++
	body, _ := io.ReadAll(r.Body)
	form, err := url.ParseQuery(string(body))
	scope, isDefault := strings.CutSuffix(form.Get("scope"), "/.default")
	switch {
	case a.atLogin != nil && a.atLogin(w, a.logins):
	case err != nil || r.Method != "POST" || r.URL.Path != "/"+tenant+"/oauth2/v2.0/token" || form.Get("grant_type") != "client_credentials" || !isDefault:
		reply(w, 400, map[string]string{"error": "invalid_request", "error_description": "AADSTS900144"})
	case form.Get("client_id") != "app-1" || form.Get("client_secret") != password:
		reply(w, 401, map[string]string{"error": "invalid_client", "error_description": "AADSTS7000215: Invalid client secret provided."})
	default:
		a.grant(w, scope)
	}
}
