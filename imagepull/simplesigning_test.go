package imagepull

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sealpod/sealpod/imagepull/policy"
	"github.com/sealpod/sealpod/imagepull/registry"
	"github.com/sealpod/sealpod/imagepull/registry/registrytest"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/testenv"
)

// gnupg is a key of a real gpg, in a home of its own.
type gnupg struct {
	home, fingerprint string
	public            []byte // armored
}

func newGnuPG(t *testing.T, algorithm string) *gnupg {
	t.Helper()
	// The agent's socket is in here, and its path must be short.
	home, err := os.MkdirTemp("", "gpg")
	if err != nil {
		t.Fatal(err)
	}
	g := &gnupg{home: home}
	t.Cleanup(func() {
		_, _ = g.command(t, "gpgconf", "--kill", "all").Output()
		if err := os.RemoveAll(home); err != nil {
			t.Error(err)
		}
	})
	g.run(t, "gpg", "--quick-generate-key", "Acme <acme@example.com>", algorithm, "sign", "0")
	for _, line := range strings.Split(string(g.run(t, "gpg", "--with-colons", "--list-keys")), "\n") {
		if f := strings.Split(line, ":"); f[0] == "fpr" && g.fingerprint == "" {
			g.fingerprint = f[9]
		}
	}
	g.public = g.run(t, "gpg", "--armor", "--export")
	return g
}

func (g *gnupg) command(t *testing.T, program string, args ...string) *exec.Cmd {
	t.Helper()
	if program == "gpg" {
		args = append([]string{"--batch", "--yes", "--passphrase", "", "--pinentry-mode", "loopback"}, args...)
	}
	cmd := exec.Command(testenv.Tool(t, program), args...) //nolint:noctx // also used when the test's context has ended
	cmd.Env = append(os.Environ(), "GNUPGHOME="+g.home)
	return cmd
}

func (g *gnupg) run(t *testing.T, program string, args ...string) []byte {
	t.Helper()
	var stderr strings.Builder
	cmd := g.command(t, program, args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", program, args, err, stderr.String())
	}
	return out
}

// TestSkopeoSignatures: what skopeo signs with a real gpg key and keeps beside
// a real registry, a guest accepts, and nothing else.
func TestSkopeoSignatures(t *testing.T) {
	testenv.Tool(t, "skopeo")
	m := newMachine(t)
	host := registrytest.Debian(t)
	m.deps.Config.Registries = &registry.Rules{Registry: []registry.Rule{{Prefix: host, Location: host, Insecure: true}}}
	owner, other := newGnuPG(t, "rsa2048"), newGnuPG(t, "rsa2048")
	dir := t.TempDir()
	store, layout := filepath.Join(dir, "sigs"), filepath.Join(dir, "layout")
	d := filepath.Join(dir, "registries.d")
	if err := os.MkdirAll(d, 0o700); err != nil {
		t.Fatal(err)
	}
	conf := fmt.Sprintf("docker:\n  %s:\n    sigstore: file://%s\n    sigstore-staging: file://%s\n", host, store, store)
	if err := os.WriteFile(filepath.Join(d, "test.yaml"), []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	sign := func(g *gnupg, source, target string) {
		t.Helper()
		g.run(t, "skopeo", "--insecure-policy", "--registries.d", d, "copy", "--dest-tls-verify=false", "--sign-by", g.fingerprint, "oci:"+layout+":"+source, "docker://"+host+"/"+target)
	}
	writeLayout(t, layout, "one", twoLayers(t))
	sign(owner, "one", "acme/app:1")
	writeLayout(t, filepath.Join(dir, "second"), "two", registrytest.NewImage(registrytest.Files(t, map[string]string{"a": "two"})))
	layout = filepath.Join(dir, "second")
	sign(other, "two", "acme/app:2")

	m.deps.Config.SigstoreConfig = conf
	m.deps.Config.PolicyURI = "kbs:///default/policy/1"
	rule := `{"default":[{"type":"signedBy","keyType":"GPGKeys","keyPath":"kbs:///default/gpg/acme"}],"transports":{}}`
	kbs := resources{"kbs:///default/policy/1": rule, "kbs:///default/gpg/acme": string(owner.public)}
	m.deps.Resources = kbs
	p, pulls := m.puller(t), 0
	pull := func(name string, want error, says string) {
		t.Helper()
		pulls++
		_, err := p.Pull(deadline(t), host+"/"+name, m.bundle(fmt.Sprint(pulls)))
		if !errors.Is(err, want) || want == nil && err != nil {
			t.Errorf("%s: %v; want %v", name, err, want)
		}
		wantCause(t, err, says)
	}
	pull("acme/app:1", nil, "")
	pull("acme/app:2", policy.ErrRejected, "is by a key the rule asks for")

	digest := func(name string) string {
		t.Helper()
		return strings.TrimSpace(string(owner.run(t, "skopeo", "inspect", "--tls-verify=false", "--format", "{{.Digest}}", "docker://"+host+"/"+name)))
	}
	one, two := digest("acme/app:1"), digest("acme/app:2")
	pull("acme/app@"+one, nil, "")

	at := func(digest string) string {
		return filepath.Join(store, "acme/app@"+strings.Replace(digest, ":", "=", 1))
	}
	good, err := os.ReadFile(filepath.Join(at(one), "signature-1"))
	if err != nil {
		t.Fatal(err)
	}
	// The good signature, laid beside an image it was not made for.
	if err := os.WriteFile(filepath.Join(at(two), "signature-2"), good, 0o600); err != nil {
		t.Fatal(err)
	}
	pull("acme/app:2", policy.ErrRejected, "is for another image")
	// The image under another tag or in another repository.
	for _, name := range []string{"acme/app:latest", "acme/copy:1"} {
		owner.run(t, "skopeo", "--insecure-policy", "copy", "--remove-signatures", "--src-tls-verify=false", "--dest-tls-verify=false", "docker://"+host+"/acme/app:1", "docker://"+host+"/"+name)
	}
	pull("acme/app:latest", policy.ErrRejected, "signed for "+host+"/acme/app:1, not for "+host+"/acme/app:latest")
	if err := os.CopyFS(filepath.Join(store, "acme/copy@"+strings.Replace(one, ":", "=", 1)), os.DirFS(at(one))); err != nil {
		t.Fatal(err)
	}
	pull("acme/copy:1", policy.ErrRejected, "signed for "+host+"/acme/app:1")
	// The tag moves to an image that is not signed.
	owner.run(t, "skopeo", "--insecure-policy", "copy", "--remove-signatures", "--src-tls-verify=false", "--dest-tls-verify=false", "docker://"+host+"/acme/app:2", "docker://"+host+"/acme/app:1")
	pull("acme/app:1", policy.ErrRejected, "")
	// The signature is changed, then gone.
	bad := append([]byte{}, good...)
	bad[len(bad)-40] ^= 1
	if err := os.WriteFile(filepath.Join(at(one), "signature-1"), bad, 0o600); err != nil {
		t.Fatal(err)
	}
	pull("acme/app@"+one, policy.ErrRejected, "")
	if err := os.Remove(filepath.Join(at(one), "signature-1")); err != nil {
		t.Fatal(err)
	}
	pull("acme/app@"+one, policy.ErrRejected, "no simple-signing signature found")
	// A weak hash, and a key that its owner has given up.
	claim := filepath.Join(dir, "claim")
	if err := os.WriteFile(claim, []byte(fmt.Sprintf(`{"critical":{"identity":{"docker-reference":"%s/acme/app:1"},"image":{"docker-manifest-digest":"%s"},"type":"atomic container signature"},"optional":{}}`, host, one)), 0o600); err != nil {
		t.Fatal(err)
	}
	resign := func(args ...string) {
		t.Helper()
		owner.run(t, "gpg", append(args, "--output", filepath.Join(at(one), "signature-1"), "--sign", claim)...)
	}
	resign()
	pull("acme/app@"+one, nil, "")
	resign("--digest-algo", "SHA1")
	pull("acme/app@"+one, policy.ErrRejected, "weak algorithm: SHA-1")
	resign("--compress-algo", "none")
	pull("acme/app@"+one, nil, "")
	// A subkey, which gpg prefers, once the guest has been told.
	owner.run(t, "gpg", "--quick-add-key", owner.fingerprint, "ed25519", "sign", "0")
	resign()
	pull("acme/app@"+one, policy.ErrRejected, "is by a key the rule asks for")
	kbs["kbs:///default/gpg/acme"] = string(owner.run(t, "gpg", "--export"))
	pull("acme/app@"+one, nil, "")
	revoke := filepath.Join(owner.home, "openpgp-revocs.d", owner.fingerprint+".rev")
	text, err := os.ReadFile(revoke)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(revoke, []byte(strings.Replace(string(text), ":-----BEGIN", "-----BEGIN", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	owner.run(t, "gpg", "--import", revoke)
	kbs["kbs:///default/gpg/acme"] = string(owner.run(t, "gpg", "--armor", "--export"))
	pull("acme/app@"+one, policy.ErrRejected, "the signing key is revoked")
}

// TestSkopeoDecidesAlike signs one image under many names and asks skopeo and
// the guest about it under every identity.
func TestSkopeoDecidesAlike(t *testing.T) {
	skopeo := testenv.Tool(t, "skopeo")
	host := registrytest.Debian(t)
	g := newGnuPG(t, "nistp256")
	dir := t.TempDir()
	file := func(name, text string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	conf := "default-docker:\n  sigstore: file://" + dir + "/sigs\n"
	file("registries.d/test.yaml", conf)
	key := file("key.asc", string(g.public))
	writeLayout(t, filepath.Join(dir, "layout"), "one", twoLayers(t))
	g.run(t, skopeo, "--insecure-policy", "copy", "--dest-tls-verify=false", "oci:"+dir+"/layout:one", "docker://"+host+"/acme/app:1")
	manifest := file("manifest.json", string(g.run(t, skopeo, "inspect", "--raw", "--tls-verify=false", "docker://"+host+"/acme/app:1")))
	digest := strings.TrimSpace(string(g.run(t, skopeo, "manifest-digest", manifest)))
	signature := file("sigs/acme/app@"+strings.Replace(digest, ":", "=", 1)+"/signature-1", "")

	identities := []string{
		"", `{"type":"matchExact"}`, `{"type":"matchRepoDigestOrExact"}`, `{"type":"matchRepository"}`,
		`{"type":"exactReference","dockerReference":"other.io/x:1"}`, `{"type":"exactRepository","dockerRepository":"other.io/x"}`,
		fmt.Sprintf(`{"type":"remapIdentity","prefix":%q,"signedPrefix":"other.io"}`, host),
		fmt.Sprintf(`{"type":"remapIdentity","prefix":%q,"signedPrefix":"other.io/x"}`, host+"/acme/app"),
		fmt.Sprintf(`{"type":"remapIdentity","prefix":%q,"signedPrefix":"other.io/x"}`, host+"/acme/ap"),
	}
	allowed, denied := 0, 0
	for _, signed := range []string{host + "/acme/app:1", host + "/acme/app", "other.io/x:1", "other.io/acme/app:1", host + "/acme/app@" + digest} {
		g.run(t, skopeo, "standalone-sign", "--output", signature, manifest, signed, g.fingerprint)
		for _, identity := range identities {
			rule := fmt.Sprintf(`{"type":"signedBy","keyType":"GPGKeys","keyPath":%q`, key)
			if identity != "" {
				rule += `,"signedIdentity":` + identity
			}
			text := `{"default":[` + rule + `}],"transports":{}}`
			m := newMachine(t)
			m.deps.Config.Registries = &registry.Rules{Registry: []registry.Rule{{Prefix: host, Location: host, Insecure: true}}}
			m.deps.Config.Policy, m.deps.Config.SigstoreConfig = text, conf
			p := m.puller(t)
			for _, name := range []string{host + "/acme/app:1", host + "/acme/app@" + digest} {
				target := "dir:" + t.TempDir()
				theirs := g.command(t, skopeo, "--policy", file("policy.json", text), "--registries.d", filepath.Join(dir, "registries.d"), "copy", "--src-tls-verify=false", "docker://"+name, target).Run() == nil
				ours, err := p.DryRun(deadline(t), name)
				if err != nil {
					t.Fatal(err)
				}
				if ours.Pullable() != theirs {
					t.Errorf("%s signed as %s, identity %s: skopeo says %t\n%s", name, signed, identity, theirs, ours)
				}
				if theirs {
					allowed++
				} else {
					denied++
				}
			}
		}
	}
	if allowed < 15 || denied < 40 {
		t.Errorf("%d allowed and %d denied: the cases do not test what they should", allowed, denied)
	}
}

// TestLookasideOverHTTPS: the store has a certificate of the extra roots, and
// whatever it answers is bounded.
func TestLookasideOverHTTPS(t *testing.T) {
	g := newGnuPG(t, "ed25519")
	m := newMachine(t)
	img := twoLayers(t)
	digest := m.Push(t, "acme/app", "1", img)
	claim := filepath.Join(t.TempDir(), "claim")
	text := fmt.Sprintf(`{"critical":{"identity":{"docker-reference":"%s/acme/app:1"},"image":{"docker-manifest-digest":"%s"},"type":"atomic container signature"},"optional":{}}`, m.Host, digest)
	if err := os.WriteFile(claim, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	good := g.run(t, "gpg", "--output", "-", "--sign", claim)
	dir := "/sigs/acme/app@" + strings.Replace(digest, ":", "=", 1)
	for name, tt := range map[string]struct {
		answer func(w http.ResponseWriter, n string)
		is     error
		says   string
	}{
		"the third is good": {func(w http.ResponseWriter, n string) {
			switch n {
			case "1":
				_, _ = w.Write([]byte("junk"))
			case "2":
				_, _ = w.Write(make([]byte, policy.MaxPayload+1))
			case "3":
				_, _ = w.Write(good)
			default:
				w.WriteHeader(http.StatusNotFound)
			}
		}, nil, ""},
		"none":         {func(w http.ResponseWriter, _ string) { w.WriteHeader(http.StatusNotFound) }, policy.ErrRejected, "no simple-signing signature found"},
		"no end":       {func(w http.ResponseWriter, _ string) { _, _ = w.Write([]byte("junk")) }, podvm.ErrTooLarge, "more than 128 signatures"},
		"out of order": {func(w http.ResponseWriter, _ string) { w.WriteHeader(http.StatusServiceUnavailable) }, registry.ErrUnavailable, "could not be fetched"},
		"redirected to plain HTTP": {func(w http.ResponseWriter, _ string) {
			w.Header().Set("Location", m.URL)
			w.WriteHeader(http.StatusFound)
		}, policy.ErrRejected, "could not be fetched"},
	} {
		t.Run(name, func(t *testing.T) {
			store := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				n, ok := strings.CutPrefix(r.URL.Path, dir+"/signature-")
				if !ok {
					t.Errorf("asked for %s", r.URL.Path)
				}
				tt.answer(w, n)
			}))
			t.Cleanup(store.Close)
			m := *m
			m.bundles, m.work = t.TempDir(), filepath.Join(t.TempDir(), "work")
			m.deps.Config.WorkDir = m.work
			m.deps.Config.ExtraRoots = []string{certificate(store)}
			m.deps.Config.SigstoreConfigURI = "kbs:///default/sigstore/1"
			m.deps.Config.Policy = `{"default":[{"type":"signedBy","keyType":"GPGKeys","keyPath":"kbs:///default/gpg/acme"}],"transports":{}}`
			m.deps.Resources = resources{"kbs:///default/gpg/acme": string(g.public), "kbs:///default/sigstore/1": "default-docker:\n  lookaside: " + store.URL + "/sigs/\n"}
			_, err := m.puller(t).Pull(deadline(t), m.ref("acme/app:1"), m.bundle("c"))
			if !errors.Is(err, tt.is) {
				t.Errorf("Pull: %v; want %v", err, tt.is)
			}
			wantCause(t, err, tt.says)
		})
	}
}

func TestSignedByWithoutAStore(t *testing.T) {
	key := string(newGnuPG(t, "rsa3072").public)
	for conf, says := range map[string]string{
		"":                   "sigstore_config names no lookaside for ",
		"docker: {}":         "sigstore_config names no lookaside for ",
		"default-docker: []": "the sigstore configuration is not usable: default-docker: line 1: not a mapping",
		"default-docker: {lookaside: \"ftp://x/y\"}": "want an http:// or https:// URL or file:///PATH",
	} {
		t.Run(conf, func(t *testing.T) {
			m := newMachine(t)
			m.Push(t, "a", "1", twoLayers(t))
			m.deps.Resources = resources{"kbs:///k/k/k": key}
			m.deps.Config.Policy = `{"default":[{"type":"signedBy","keyType":"GPGKeys","keyPath":"kbs:///k/k/k"}],"transports":{}}`
			m.deps.Config.SigstoreConfig = conf
			_, err := m.puller(t).Pull(deadline(t), m.ref("a:1"), m.bundle("c"))
			if !errors.Is(err, policy.ErrRejected) {
				t.Errorf("Pull: %v", err)
			}
			wantCause(t, err, "Image policy rejected: Denied by policy", says)
		})
	}
}
