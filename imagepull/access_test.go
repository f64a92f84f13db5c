package imagepull

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/sealpod/sealpod/imagepull/policy"
	"github.com/sealpod/sealpod/imagepull/registry"
	"github.com/sealpod/sealpod/imagepull/registry/registrytest"
	"github.com/sealpod/sealpod/podvm"
)

// resources is a KBS in a map. It counts what was asked.
type resources map[string]string

func (r resources) Resource(_ context.Context, uri string) (podvm.Secret, error) {
	if s, ok := r[uri]; ok {
		return podvm.Secret(s), nil
	}
	return nil, podvm.Explain(errors.New("no such resource"), "resource not found")
}

const (
	user     = "alice"
	password = "correct horse"
)

func authFile(key, user, password string) string {
	auth := base64.StdEncoding.EncodeToString([]byte(user + ":" + password + "\n"))
	return fmt.Sprintf(`{"auths":{"other.example":{},%q:{"auth":%q}}}`, key, auth)
}

// basic asks for credentials.
func basic(w http.ResponseWriter, r *http.Request) bool {
	if u, p, _ := r.BasicAuth(); u == user && p == password {
		return false
	}
	w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
	w.WriteHeader(http.StatusUnauthorized)
	return true
}

// bearer is a token service and a registry that trusts its latest token.
type bearer struct {
	host    string
	issued  atomic.Int64
	revoked atomic.Int64 // tokens up to this number are no longer good
	scope   atomic.Value
}

func (b *bearer) hook(w http.ResponseWriter, r *http.Request) bool {
	if r.URL.Path == "/token" {
		if basic(w, r) {
			return true
		}
		b.scope.Store(r.URL.Query().Get("scope"))
		_, _ = fmt.Fprintf(w, `{"token":"t%d"}`, b.issued.Add(1))
		return true
	}
	var n int64
	if _, err := fmt.Sscanf(r.Header.Get("Authorization"), "Bearer t%d", &n); err == nil && n > b.revoked.Load() {
		return false
	}
	w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="test"`, b.host))
	w.WriteHeader(http.StatusUnauthorized)
	return true
}

func TestCredentials(t *testing.T) {
	tests := map[string]struct {
		bearer bool
		file   func(host string) string
		err    error
	}{
		"basic, key is the host":        {file: func(h string) string { return authFile(h, user, password) }},
		"basic, key is the repository":  {file: func(h string) string { return authFile(h+"/team/app", user, password) }},
		"basic, key is a URL":           {file: func(h string) string { return authFile("https://"+h+"/v1/", user, password) }},
		"basic, wrong password":         {file: func(h string) string { return authFile(h, user, "no") }, err: registry.ErrUnauthorized},
		"basic, key of a sibling":       {file: func(h string) string { return authFile(h+"/team/other", user, password) }, err: registry.ErrUnauthorized},
		"basic, nobody":                 {file: func(string) string { return `{"auths":{}}` }, err: registry.ErrUnauthorized},
		"bearer":                        {bearer: true, file: func(h string) string { return authFile(h, user, password) }},
		"bearer, wrong password":        {bearer: true, file: func(h string) string { return authFile(h, user, "no") }, err: registry.ErrUnauthorized},
		"credentials file is not JSON":  {file: func(string) string { return "password" }, err: registry.ErrAuthFile},
		"credentials file has no auths": {file: func(string) string { return "{}" }, err: registry.ErrAuthFile},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			b := &bearer{host: m.Host}
			m.Push(t, "team/app", "1", twoLayers(t))
			m.Hook(basic)
			if tt.bearer {
				m.Hook(b.hook)
			}
			m.deps.Config.AuthURI = "kbs:///default/credential/test"
			m.deps.Resources = resources{m.deps.Config.AuthURI: tt.file(m.Host)}
			_, err := m.puller(t).Pull(deadline(t), m.ref("team/app:1"), m.bundle("c"))
			if !errors.Is(err, tt.err) {
				t.Fatalf("Pull: %v; want %v", err, tt.err)
			}
			if errors.Is(tt.err, registry.ErrUnauthorized) {
				wantCause(t, err, "Failed to pull image", "Not authorized")
			}
			if err != nil && strings.Contains(err.Error(), password) {
				t.Errorf("the password is in the error: %v", err)
			}
			if tt.bearer && tt.err == nil && b.scope.Load() != "repository:team/app:pull" {
				t.Errorf("token scope %v", b.scope.Load())
			}
		})
	}
}

func TestExpiredTokenIsRenewedOnce(t *testing.T) {
	m := newMachine(t)
	img := twoLayers(t)
	m.Push(t, "a", "1", img)
	b := &bearer{host: m.Host}
	last := registrytest.Digest(img.Layers[1].Blob)
	m.Hook(func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, last) {
			b.revoked.CompareAndSwap(0, b.issued.Load())
		}
		return b.hook(w, r)
	})
	m.deps.Config.AuthURI = "kbs:///a/b/c"
	m.deps.Resources = resources{"kbs:///a/b/c": authFile(m.Host, user, password)}
	if _, err := m.puller(t).Pull(deadline(t), m.ref("a:1"), m.bundle("c")); err != nil {
		t.Fatal(err)
	}
	if n := b.issued.Load(); n < 2 || n > 3 {
		t.Errorf("%d tokens", n)
	}
}

// TestRedirectCarriesNoCredentials: blobs move to another host, which must not
// learn the password.
func TestRedirectCarriesNoCredentials(t *testing.T) {
	m := newMachine(t)
	img := twoLayers(t)
	m.Push(t, "a", "1", img)
	var leaked atomic.Value
	cdn := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if a := r.Header.Get("Authorization"); a != "" {
			leaked.Store(a)
		}
		for _, l := range img.Layers {
			if strings.HasSuffix(r.URL.Path, registrytest.Digest(l.Blob)) {
				_, _ = w.Write(l.Blob)
			}
		}
	}))
	t.Cleanup(cdn.Close)
	layers := registrytest.Digest(img.Layers[0].Blob) + registrytest.Digest(img.Layers[1].Blob)
	m.Hook(func(w http.ResponseWriter, r *http.Request) bool {
		if basic(w, r) {
			return true
		}
		if !strings.Contains(r.URL.Path, "/blobs/") || !strings.Contains(layers, filepath.Base(r.URL.Path)) {
			return false
		}
		http.Redirect(w, r, cdn.URL+r.URL.Path+"?signature=secret", http.StatusTemporaryRedirect)
		return true
	})
	m.deps.Config.AuthURI = filepath.Join(t.TempDir(), "auth.json")
	if err := os.WriteFile(m.deps.Config.AuthURI, []byte(authFile(m.Host, user, password)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := m.puller(t).Pull(deadline(t), m.ref("a:1"), m.bundle("c")); err != nil {
		t.Fatal(err)
	}
	if a := leaked.Load(); a != nil {
		t.Errorf("the other host saw %v", a)
	}
}

// certificate is the CA of s as PEM.
func certificate(s *httptest.Server) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
}

func TestHTTPSNeedsATrustedCertificateAndNeverFallsBack(t *testing.T) {
	m := newMachine(t)
	s := registrytest.NewTLS(t)
	s.Push(t, "a", "1", twoLayers(t))
	_, err := m.puller(t).Pull(deadline(t), s.Host+"/a:1", m.bundle("c"))
	wantCause(t, err, "certificate of registry", "not trusted")

	trusting := newMachine(t)
	trusting.deps.Config.ExtraRoots = []string{certificate(s.Server)}
	p := trusting.puller(t)
	if _, err := p.Pull(deadline(t), s.Host+"/a:1", trusting.bundle("c")); err != nil {
		t.Error(err)
	}

	plain := registrytest.New(t)
	plain.Push(t, "a", "1", twoLayers(t))
	_, err = p.Pull(deadline(t), plain.Host+"/a:1", trusting.bundle("d"))
	wantCause(t, err, "speaks plain HTTP")
	if n := plain.Seen("GET"); n > 0 {
		t.Errorf("%d requests went out in the clear", n)
	}
}

// signer makes cosign's signatures by hand.
type signer struct{ key *ecdsa.PrivateKey }

func newSigner(t *testing.T) *signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &signer{key}
}

func (s *signer) public(t *testing.T) string {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(s.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

func (s *signer) sign(t *testing.T, m *machine, repo, digest string) {
	t.Helper()
	m.Push(t, repo, strings.Replace(digest, ":", "-", 1)+".sig", &registrytest.Image{
		Config:   registrytest.Object{},
		Manifest: registrytest.Object{"schemaVersion": 2, "mediaType": registrytest.ManifestType},
		Layers:   []registrytest.Layer{s.signature(t, m, repo, digest)},
	})
}

// signature is one entry of a signature manifest.
func (s *signer) signature(t *testing.T, m *machine, repo, digest string) registrytest.Layer {
	t.Helper()
	payload := registrytest.JSON(t, registrytest.Object{"critical": registrytest.Object{
		"identity": registrytest.Object{"docker-reference": m.Host + "/" + repo},
		"image":    registrytest.Object{"docker-manifest-digest": digest},
		"type":     "cosign container image signature",
	}, "optional": nil})
	sum := sha256.Sum256(payload)
	sig, err := ecdsa.SignASN1(rand.Reader, s.key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	return registrytest.Layer{
		Blob: payload, MediaType: "application/vnd.dev.cosign.simplesigning.v1+json",
		Annotations: map[string]string{"dev.cosignproject.cosign/signature": base64.StdEncoding.EncodeToString(sig)},
	}
}

func TestPolicy(t *testing.T) {
	signed := `{"default":[{"type":"reject"}],"transports":{"docker":{"":[{"type":"sigstoreSigned","keyPath":"kbs:///default/cosign/key"}]}}}`
	tests := map[string]struct {
		policy string
		sign   bool
		other  bool // signed with a key the policy does not know
		err    error
	}{
		"none":                   {},
		"accept":                 {policy: `{"default":[{"type":"insecureAcceptAnything"}],"transports":{}}`},
		"reject":                 {policy: `{"default":[{"type":"reject"}],"transports":{}}`, err: policy.ErrRejected},
		"signed as required":     {policy: signed, sign: true},
		"not signed":             {policy: signed, err: policy.ErrRejected},
		"signed by someone else": {policy: signed, sign: true, other: true, err: policy.ErrRejected},
		"malformed":              {policy: `{"default":[]}`, err: policy.ErrInvalid},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			inBothModes(t, func(t *testing.T, m *machine) {
				img := twoLayers(t)
				digest := m.Push(t, "a", "1", img)
				right, used := newSigner(t), newSigner(t)
				if !tt.other {
					used = right
				}
				if tt.sign {
					used.sign(t, m, "a", digest)
				}
				kbs := resources{"kbs:///default/cosign/key": right.public(t), "kbs:///default/policy/1": tt.policy}
				m.deps.Resources = kbs
				if tt.policy != "" {
					m.deps.Config.PolicyURI = "kbs:///default/policy/1"
				}
				_, err := m.puller(t).Pull(deadline(t), m.ref("a:1"), m.bundle("c"))
				if !errors.Is(err, tt.err) {
					t.Fatalf("Pull: %v; want %v", err, tt.err)
				}
				if err == nil {
					return
				}
				if errors.Is(tt.err, policy.ErrRejected) {
					wantCause(t, err, "Failed to pull image", "Image policy rejected: Denied by policy")
				}
				m.wantNothingLeft(t)
				if n := m.Seen("GET /v2/a/blobs/" + registrytest.Digest(img.Layers[0].Blob)); n > 0 {
					t.Error("a layer of a rejected image was fetched")
				}
			})
		})
	}
}

// TestPolicyRunsOnCachedImages: the policy changes after a first pull, and the
// change counts at once.
func TestPolicyRunsOnCachedImages(t *testing.T) {
	m := newMachine(t)
	m.Push(t, "a", "1", twoLayers(t))
	kbs := resources{"kbs:///a/b/c": `{"default":[{"type":"insecureAcceptAnything"}],"transports":{}}`}
	m.deps.Resources, m.deps.Config.PolicyURI = kbs, "kbs:///a/b/c"
	p := m.puller(t)
	if _, err := p.Pull(deadline(t), m.ref("a:1"), m.bundle("c1")); err != nil {
		t.Fatal(err)
	}
	kbs["kbs:///a/b/c"] = `{"default":[{"type":"reject"}],"transports":{}}`
	if _, err := p.Pull(deadline(t), m.ref("a:1"), m.bundle("c2")); !errors.Is(err, policy.ErrRejected) {
		t.Errorf("Pull: %v", err)
	}
	if len(mustGlob(t, filepath.Join(m.work, "layers", "*"))) != 2 {
		t.Error("a refused pull removed layers of an image in use")
	}
}

func TestUnreadableSettingsNameTheURI(t *testing.T) {
	for _, uri := range []string{"kbs:///no/such/thing", "file:///no/such/file", "/no/such/file", "https://example.test/x"} {
		for name, set := range map[string]func(*Config){
			"policy": func(c *Config) { c.PolicyURI = uri },
			"auth":   func(c *Config) { c.AuthURI = uri },
			"rules":  func(c *Config) { c.Registries, c.RegistriesURI = nil, uri },
		} {
			m := newMachine(t)
			set(&m.deps.Config)
			m.deps.Resources = resources{}
			_, err := m.puller(t).Pull(deadline(t), m.ref("a:1"), m.bundle("c"))
			wantCause(t, err, "Failed to pull image", uri+" cannot be read")
			if err == nil {
				t.Error(name)
			}
		}
	}
}

func TestRegistriesFileFromTheKBS(t *testing.T) {
	m := newMachine(t)
	m.Push(t, "a", "1", twoLayers(t))
	m.deps.Config.Registries, m.deps.Config.RegistriesURI = nil, "kbs:///a/b/c"
	m.deps.Resources = resources{"kbs:///a/b/c": fmt.Sprintf("[[registry]]\nprefix='example.test'\nlocation=%q\ninsecure=true\nnonsense=1\n", m.Host)}
	if _, err := m.puller(t).Pull(deadline(t), "example.test/a:1", m.bundle("c")); err != nil {
		t.Error(err)
	}
}

func TestSecretsDoNotPrint(t *testing.T) {
	c := registry.Credentials{Username: user, Password: podvm.Secret(password)}
	b, err := json.Marshal(c)
	if err != nil || strings.Contains(fmt.Sprintf("%v %+v %s", c, c, b), password) {
		t.Errorf("%v %s %v", c, b, err)
	}
}
