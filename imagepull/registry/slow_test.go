package registry

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/sealpod/sealpod/imagepull/policy"
	"github.com/sealpod/sealpod/imagepull/registry/registrytest"
	"github.com/sealpod/sealpod/podvm"
)

// TestPeerThatIsNeverQuietAndNeverDone: one that sends enough to keep each
// connection and each document alive does not keep a pull.
func TestPeerThatIsNeverQuietAndNeverDone(t *testing.T) {
	const stall = 300 * time.Millisecond // enough for an answer on a busy machine
	slowly := func(w http.ResponseWriter, r *http.Request) bool {
		select {
		case <-time.After(stall / 3): // a third of what headers have
		case <-r.Context().Done():
		}
		return false
	}
	wantGivenUp := func(t *testing.T, err error) {
		t.Helper()
		if !errors.Is(err, ErrUnavailable) || !errors.Is(err, errStalled) || !strings.Contains(podvm.Cause(err), "sends too little") {
			t.Errorf("%v", err)
		}
	}
	setup := func(t *testing.T, image string) (*registrytest.Server, *Client, *Repository) {
		s := registrytest.New(t)
		c := client(t, func(o *Options) { o.Stall = stall })
		repo, err := open(t, c, s.Host+"/"+image, Credentials{})
		if err != nil {
			t.Fatal(err)
		}
		return s, c, repo
	}
	t.Run("layer", func(t *testing.T) {
		t.Parallel()
		s, c, repo := setup(t, "a:1")
		c.minRate = 1 << 30
		d := Descriptor{Digest: digest1, Size: 1 << 40}
		s.Hook(func(w http.ResponseWriter, r *http.Request) bool {
			for r.Context().Err() == nil {
				_, _ = w.Write(make([]byte, 2*trickle))
				_ = http.NewResponseController(w).Flush()
				select {
				case <-time.After(stall / 20):
				case <-r.Context().Done():
				}
			}
			return true
		})
		body, err := repo.Blob(t.Context(), d)
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.Copy(io.Discard, body)
		wantGivenUp(t, errors.Join(err, body.Close()))
	})
	t.Run("manifest", func(t *testing.T) {
		t.Parallel()
		s, _, repo := setup(t, "a:1")
		s.Hook(func(w http.ResponseWriter, r *http.Request) bool {
			for r.Context().Err() == nil {
				_, _ = w.Write(make([]byte, trickle))
				_ = http.NewResponseController(w).Flush()
				slowly(w, r)
			}
			return true
		})
		_, err := repo.Resolve(t.Context())
		wantGivenUp(t, err)
		if n := s.Seen("/manifests/"); n == maxTries {
			t.Errorf("asked for %d times", n)
		}
	})
	t.Run("signatures", func(t *testing.T) {
		t.Parallel()
		s, _, repo := setup(t, "a:1")
		var entries []registrytest.Layer
		for i := range 50 {
			entries = append(entries, signature(t, fmt.Sprint(i), simpleSigning))
		}
		s.Push(t, "a", "sha256-"+hex64+".sig", registrytest.NewImage(entries...))
		s.Hook(slowly)
		_, err := repo.Signatures(t.Context(), digest1)
		wantGivenUp(t, err)
	})
	t.Run("bundles", func(t *testing.T) {
		t.Parallel()
		s, _, repo := setup(t, "a:1")
		var list []string
		for i := range policy.MaxBundles {
			raw := []byte(fmt.Sprintf(`{"schemaVersion":2,"config":{"digest":%q,"size":2},"layers":[{"mediaType":%q,"digest":%q,"size":%d}]}`,
				digest1, bundleType+".v0.3+json", s.PutBlob(t, "a", []byte(fmt.Sprint(i))), len(fmt.Sprint(i))))
			list = append(list, fmt.Sprintf(`{"digest":%q,"size":%d,"artifactType":%q}`, s.PutManifest(t, "a", fmt.Sprint("b", i), typeOCIManifest, raw), len(raw), bundleType+".v0.3+json"))
		}
		s.PutManifest(t, "a", "sha256-"+hex64, typeOCIIndex, []byte(`{"schemaVersion":2,"manifests":[`+strings.Join(list, ",")+`]}`))
		if docs, err := repo.Bundles(t.Context(), digest1); err != nil || len(docs) != policy.MaxBundles {
			t.Fatalf("%d bundles, %v", len(docs), err)
		}
		s.Hook(slowly)
		_, err := repo.Bundles(t.Context(), digest1)
		wantGivenUp(t, err)
	})
}
