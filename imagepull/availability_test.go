package imagepull

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/sealpod/sealpod/imagepull/policy"
	"github.com/sealpod/sealpod/imagepull/registry/registrytest"
)

// signedImage is an image, who signed it, and where what is.
type signedImage struct {
	*machine
	digest               string
	key                  *signer
	tag, payload         string // paths of the classic signature
	list, entry, content string // of the list of referrers, the bundle's manifest, and the bundle
	index                []byte // the list
}

// TestSignaturesThatCannotBeHad: an image is used only if a signature was seen
// that is good. That one may be missing for any reason is told, and never taken
// for leave to do without.
func TestSignaturesThatCannotBeHad(t *testing.T) {
	const unsigned, unfetched = "no signature found", "could not be fetched"
	answer := func(path string, code int) func(*signedImage, http.ResponseWriter, *http.Request) bool {
		return func(s *signedImage, w http.ResponseWriter, r *http.Request) bool {
			at := map[string]string{"tag": s.tag, "payload": s.payload, "list": s.list, "entry": s.entry, "content": s.content}[path]
			if r.URL.Path != at {
				return false
			}
			w.WriteHeader(code)
			return true
		}
	}
	pages := func(at func(s *signedImage, w http.ResponseWriter, n string)) func(*signedImage, http.ResponseWriter, *http.Request) bool {
		return func(s *signedImage, w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path != s.list {
				return false
			}
			n := r.URL.Query().Get("n")
			w.Header().Set("Link", fmt.Sprintf(`<http://elsewhere.test%s?n=%sx>; rel="next"`, r.URL.Path, n))
			at(s, w, n)
			return true
		}
	}
	empty := []byte(`{"schemaVersion":2,"manifests":[]}`)
	for name, tt := range map[string]struct {
		classic, bundle string // who signed: "key", "other" or nobody
		hook            func(*signedImage, http.ResponseWriter, *http.Request) bool
		says            string // "" for an image that is used
	}{
		"nobody signed":                    {"", "", nil, unsigned},
		"tag is forbidden":                 {"key", "key", answer("tag", 403), unfetched},
		"tag is out of order":              {"key", "key", answer("tag", 500), unfetched},
		"tag is of no use":                 {"key", "key", answer("tag", 200), unfetched},
		"payload is gone":                  {"key", "", answer("payload", 404), unsigned},
		"payload is gone, a bundle is not": {"key", "key", answer("payload", 404), ""},
		"payload is empty":                 {"key", "", answer("payload", 200), unsigned},
		"payload is forbidden":             {"key", "key", answer("payload", 401), "Not authorized"},
		"payload is out of order":          {"key", "key", answer("payload", 503), unfetched},
		"other's tag, own bundle":          {"other", "key", nil, ""},
		"own tag, list is out of order":    {"key", "", answer("list", 500), ""}, // and is not asked for
		"other's tag, no list":             {"other", "", nil, "no signature of"},
		"list is forbidden":                {"", "key", answer("list", 403), unfetched},
		"list is out of order":             {"", "key", answer("list", 502), unfetched},
		"entry is gone":                    {"", "key", answer("entry", 404), unsigned},
		"entry is out of order":            {"", "key", answer("entry", 500), unfetched},
		"bundle is gone":                   {"", "key", answer("content", 404), unsigned},
		"bundle is forbidden":              {"", "key", answer("content", 403), "Not authorized"},
		"other's bundle":                   {"", "other", nil, "no signature of"},
		"bundle on the third page": {"", "key", pages(func(s *signedImage, w http.ResponseWriter, n string) {
			if n == "xx" {
				w.Header().Del("Link")
				_, _ = w.Write(s.index)
				return
			}
			_, _ = w.Write(empty)
		}), ""},
		"second page is out of order": {"", "key", pages(func(s *signedImage, w http.ResponseWriter, n string) {
			if n == "" {
				_, _ = w.Write(s.index)
				return
			}
			w.WriteHeader(http.StatusNotFound)
		}), unfetched},
		"second page is of no use": {"", "key", pages(func(s *signedImage, w http.ResponseWriter, n string) {
			if n == "" {
				_, _ = w.Write(s.index)
			}
		}), unfetched},
		"pages without end": {"", "key", pages(func(s *signedImage, w http.ResponseWriter, _ string) { _, _ = w.Write(empty) }), "too large"},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			s := &signedImage{machine: m, digest: m.Push(t, "a", "1", twoLayers(t)), key: newSigner(t)}
			who := map[string]*signer{"key": s.key, "other": newSigner(t)}
			s.tag = "/v2/a/manifests/" + strings.Replace(s.digest, ":", "-", 1) + ".sig"
			s.list, s.index = "/v2/a/referrers/"+s.digest, empty
			if by := who[tt.classic]; by != nil {
				sig := by.signature(t, m, "a", s.digest)
				s.payload = "/v2/a/blobs/" + registrytest.Digest(sig.Blob)
				m.Push(t, "a", strings.TrimPrefix(s.tag, "/v2/a/manifests/"), &registrytest.Image{
					Config: registrytest.Object{}, Manifest: registrytest.Object{"schemaVersion": 2, "mediaType": registrytest.ManifestType}, Layers: []registrytest.Layer{sig},
				})
			}
			if by := who[tt.bundle]; by != nil {
				raw := by.bundle(t, s.digest)
				s.index, s.content = attach(t, m, "a", raw), "/v2/a/blobs/"+registrytest.Digest(raw)
				for part := range strings.SplitSeq(string(s.index), `"`) { // the bundle's entry is the last
					if strings.HasPrefix(part, "sha256:") {
						s.entry = "/v2/a/manifests/" + part
					}
				}
			}
			m.Hook(func(w http.ResponseWriter, r *http.Request) bool {
				if tt.hook != nil && tt.hook(s, w, r) {
					return true
				}
				if r.URL.Path == s.list {
					_, _ = w.Write(s.index)
				}
				return r.URL.Path == s.list
			})
			m.deps.Config.Policy = `{"default":[{"type":"sigstoreSigned","keyPath":"kbs:///k/k/k"}],"transports":{}}`
			m.deps.Resources = resources{"kbs:///k/k/k": s.key.public(t)}
			_, err := m.puller(t).Pull(deadline(t), m.ref("a:1"), m.bundle("c"))
			if tt.says == "" {
				if err != nil {
					t.Errorf("Pull: %v", err)
				}
				return
			}
			if !errors.Is(err, policy.ErrRejected) {
				t.Errorf("Pull: %v", err)
			}
			wantCause(t, err, "Image policy rejected: Denied by policy", tt.says)
			m.wantNothingLeft(t)
		})
	}
}
