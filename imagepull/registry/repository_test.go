package registry

import (
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"testing"

	"github.com/sealpod/sealpod/imagepull/registry/registrytest"
	"github.com/sealpod/sealpod/podvm"
)

func sha512Of(b []byte) string {
	sum := sha512.Sum512(b)
	return "sha512:" + hex.EncodeToString(sum[:])
}

// TestDigestOfAManifest: the digest asked for and the one in the header both
// hold; with neither, sha256 of what came is the digest.
func TestDigestOfAManifest(t *testing.T) {
	s := registrytest.New(t)
	s.Push(t, "a", "1", registrytest.NewImage())
	img := registrytest.NewImage()
	s.Push(t, "a", "2", img)
	raw := registrytest.JSON(t, img.Manifest)
	right := registrytest.Digest(raw)
	tests := map[string]struct {
		image, header string
		want          string // digest, "" for ErrDigest
	}{
		"by tag, no header":              {"a:1", "", right},
		"by tag, right header":           {"a:1", right, right},
		"by tag, sha512 in the header":   {"a:1", sha512Of(raw), right},
		"by tag, wrong header":           {"a:1", digest1, ""},
		"by tag, wrong sha512":           {"a:1", sha512Of(nil), ""},
		"by tag, header of nonsense":     {"a:1", "sha256:x", right},
		"by digest":                      {"a@" + right, "", right},
		"by digest, wrong header":        {"a@" + right, digest1, ""},
		"by wrong digest, right header":  {"a@" + digest1, right, ""},
		"by wrong digest, same header":   {"a@" + digest1, digest1, ""},
		"by sha512":                      {"a@" + sha512Of(raw), "", sha512Of(raw)},
		"by sha512, sha256 in header":    {"a@" + sha512Of(raw), right, sha512Of(raw)},
		"by wrong sha512":                {"a@" + sha512Of(nil), "", ""},
		"by tag and digest":              {"a:gone@" + right, "", right},
		"by tag and digest, not the tag": {"a:1@" + digest1, "", ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			asked := ""
			s.Hook(func(w http.ResponseWriter, r *http.Request) bool {
				_, target, found := strings.Cut(r.URL.Path, "/manifests/")
				if !found {
					return false
				}
				asked = target
				if tt.header != "" {
					w.Header().Set("Docker-Content-Digest", tt.header)
				}
				_, _ = w.Write(raw)
				return true
			})
			repo := newRepository(t, s, tt.image)
			got, err := repo.Resolve(t.Context())
			if tt.want == "" {
				if !errors.Is(err, ErrDigest) {
					t.Errorf("%+v, %v", got, err)
				}
				return
			}
			if err != nil || got.Digest != tt.want || got.TopDigest != tt.want {
				t.Errorf("%+v, %v", got, err)
			}
			if _, digest, pinned := strings.Cut(tt.image, "@"); pinned && asked != digest {
				t.Errorf("asked for %q", asked)
			}
		})
	}
}

// TestIndexIsHeldToItsWord: what an index says about its entry is true.
func TestIndexIsHeldToItsWord(t *testing.T) {
	s := registrytest.New(t)
	img := registrytest.NewImage(registrytest.Files(t, map[string]string{"a": "1"}))
	digest := s.Push(t, "a", "plain", img)
	size := len(registrytest.JSON(t, img.Manifest))
	index := func(digest string, size int) []byte {
		return []byte(fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[{"mediaType":%q,"digest":%q,"size":%d,"platform":{"os":"linux","architecture":%q}}]}`,
			typeDockerList, typeDockerManifest, digest, size, runtime.GOARCH))
	}
	inner := index(digest, size)
	s.PutManifest(t, "a", "inner", typeDockerList, inner)
	for name, tt := range map[string]struct {
		index []byte
		err   error
	}{
		"true":         {index(digest, size), nil},
		"longer":       {index(digest, size+1), ErrDigest},
		"shorter":      {index(digest, size-1), ErrDigest},
		"nested":       {index(registrytest.Digest(inner), len(inner)), ErrManifest},
		"missing":      {index(digest1, 5), ErrNotFound},
		"negative":     {index(digest, -1), ErrManifest},
		"not a digest": {index("sha256:../../x", size), ErrManifest},
	} {
		t.Run(name, func(t *testing.T) {
			top := registrytest.Digest(tt.index)
			s.Hook(func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.HasSuffix(r.URL.Path, "/manifests/1") {
					return false
				}
				_, _ = w.Write(tt.index)
				return true
			})
			got, err := newRepository(t, s, "a:1").Resolve(t.Context())
			if !errors.Is(err, tt.err) || err == nil && (got.TopDigest != top || got.Digest != digest || len(got.Layers) != 1) {
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
}

// TestDocumentsAreCapped at 4 MiB for manifests and 8 MiB for configurations.
func TestDocumentsAreCapped(t *testing.T) {
	pad := func(n int) string { return strings.Repeat("x", n) }
	for name, tt := range map[string]struct {
		manifest, config int // bytes of padding
		err              error
	}{
		"large manifest":       {manifest: maxManifest - 1000},
		"too large manifest":   {manifest: maxManifest, err: podvm.ErrTooLarge},
		"large config":         {config: maxConfig - 1000},
		"too large for config": {config: maxConfig, err: podvm.ErrTooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			s := registrytest.New(t)
			img := registrytest.NewImage()
			img.Config["author"] = pad(tt.config)
			img.Manifest["annotations"] = registrytest.Object{"pad": pad(tt.manifest)}
			s.Push(t, "a", "1", img)
			if _, err := newRepository(t, s, "a:1").Resolve(t.Context()); !errors.Is(err, tt.err) {
				t.Errorf("%v", err)
			}
		})
	}
}
