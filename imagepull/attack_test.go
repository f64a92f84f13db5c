package imagepull

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sealpod/sealpod/imagepull/layer"
	"github.com/sealpod/sealpod/imagepull/registry"
	"github.com/sealpod/sealpod/imagepull/registry/registrytest"
	"github.com/sealpod/sealpod/podvm"
)

// hooked answers requests whose path ends in part, or contains it when it
// ends in a slash, with answer.
func hooked(part string, answer func(w http.ResponseWriter, r *http.Request)) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, part) && (!strings.HasSuffix(part, "/") || !strings.Contains(r.URL.Path, part)) {
			return false
		}
		answer(w, r)
		return true
	}
}

func status(code int) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
}

// raw sends b and claims length bytes.
func raw(b []byte, length int) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(length))
		_, _ = w.Write(b[:min(len(b), length)])
	}
}

// TestHostileRegistryLeavesNothing lists what a registry, or someone on the
// way to it, may try. Every pull fails with a reason and without a trace.
func TestHostileRegistryLeavesNothing(t *testing.T) {
	blob := func(img *registrytest.Image, i int) string { return registrytest.Digest(img.Layers[i].Blob) }
	tests := map[string]struct {
		change func(img *registrytest.Image) // before the push
		hook   func(img *registrytest.Image, manifest string) func(http.ResponseWriter, *http.Request) bool
		is     error
		cause  string
	}{
		"401 on the manifest": {
			hook: func(*registrytest.Image, string) func(http.ResponseWriter, *http.Request) bool {
				return hooked("/manifests/1", status(401))
			},
			is: registry.ErrUnauthorized, cause: "Not authorized",
		},
		"401 at the door without a challenge": {
			hook: func(*registrytest.Image, string) func(http.ResponseWriter, *http.Request) bool {
				return hooked("/", status(401))
			},
			is: registry.ErrUnauthorized, cause: "Not authorized",
		},
		"403 on a layer": {
			hook: func(img *registrytest.Image, _ string) func(http.ResponseWriter, *http.Request) bool {
				return hooked(blob(img, 1), status(403))
			},
			is: registry.ErrUnauthorized, cause: "Not authorized",
		},
		"404 on the manifest": {
			hook: func(*registrytest.Image, string) func(http.ResponseWriter, *http.Request) bool {
				return hooked("/manifests/1", status(404))
			},
			is: registry.ErrNotFound, cause: "not found in registry",
		},
		"404 on a layer": {
			hook: func(img *registrytest.Image, _ string) func(http.ResponseWriter, *http.Request) bool {
				return hooked(blob(img, 0), status(404))
			},
			is: registry.ErrNotFound, cause: "not found in registry",
		},
		"500 without end": {
			hook: func(*registrytest.Image, string) func(http.ResponseWriter, *http.Request) bool {
				return hooked("/manifests/1", status(500))
			},
			is: registry.ErrUnavailable, cause: "answered 500",
		},
		"truncated layer": {
			hook: func(img *registrytest.Image, _ string) func(http.ResponseWriter, *http.Request) bool {
				return func(w http.ResponseWriter, r *http.Request) bool {
					if !strings.HasSuffix(r.URL.Path, blob(img, 1)) {
						return false
					}
					if r.Header.Get("Range") != "" {
						w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
						return true
					}
					b := img.Layers[1].Blob
					raw(b[:len(b)/2], len(b))(w, r)
					return true
				}
			},
			is: registry.ErrTruncated, cause: "truncated",
		},
		"layer with a lying Content-Length": {
			hook: func(img *registrytest.Image, _ string) func(http.ResponseWriter, *http.Request) bool {
				return hooked(blob(img, 1), raw(img.Layers[1].Blob, 10))
			},
			is: registry.ErrDigest, cause: "digest mismatch",
		},
		"layer longer than its descriptor, in chunks": {
			hook: func(img *registrytest.Image, _ string) func(http.ResponseWriter, *http.Request) bool {
				return hooked(blob(img, 1), func(w http.ResponseWriter, _ *http.Request) {
					_, _ = w.Write(append(img.Layers[1].Blob, make([]byte, 1<<20)...))
				})
			},
			is: registry.ErrDigest, cause: "digest mismatch",
		},
		"one bit of a layer flipped": {
			hook: func(img *registrytest.Image, _ string) func(http.ResponseWriter, *http.Request) bool {
				b := append([]byte(nil), img.Layers[1].Blob...)
				b[len(b)/2] ^= 1
				return hooked(blob(img, 1), raw(b, len(b)))
			},
			is: layer.ErrDigest, cause: "does not have the digest",
		},
		"another layer in its place": {
			hook: func(img *registrytest.Image, _ string) func(http.ResponseWriter, *http.Request) bool {
				b := append(append([]byte(nil), img.Layers[0].Blob...), make([]byte, 1000)...)
				return hooked(blob(img, 1), raw(b, len(img.Layers[1].Blob)))
			},
			is: layer.ErrDigest, cause: "does not have the digest",
		},
		"swapped diffIDs": {
			change: func(img *registrytest.Image) {
				img.Config["rootfs"] = registrytest.Object{"type": "layers", "diff_ids": []string{img.Layers[1].DiffID, img.Layers[0].DiffID}}
			},
			is: layer.ErrDiffID, cause: "not the one the image config names",
		},
		"more diffIDs than layers": {
			change: func(img *registrytest.Image) {
				id := img.Layers[0].DiffID
				img.Config["rootfs"] = registrytest.Object{"type": "layers", "diff_ids": []string{id, id, id}}
			},
			is: registry.ErrManifest, cause: "3 diff_ids for 2 layers",
		},
		"swapped config": {
			hook: func(img *registrytest.Image, _ string) func(http.ResponseWriter, *http.Request) bool {
				d := img.Manifest["config"].(registrytest.Object)
				evil := []byte(`{"os":"linux","config":{"Entrypoint":["/evil"]}}`)
				return hooked(d["digest"].(string), raw(append(evil, make([]byte, 4096)...), d["size"].(int)))
			},
			is: registry.ErrDigest, cause: "digest mismatch",
		},
		"image for another operating system": {
			change: func(img *registrytest.Image) { img.Config["os"] = "windows" },
			is:     registry.ErrPlatform, cause: "not linux",
		},
		"huge manifest": {
			hook: func(*registrytest.Image, string) func(http.ResponseWriter, *http.Request) bool {
				return hooked("/manifests/1", func(w http.ResponseWriter, _ *http.Request) {
					junk := make([]byte, 1<<20)
					for range 8 {
						_, _ = w.Write(junk)
					}
				})
			},
			is: podvm.ErrTooLarge, cause: "too large",
		},
		"huge config": {
			change: func(img *registrytest.Image) {
				img.Manifest["config"] = registrytest.Object{"mediaType": registrytest.ConfigType, "digest": registrytest.Digest(nil), "size": 1 << 40}
			},
			is: podvm.ErrTooLarge, cause: "too large",
		},
		"manifest that is also an index": {
			change: func(img *registrytest.Image) { img.Manifest["manifests"] = []any{} },
			is:     registry.ErrManifest, cause: "neither plainly",
		},
		"wrong Docker-Content-Digest": {
			hook: func(_ *registrytest.Image, manifest string) func(http.ResponseWriter, *http.Request) bool {
				return hooked("/manifests/1", func(w http.ResponseWriter, _ *http.Request) {
					w.Header().Set("Docker-Content-Digest", registrytest.Digest([]byte("x")))
					_, _ = w.Write([]byte(manifest))
				})
			},
			is: registry.ErrDigest, cause: "digest mismatch",
		},
		"redirect loop": {
			hook: func(img *registrytest.Image, _ string) func(http.ResponseWriter, *http.Request) bool {
				return hooked(blob(img, 0), func(w http.ResponseWriter, r *http.Request) {
					http.Redirect(w, r, r.URL.Path, http.StatusTemporaryRedirect)
				})
			},
			cause: "redirects in a loop",
		},
		"layer of an unknown kind": {
			change: func(img *registrytest.Image) { img.Layers[1].MediaType = "application/x-evil" },
			is:     layer.ErrMediaType, cause: "unsupported layer media type",
		},
		"encrypted layer without a usable key": {
			change: func(img *registrytest.Image) { img.Layers[1].MediaType += "+encrypted" },
			is:     layer.ErrDecrypt, cause: "Failed to decrypt the image layer, please ensure that the decryption key is placed and correct",
		},
		"connection closed in every answer": {
			hook: func(*registrytest.Image, string) func(http.ResponseWriter, *http.Request) bool {
				return hooked("/manifests/1", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
			},
			is: registry.ErrUnavailable, cause: "is unreachable",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			inBothModes(t, func(t *testing.T, m *machine) {
				img := twoLayers(t)
				if tt.change != nil {
					tt.change(img)
				}
				m.Push(t, "a", "1", img)
				if tt.hook != nil {
					m.Hook(tt.hook(img, string(registrytest.JSON(t, img.Manifest))))
				}
				unharmed, p := m.guarded(t), m.puller(t)
				digest, err := p.Pull(deadline(t), m.ref("a:1"), m.bundle("c/nested"))
				if err == nil || digest != "" {
					t.Fatalf("Pull = %q, %v", digest, err)
				}
				if tt.is != nil && !errors.Is(err, tt.is) {
					t.Errorf("error %v is not %v", err, tt.is)
				}
				wantCause(t, err, "Failed to pull image "+m.ref("a:1"), "image: "+m.ref("a:1")+", error: ", tt.cause)
				unharmed(p)
			})
		})
	}
}

func TestPinnedDigestIsEnforced(t *testing.T) {
	m := newMachine(t)
	m.Push(t, "a", "1", twoLayers(t))
	other := registrytest.JSON(t, registrytest.NewImage().Manifest)
	pinned := registrytest.Digest([]byte("what the user wants"))
	m.Hook(hooked("/manifests/"+pinned, raw(other, len(other))))
	_, err := m.puller(t).Pull(deadline(t), m.ref("a:1@"+pinned), m.bundle("c"))
	if !errors.Is(err, registry.ErrDigest) {
		t.Errorf("Pull: %v", err)
	}
}

func TestIndexWithoutOurPlatform(t *testing.T) {
	m := newMachine(t)
	m.PushIndex(t, "a", "1", []string{"linux/mips", "windows/" + runtime.GOARCH}, []*registrytest.Image{registrytest.NewImage(), registrytest.NewImage()})
	_, err := m.puller(t).Pull(deadline(t), m.ref("a:1"), m.bundle("c"))
	if !errors.Is(err, registry.ErrPlatform) {
		t.Errorf("Pull: %v", err)
	}
	wantCause(t, err, "no manifest for linux/"+runtime.GOARCH)
}

func TestNestedIndexIsRefused(t *testing.T) {
	m := newMachine(t)
	m.PushIndex(t, "a", "inner", []string{"linux/" + runtime.GOARCH}, []*registrytest.Image{registrytest.NewImage()})
	inner := registrytest.JSON(t, registrytest.Object{"schemaVersion": 2, "mediaType": registrytest.IndexType, "manifests": []any{}})
	m.PutManifest(t, "a", "x", registrytest.IndexType, inner)
	d := registrytest.Descriptor(registrytest.IndexType, inner)
	d["platform"] = registrytest.Object{"os": "linux", "architecture": runtime.GOARCH}
	m.PutManifest(t, "a", "1", registrytest.IndexType, registrytest.JSON(t, registrytest.Object{
		"schemaVersion": 2, "mediaType": registrytest.IndexType, "manifests": []any{d}}))
	_, err := m.puller(t).Pull(deadline(t), m.ref("a:1"), m.bundle("c"))
	wantCause(t, err, "an index inside an index")
}

func TestTemporaryTroubleIsOvercome(t *testing.T) {
	img := func(t *testing.T) *registrytest.Image { return twoLayers(t) }
	tests := map[string]func(w http.ResponseWriter, r *http.Request, blob []byte){
		"503 with Retry-After": func(w http.ResponseWriter, _ *http.Request, _ []byte) {
			w.Header().Set("Retry-After", "0")
			w.WriteHeader(http.StatusServiceUnavailable)
		},
		"429":               func(w http.ResponseWriter, _ *http.Request, _ []byte) { w.WriteHeader(http.StatusTooManyRequests) },
		"connection closed": func(http.ResponseWriter, *http.Request, []byte) { panic(http.ErrAbortHandler) },
		"connection cut halfway": func(w http.ResponseWriter, _ *http.Request, blob []byte) {
			w.Header().Set("Content-Length", strconv.Itoa(len(blob)))
			_, _ = w.Write(blob[:len(blob)/2])
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		},
	}
	for name, trouble := range tests {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			img := img(t)
			m.Push(t, "a", "1", img)
			digest := registrytest.Digest(img.Layers[0].Blob)
			left := make(chan struct{}, 2)
			left <- struct{}{}
			left <- struct{}{}
			m.Hook(func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.HasSuffix(r.URL.Path, digest) || r.Header.Get("Range") != "" {
					return false
				}
				select {
				case <-left:
					trouble(w, r, img.Layers[0].Blob)
					return true
				default:
					return false
				}
			})
			if _, err := m.puller(t).Pull(deadline(t), m.ref("a:1"), m.bundle("c")); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestServerThatIgnoresRange resumes by reading past what it has.
func TestServerThatIgnoresRange(t *testing.T) {
	m := newMachine(t)
	img := twoLayers(t)
	m.Push(t, "a", "1", img)
	blob := img.Layers[0].Blob
	m.Hook(hooked(registrytest.Digest(blob), func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(len(blob)))
		if r.Header.Get("Range") == "" {
			_, _ = w.Write(blob[:len(blob)/2])
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}
		_, _ = w.Write(blob)
	}))
	if _, err := m.puller(t).Pull(deadline(t), m.ref("a:1"), m.bundle("c")); err != nil {
		t.Error(err)
	}
}

func TestStalledLayerEndsWithTheDeadline(t *testing.T) {
	m := newMachine(t)
	img := twoLayers(t)
	m.Push(t, "a", "1", img)
	m.Hook(hooked(registrytest.Digest(img.Layers[0].Blob), func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	ctx, cancel := context.WithTimeout(deadline(t), 200*time.Millisecond)
	defer cancel()
	_, err := m.puller(t).Pull(ctx, m.ref("a:1"), m.bundle("c"))
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Pull: %v", err)
	}
	m.wantNothingLeft(t)
}

func TestStalledConnectionsAreGivenUp(t *testing.T) {
	m := newMachine(t)
	m.deps.Stall = 20 * time.Millisecond
	img := twoLayers(t)
	m.Push(t, "a", "1", img)
	blob := img.Layers[0].Blob
	m.Hook(hooked(registrytest.Digest(blob), func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(len(blob)))
		_, _ = w.Write(blob[:10])
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}))
	_, err := m.puller(t).Pull(deadline(t), m.ref("a:1"), m.bundle("c"))
	if !errors.Is(err, registry.ErrUnavailable) {
		t.Errorf("Pull: %v", err)
	}
}

// TestLoginThatNeverEnds: what the library reads of a login has no limit of its
// own in time, nor has the answer to the first request in length.
func TestLoginThatNeverEnds(t *testing.T) {
	endless := func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			_, _ = w.Write(make([]byte, 4096))
		}
	}
	m := newMachine(t)
	m.deps.Stall = 50 * time.Millisecond
	for name, hook := range map[string]func(w http.ResponseWriter, r *http.Request) bool{
		"ping": func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path == "/v2/" {
				w.WriteHeader(http.StatusInternalServerError)
				endless(w, r)
			}
			return r.URL.Path == "/v2/"
		},
		"token, at login": func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path == "/token" {
				_, _ = w.Write([]byte("{"))
				_ = http.NewResponseController(w).Flush()
				<-r.Context().Done()
				return true
			}
			w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+m.Host+`/token"`)
			w.WriteHeader(http.StatusUnauthorized)
			return true
		},
		"token, later": func() func(w http.ResponseWriter, r *http.Request) bool {
			var logins atomic.Int32
			return func(w http.ResponseWriter, r *http.Request) bool {
				if r.URL.Path == "/token" && logins.Add(1) == 1 {
					_, _ = w.Write([]byte(`{"token":"t"}`))
					return true
				}
				if r.URL.Path == "/token" {
					_, _ = w.Write([]byte("{"))
					_ = http.NewResponseController(w).Flush()
					<-r.Context().Done()
					return true
				}
				w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+m.Host+`/token"`)
				w.WriteHeader(http.StatusUnauthorized)
				return true
			}
		}(),
	} {
		t.Run(name, func(t *testing.T) {
			m.Hook(hook)
			_, err := m.puller(t).Pull(deadline(t), m.ref("a:1"), m.bundle("c"))
			if !errors.Is(err, registry.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Pull: %v", err)
			}
			m.wantNothingLeft(t)
		})
	}
}

func TestUnreachableRegistry(t *testing.T) {
	m := newMachine(t)
	m.Close()
	_, err := m.puller(t).Pull(deadline(t), m.ref("a:1"), m.bundle("c"))
	wantCause(t, err, "is unreachable")
}

func TestBadReferenceNamesTheReason(t *testing.T) {
	m := newMachine(t)
	p := m.puller(t)
	for _, image := range []string{"", "UPPER/case?", "a b", "x@sha256:12", "a:" + strings.Repeat("t", 200), strings.Repeat("x/", 5000)} {
		_, err := p.Pull(deadline(t), image, m.bundle("c"))
		if !errors.Is(err, registry.ErrReference) {
			t.Errorf("%.40q: %v", image, err)
		}
		wantCause(t, err, "Failed to pull image", "invalid image reference")
	}
}

func TestAllCandidatesAreNamed(t *testing.T) {
	m := newMachine(t)
	m.deps.Config.Registries = &registry.Rules{Registry: []registry.Rule{{
		Prefix: "example.test", Location: m.Host + "/origin", Insecure: true,
		Mirror: []registry.Mirror{{Location: m.Host + "/mirror", Insecure: true}},
	}}}
	p := m.puller(t)
	_, err := p.Pull(deadline(t), "example.test/app:1", m.bundle("c"))
	wantCause(t, err, "Failed to pull image example.test/app:1",
		fmt.Sprintf("image: %s/mirror/app:1, error: ", m.Host), fmt.Sprintf("image: %s/origin/app:1, error: ", m.Host))
	want := m.Push(t, "origin/app", "1", twoLayers(t))
	got, err := p.Pull(deadline(t), "example.test/app:1", m.bundle("c"))
	if err != nil || got != want {
		t.Errorf("Pull = %q, %v; want %q from the origin", got, err, want)
	}
}

func TestBlockedImage(t *testing.T) {
	m := newMachine(t)
	m.deps.Config.Registries.Registry[0].Blocked = true
	_, err := m.puller(t).Pull(deadline(t), m.ref("a:1"), m.bundle("c"))
	wantCause(t, err, "is blocked by registry rule")
}
