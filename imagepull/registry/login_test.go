package registry

import (
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sealpod/sealpod/imagepull/registry/registrytest"
	"github.com/sealpod/sealpod/podvm"
)

const (
	user     = "alice"
	password = "correct horse"
)

var alice = Credentials{Username: user, Password: podvm.Secret(password)}

// gate is a registry that wants tokens of its own service.
type gate struct {
	*registrytest.Server
	realm   string // "" for the registry itself
	issued  atomic.Int64
	revoked atomic.Int64                                 // tokens up to this number are refused
	token   func(w http.ResponseWriter, r *http.Request) // replaces the service
	mu      sync.Mutex
	queries []string
}

func newGate(t testing.TB) *gate {
	g := &gate{Server: registrytest.New(t)}
	g.Push(t, "team/app", "1", registrytest.NewImage())
	g.Push(t, "team/other", "1", registrytest.NewImage())
	g.Hook(g.check)
	return g
}

func (g *gate) check(w http.ResponseWriter, r *http.Request) bool {
	if r.URL.Path == "/token" {
		g.mu.Lock()
		g.queries = append(g.queries, r.URL.RawQuery)
		token := g.token
		g.mu.Unlock()
		if token != nil {
			token(w, r)
			return true
		}
		if u, p, ok := r.BasicAuth(); ok && (u != user || p != password) {
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		fmt.Fprintf(w, `{"token":"t%d","expires_in":300}`, g.issued.Add(1))
		return true
	}
	var n int64
	if _, err := fmt.Sscanf(r.Header.Get("Authorization"), "Bearer t%d", &n); err == nil && n > g.revoked.Load() {
		return false
	}
	g.mu.Lock()
	realm := g.realm
	g.mu.Unlock()
	if realm == "" {
		realm = "http://" + g.Host + "/token"
	}
	w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm=%q,service="a & b",scope="repository:other/secret:push"`, realm))
	w.WriteHeader(http.StatusUnauthorized)
	return true
}

func (g *gate) resolve(t testing.TB, c *Client, image string, cred Credentials) error {
	t.Helper()
	repo, err := open(t, c, g.Host+"/"+image, cred)
	if err == nil {
		_, err = repo.Resolve(t.Context())
	}
	return err
}

func TestTokenIsSharedByPullsOfARepository(t *testing.T) {
	g := newGate(t)
	c := client(t, nil)
	for range 3 {
		if err := g.resolve(t, c, "team/app:1", alice); err != nil {
			t.Fatal(err)
		}
	}
	if g.issued.Load() != 1 || g.Seen("GET /v2/") != 1+3*2 {
		t.Errorf("%d tokens, %d requests", g.issued.Load(), g.Seen("GET /v2/"))
	}
	// The scope is ours, whatever the registry asks for.
	if want := "scope=repository%3Ateam%2Fapp%3Apull&service=a+%26+b"; g.queries[0] != want {
		t.Errorf("query %q, want %q", g.queries[0], want)
	}
	for name, try := range map[string]func() error{
		"other repository": func() error { return g.resolve(t, c, "team/other:1", alice) },
		"nobody":           func() error { return g.resolve(t, c, "team/app:1", Credentials{}) },
		"new client":       func() error { return g.resolve(t, client(t, nil), "team/app:1", alice) },
	} {
		before := g.issued.Load()
		if err := try(); err != nil || g.issued.Load() != before+1 {
			t.Errorf("%s: %v, %d tokens more", name, err, g.issued.Load()-before)
		}
	}
	wrong := Credentials{Username: user, Password: podvm.Secret("wrong")}
	err := g.resolve(t, c, "team/app:1", wrong)
	if !errors.Is(err, ErrUnauthorized) || !strings.Contains(podvm.Cause(err), "Not authorized: token service "+g.Host+" of registry "+g.Host+" refused login for "+g.Host+"/team/app") {
		t.Errorf("with the wrong password: %v", err)
	}
}

func TestRevokedTokenIsRenewedOnceForAll(t *testing.T) {
	g := newGate(t)
	blob := g.PutBlob(t, "team/app", []byte("x"))
	repo, err := open(t, client(t, nil), g.Host+"/team/app:1", alice)
	if err != nil {
		t.Fatal(err)
	}
	g.revoked.Store(1)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if _, err := repo.small(t.Context(), Descriptor{Digest: blob, Size: 1}, 1); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if n := g.issued.Load(); n != 2 {
		t.Errorf("%d tokens", n)
	}
	// When new tokens do not help either, that is the end of it.
	g.revoked.Store(1000)
	before := g.Seen(blob)
	if _, err := repo.small(t.Context(), Descriptor{Digest: blob, Size: 1}, 1); !errors.Is(err, ErrUnauthorized) || g.Seen(blob) != before+2 {
		t.Errorf("%v after %d requests", err, g.Seen(blob)-before)
	}
}

func TestTokenIsRenewedBeforeItExpires(t *testing.T) {
	g := newGate(t)
	repo, err := open(t, client(t, nil), g.Host+"/team/app:1", alice)
	if err != nil {
		t.Fatal(err)
	}
	in := repo.http.Transport.(*sessionAuth).session
	if left := time.Until(in.good); left > 270*time.Second || left < 200*time.Second {
		t.Errorf("a token of 300 s is good for %v", left)
	}
	in.good = time.Now().Add(-time.Second)
	before := g.Seen("manifests")
	if _, err := repo.Resolve(t.Context()); err != nil || g.issued.Load() != 2 || g.Seen("manifests") != before+1 {
		t.Errorf("%v, %d tokens, %d requests", err, g.issued.Load(), g.Seen("manifests")-before)
	}
}

// TestTokenThatExpiresDuringALongPull: the blob is read on.
func TestTokenThatExpiresDuringALongPull(t *testing.T) {
	g := newGate(t)
	blob := randomBytes(200 << 10)
	d := Descriptor{Digest: g.PutBlob(t, "team/app", blob), Size: int64(len(blob))}
	var served atomic.Int64
	g.Hook(func(w http.ResponseWriter, r *http.Request) bool {
		if g.check(w, r) {
			return true
		}
		if n := served.Add(1); n == 10 || n == 30 {
			g.revoked.Store(g.issued.Load())
		}
		return false
	})
	c := client(t, nil)
	c.ranging = smallRanging
	repo, err := open(t, c, g.Host+"/team/app:1", alice)
	if err != nil {
		t.Fatal(err)
	}
	body, err := repo.Blob(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if got, err := io.ReadAll(body); err != nil || string(got) != string(blob) || g.issued.Load() < 3 {
		t.Errorf("%d bytes, %v, %d tokens", len(got), err, g.issued.Load())
	}
}

// TestLoginOfOddRegistries that answer GET /v2/ in their own ways.
func TestLoginOfOddRegistries(t *testing.T) {
	basic := func(w http.ResponseWriter, r *http.Request) bool {
		if u, p, _ := r.BasicAuth(); u == user && p == password {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Negotiate, Basic realm="x"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
	tests := map[string]struct {
		first  func(w http.ResponseWriter) // to GET /v2/
		second func(w http.ResponseWriter, r *http.Request) bool
		cred   Credentials
		err    error
	}{
		"no such path":           {first: func(w http.ResponseWriter) { w.WriteHeader(http.StatusNotFound) }},
		"forbidden":              {first: func(w http.ResponseWriter) { w.WriteHeader(http.StatusForbidden) }},
		"only images want basic": {first: func(http.ResponseWriter) {}, second: basic, cred: alice},
		"nobody and basic":       {first: func(http.ResponseWriter) {}, second: basic, err: ErrUnauthorized},
		"wrong password":         {first: func(http.ResponseWriter) {}, second: basic, cred: Credentials{user, podvm.Secret("no")}, err: ErrUnauthorized},
		"challenge nobody knows": {first: func(w http.ResponseWriter) {
			w.Header().Set("WWW-Authenticate", "Negotiate")
			w.WriteHeader(http.StatusUnauthorized)
		}, cred: alice},
		"down for good": {first: func(w http.ResponseWriter) { w.WriteHeader(http.StatusBadGateway) }, err: ErrUnavailable},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			g := newGate(t)
			g.Hook(func(w http.ResponseWriter, r *http.Request) bool {
				if r.URL.Path == "/v2/" {
					if r.Header.Get("Authorization") != "" {
						t.Error("credentials nobody asked for")
					}
					tt.first(w)
					return true
				}
				return tt.second != nil && tt.second(w, r)
			})
			if err := g.resolve(t, client(t, nil), "team/app:1", tt.cred); !errors.Is(err, tt.err) {
				t.Errorf("%v, want %v", err, tt.err)
			}
		})
	}
}

func TestOnlyImagesWantTokens(t *testing.T) {
	g := newGate(t)
	g.Hook(func(w http.ResponseWriter, r *http.Request) bool { return r.URL.Path != "/v2/" && g.check(w, r) })
	if err := g.resolve(t, client(t, nil), "team/app:1", alice); err != nil || g.issued.Load() != 1 {
		t.Errorf("%v, %d tokens", err, g.issued.Load())
	}
}

// TestHostileTokenService lists what a realm, or what is there, may try.
func TestHostileTokenService(t *testing.T) {
	says := func(text string) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, text) }
	}
	tests := map[string]struct {
		realm string
		token func(w http.ResponseWriter, r *http.Request)
		is    error
		cause string
	}{
		"cloud metadata":        {realm: "http://169.254.169.254/metadata/identity/oauth2/token", is: errLocal, cause: "address of this machine or its link"},
		"our own services":      {realm: "http://localhost:8006/cdh/resource/default/key/1", is: errLocal, cause: "address of this machine or its link"},
		"file":                  {realm: "file:///etc/shadow", is: errRealm, cause: "names a token service that is no URL"},
		"no host":               {realm: "/token", is: errRealm, cause: "names a token service that is no URL"},
		"another scheme":        {realm: "ftp://x.test/", is: errScheme, cause: "insecure place"},
		"password in the realm": {realm: "http://a:b@x.test/", is: errRealm, cause: "names a token service that is no URL"},
		"not a URL":             {realm: "http://x.test/%zz", is: errRealm, cause: "names a token service that is no URL"},
		"refuses":               {token: func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }, is: ErrUnauthorized, cause: "Not authorized: token service"},
		"down":                  {token: func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) }, is: ErrUnavailable, cause: "answered 502"},
		"not JSON":              {token: says("<html>"), is: errToken, cause: "sent no token"},
		"empty answer":          {token: says(""), is: errToken, cause: "sent no token"},
		"empty token":           {token: says(`{"token":""}`), is: errToken, cause: "sent no token"},
		"token of two lines":    {token: says(`{"token":"a\r\nX-Evil: 1"}`), is: errToken, cause: "sent no token"},
		"token of a megabyte":   {token: says(`{"token":"` + strings.Repeat("x", 1<<20) + `"}`), is: podvm.ErrTooLarge, cause: "too large"},
		"answer without end": {token: func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, "{")
			flush(w)
			<-r.Context().Done()
		}, is: ErrUnavailable, cause: "sends too little"},
		"no answer": {token: func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, is: ErrUnavailable, cause: "check the network"},
		"redirects without end": {token: func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, r.URL.String(), http.StatusFound)
		}, is: errRedirect, cause: "redirects in a loop"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			g := newGate(t)
			g.realm, g.token = tt.realm, tt.token
			c := client(t, func(o *Options) { o.Stall = 100 * time.Millisecond })
			err := g.resolve(t, c, "team/app:1", alice)
			if !errors.Is(err, tt.is) || !strings.Contains(podvm.Cause(err), tt.cause) || !strings.Contains(podvm.Cause(err), g.Host+"/team/app") {
				t.Errorf("%v", err)
			}
			if err != nil && (strings.Contains(err.Error(), password) || strings.Contains(err.Error(), "X-Evil")) {
				t.Errorf("the error tells too much: %v", err)
			}
			g.mu.Lock()
			g.realm, g.token = "", nil
			g.mu.Unlock()
			if err := g.resolve(t, client(t, nil), "team/app:1", alice); err != nil {
				t.Errorf("afterwards: %v", err)
			}
			c.Close()
		})
	}
}

// TestTokenServiceOfASecureRegistryIsSecure: neither realm nor redirect leads
// to plain HTTP, and no password leaves.
func TestTokenServiceOfASecureRegistryIsSecure(t *testing.T) {
	var heard atomic.Int64
	plain := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { heard.Add(1) }))
	t.Cleanup(plain.Close)
	s := registrytest.NewTLS(t)
	c := client(t, func(o *Options) {
		o.Roots = []string{string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))}
	})
	for name, realm := range map[string]string{"realm": plain.URL, "redirect": s.URL + "/token"} {
		s.Hook(func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path == "/token" {
				http.Redirect(w, r, plain.URL, http.StatusTemporaryRedirect)
				return true
			}
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm=%q`, realm))
			w.WriteHeader(http.StatusUnauthorized)
			return true
		})
		ref, _ := ParseReference(s.Host + "/team/app:1")
		_, err := c.Open(t.Context(), Candidate{Reference: ref}, alice)
		if !errors.Is(err, errScheme) && !errors.Is(err, errRedirect) || !strings.Contains(podvm.Cause(err), "insecure place") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if heard.Load() > 0 {
		t.Error("something went out in the clear")
	}
}

// TestCredentialsStayWithTheirHost: other ports, other names and redirects of
// registry and token service see none.
func TestCredentialsStayWithTheirHost(t *testing.T) {
	var leaked atomic.Value
	blob := randomBytes(100 << 10)
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if a := r.Header.Get("Authorization") + r.Header.Get("Cookie"); a != "" {
			leaked.Store(r.URL.Path + ": " + a)
		}
		if r.URL.Path == "/moved-token" {
			_, _ = io.WriteString(w, `{"token":"t99"}`)
			return
		}
		registrytest.ServeBlob(w, r, blob)
	}))
	t.Cleanup(other.Close)
	g := newGate(t)
	d := Descriptor{Digest: registrytest.Digest(blob), Size: int64(len(blob))}
	g.token = func(w http.ResponseWriter, r *http.Request) {
		if _, _, ok := r.BasicAuth(); !ok {
			t.Error("the token service got no credentials")
		}
		http.SetCookie(w, &http.Cookie{Name: "a", Value: "b"})
		http.Redirect(w, r, other.URL+"/moved-token", http.StatusTemporaryRedirect)
	}
	g.Hook(func(w http.ResponseWriter, r *http.Request) bool {
		if g.check(w, r) {
			return true
		}
		if strings.Contains(r.URL.Path, d.Digest) {
			http.Redirect(w, r, other.URL+"/blob", http.StatusTemporaryRedirect)
			return true
		}
		return false
	})
	c := client(t, nil)
	c.ranging = smallRanging
	repo, err := open(t, c, g.Host+"/team/app:1", alice)
	if err != nil {
		t.Fatal(err)
	}
	body, err := repo.Blob(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if got, err := io.ReadAll(body); err != nil || string(got) != string(blob) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if a := leaked.Load(); a != nil {
		t.Errorf("the other host saw %v", a)
	}
}

func TestManyLoginsAreForgotten(t *testing.T) {
	c := client(t, nil)
	for i := range 3 * maxLogins {
		c.login(fmt.Sprint(i))
	}
	if len(c.logins) != maxLogins {
		t.Errorf("%d logins", len(c.logins))
	}
}

func TestSecretsOfALoginDoNotPrint(t *testing.T) {
	in := &session{login: newLogin(), cred: alice}
	in.token = podvm.Secret("t-secret")
	if s := fmt.Sprintf("%v %+v %v %+v", in.cred, in.cred, in.token, &in.token); strings.Contains(s, password) || strings.Contains(s, "t-secret") {
		t.Error(s)
	}
}

func FuzzToken(f *testing.F) {
	f.Add([]byte(`{"token":"a","access_token":"b","expires_in":300}`))
	f.Add([]byte(`{"access_token":"b","expires_in":1e300}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		token, life, err := parseToken(raw)
		if err == nil && (len(token) == 0 || strings.ContainsAny(string(token), "\r\n \x00") || life <= 0 || life > maxTokenLife) {
			t.Errorf("%d bytes for %v", len(token), life)
		}
	})
}
