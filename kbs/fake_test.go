package kbs

import (
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

// fakeKBS is a KBS over real HTTP with cookie sessions. It checks the report
// data with canonical texts of its own, and encrypts with the package's JWE.
// The hooks replace single answers.
type fakeKBS struct {
	*httptest.Server
	hash     string // "" sends no choice
	initData *InitData
	onAuth   http.HandlerFunc
	onAttest http.HandlerFunc
	onGet    http.HandlerFunc

	mu       sync.Mutex
	sessions map[string]string // cookie -> nonce
	keys     map[string]PublicKey
	auths    int
	gets     []*http.Request
	problems []string
}

func newFakeKBS(t testing.TB) *fakeKBS {
	k := &fakeKBS{sessions: map[string]string{}, keys: map[string]PublicKey{}}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /kbs/v0/auth", k.auth)
	mux.HandleFunc("POST /kbs/v0/attest", k.attest)
	mux.HandleFunc("GET /kbs/v0/", k.get)
	k.Server = httptest.NewServer(mux)
	t.Cleanup(func() {
		k.Close()
		for _, p := range k.problems {
			t.Error(p)
		}
	})
	return k
}

func (k *fakeKBS) client(t testing.TB, change func(*ClientConfig)) *Client {
	t.Helper()
	cfg := ClientConfig{URL: k.URL + "/", RetryPause: time.Millisecond, Log: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&cfg)
	}
	c, err := NewClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func (k *fakeKBS) problem(format string, args ...any) {
	k.problems = append(k.problems, fmt.Sprintf(format, args...))
}

func refuse(w http.ResponseWriter, status int, variant, detail string) {
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(ErrorInfo{Type: ErrorTypePrefix + variant, Detail: detail})
}

func refuser(status int, variant, detail string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { refuse(w, status, variant, detail) }
}

func (k *fakeKBS) auth(w http.ResponseWriter, r *http.Request) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.auths++
	if k.onAuth != nil {
		k.onAuth(w, r)
		return
	}
	var in struct {
		Version, TEE string
		Extra        map[string][]string `json:"extra-params"`
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil || in.Version != "0.4.0" || in.TEE != "sample" || len(in.Extra["supported-hash-algorithms"]) == 0 {
		k.problem("auth request %+v, %v", in, err)
	}
	if ua := r.Header.Get("User-Agent"); ua != "attestation-agent-kbs-client/0.1.0" {
		k.problem("user agent %q", ua)
	}
	if len(r.Cookies()) != 0 {
		k.problem("a handshake starts with cookies %v", r.Cookies())
	}
	id := fmt.Sprintf("%032x", k.auths)
	nonce := base64.StdEncoding.EncodeToString([]byte(id))
	k.sessions[id] = nonce
	http.SetCookie(w, &http.Cookie{Name: "kbs-session-id", Value: id, Expires: time.Now().Add(time.Minute)})
	extra := `""`
	if k.hash != "" {
		extra = `{"selected-hash-algorithm":` + k.hash + `}`
	}
	_, _ = fmt.Fprintf(w, `{"nonce":%q,"extra-params":%s}`, nonce, extra)
}

// canonicalString is a JSON string as RFC 8785 writes it, for the characters
// the tests use.
func canonicalString(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(s) + `"`
}

// digest is the report data by independent means.
func (k *fakeKBS) digest(nonce string, key map[string]string, additional *string) string {
	members := ""
	if additional != nil {
		members = `"additional-evidence":` + canonicalString(*additional) + ","
	}
	jwk := fmt.Sprintf(`{"alg":%q,"crv":%q,"kty":%q,"x":%q,"y":%q}`, key["alg"], key["crv"], key["kty"], key["x"], key["y"])
	if key["kty"] == "RSA" {
		jwk = fmt.Sprintf(`{"alg":%q,"e":%q,"kty":%q,"n":%q}`, key["alg"], key["e"], key["kty"], key["n"])
	}
	text := []byte(`{` + members + `"nonce":` + canonicalString(nonce) + `,"tee-pubkey":` + jwk + `}`)
	switch strings.ToLower(k.hash) {
	case `"sha256"`:
		sum := sha256.Sum256(text)
		return hex.EncodeToString(sum[:])
	case `"sha512"`:
		sum := sha512.Sum512(text)
		return hex.EncodeToString(sum[:])
	}
	sum := sha512.Sum384(text)
	return hex.EncodeToString(sum[:])
}

func (k *fakeKBS) attest(w http.ResponseWriter, r *http.Request) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.onAttest != nil {
		k.onAttest(w, r)
		return
	}
	var in struct {
		Init     *InitData `json:"init-data"`
		Evidence struct {
			Primary struct {
				ReportData string `json:"report_data"`
			} `json:"primary_evidence"`
			Additional string `json:"additional_evidence"`
		} `json:"tee-evidence"`
		Runtime struct {
			Nonce string            `json:"nonce"`
			Key   map[string]string `json:"tee-pubkey"`
		} `json:"runtime-data"`
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		k.problem("attest request: %v", err)
		return
	}
	cookie, err := r.Cookie("kbs-session-id")
	if err != nil || k.sessions[cookie.Value] != in.Runtime.Nonce {
		refuse(w, 401, "AttestationError", "no session")
		return
	}
	if want := k.digest(in.Runtime.Nonce, in.Runtime.Key, &in.Evidence.Additional); in.Evidence.Primary.ReportData != want {
		k.problem("primary report data %s, want %s", in.Evidence.Primary.ReportData, want)
	}
	if a := in.Evidence.Additional; a != "" {
		var dev map[string]string
		if err := json.Unmarshal([]byte(a), &dev); err != nil || dev["sampledevice"] != k.digest(in.Runtime.Nonce, in.Runtime.Key, nil) {
			k.problem("device evidence %s, %v", a, err)
		}
	}
	if (in.Init == nil) != (k.initData == nil) || in.Init != nil && *in.Init != *k.initData {
		k.problem("init data %+v", in.Init)
	}
	jwt := testJWT(time.Now(), time.Now().Add(5*time.Minute), cookie.Value)
	raw, _ := json.Marshal(in.Runtime.Key)
	var key PublicKey
	if err := json.Unmarshal(raw, &key); err != nil {
		k.problem("key: %v", err)
	}
	k.keys[jwt] = key
	_, _ = fmt.Fprintf(w, `{"token":%q}`, jwt)
}

func (k *fakeKBS) get(w http.ResponseWriter, r *http.Request) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.gets = append(k.gets, r)
	if k.onGet != nil {
		k.onGet(w, r)
		return
	}
	key, ok := k.keys[strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")]
	if !ok {
		refuse(w, 401, "TokenVerifierError", "Token Verifier error")
		return
	}
	out, err := Encrypt(key, []byte("content of "+r.URL.EscapedPath()))
	if err != nil {
		k.problem("encrypting: %v", err)
	}
	_, _ = w.Write(out)
}

// testJWT is a JWT with a signature nobody can check.
func testJWT(issued, expires time.Time, id string) string {
	claims := fmt.Sprintf(`{"iat":%d,"exp":%d,"jti":%q}`, issued.Unix(), expires.Unix(), id)
	return "eyJhbGciOiJFUzI1NiJ9." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".c2ln"
}

// fakeTEE makes evidence that is just its report data in hex.
type fakeTEE struct {
	devices bool
	err     error
	calls   int
}

func (*fakeTEE) TEE() string { return "sample" }

func (f *fakeTEE) Evidence(_ context.Context, reportData []byte) (json.RawMessage, error) {
	f.calls++
	return json.RawMessage(fmt.Sprintf(`{"report_data":"%x"}`, reportData)), f.err
}

func (f *fakeTEE) AdditionalEvidence(_ context.Context, reportData []byte) (string, error) {
	if !f.devices {
		return "", nil
	}
	return fmt.Sprintf("{\n  \"sampledevice\": \"%x\", \"note\": \"<&>\u2028\"}", reportData), nil
}

var errTEE = errors.New("device on fire")
