package imagepull

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sync/errgroup"

	"github.com/sealpod/sealpod/imagepull/registry/registrytest"
)

func twoLayers(t testing.TB) *registrytest.Image {
	return registrytest.NewImage(
		registrytest.Files(t, map[string]string{"etc/": "", "etc/name": "base", "gone": "x", "link": "-> etc/name"}),
		registrytest.Files(t, map[string]string{"etc/": "", "etc/name": "top", ".wh.gone": ""}),
	)
}

// inBothModes runs a test with plain directories and, as root, with overlays.
func inBothModes(t *testing.T, test func(t *testing.T, m *machine)) {
	t.Run("plain", func(t *testing.T) { test(t, newMachine(t)) })
	t.Run("overlay", func(t *testing.T) {
		m := newMachine(t)
		m.needRoot(t)
		test(t, m)
	})
}

func TestPullMakesABundle(t *testing.T) {
	inBothModes(t, func(t *testing.T, m *machine) {
		want := m.Push(t, "a/b", "1", twoLayers(t))
		p := m.puller(t)
		got, err := p.Pull(deadline(t), m.ref("a/b:1"), m.bundle("c1"))
		if err != nil || got != want {
			t.Fatalf("Pull = %q, %v; want %q", got, err, want)
		}
		rootfs := filepath.Join(m.bundle("c1"), "rootfs")
		wantFiles(t, rootfs, map[string]string{"etc/name": "top", "link": "top"})
		if _, err := os.Lstat(filepath.Join(rootfs, "gone")); !os.IsNotExist(err) {
			t.Errorf("a whiteout did not hide its file: %v", err)
		}
		if left := tree(t, filepath.Join(m.work, "tmp")); len(left) > 0 {
			t.Errorf("staging left %q", left)
		}
		mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(rootfs))
		if err != nil || !m.deps.Plain && len(mounts) != 1 || m.deps.Plain && len(mounts) != 0 {
			t.Errorf("%d mounts on the rootfs, %v", len(mounts), err)
		}
		for _, mount := range mounts {
			if mount.FSType != "overlay" || mount.Source != "overlay" {
				t.Errorf("rootfs is %s from %s", mount.FSType, mount.Source)
			}
		}
	})
}

func TestConfigJSONDescribesTheImage(t *testing.T) {
	m := newMachine(t)
	img := twoLayers(t)
	conf := img.Config["config"].(registrytest.Object)
	conf["WorkingDir"] = "/srv"
	conf["Volumes"] = registrytest.Object{"/data": registrytest.Object{}, "../../up": registrytest.Object{}}
	conf["Labels"] = map[string]string{"team": "blue"}
	m.Push(t, "a", "1", img)
	bundle := m.bundle("c")
	if err := os.MkdirAll(bundle, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := m.puller(t).Pull(deadline(t), m.ref("a:1"), bundle); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(bundle, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	var got runtimeSpec
	if err := json.Unmarshal(raw, &got); err != nil {
		t.Fatal(err)
	}
	want := specProcess{Args: []string{"/bin/sh", "-c", "true"}, Env: []string{"PATH=/bin"}, Cwd: "/srv"}
	if d := cmp.Diff(want, got.Process); d != "" {
		t.Error(d)
	}
	if got.Hostname != "image-rs" || got.Root.Path != "rootfs" || got.Annotations["team"] != "blue" ||
		got.Annotations["org.opencontainers.image.architecture"] != runtime.GOARCH {
		t.Errorf("%s", raw)
	}
	var volumes []string
	for _, mount := range got.Mounts[6:] {
		volumes = append(volumes, mount.Destination+" "+mount.Type)
	}
	if d := cmp.Diff([]string{"/up tmpfs", "/data tmpfs"}, volumes); d != "" {
		t.Error(d)
	}
}

func TestIndexYieldsThePlatformDigest(t *testing.T) {
	m := newMachine(t)
	_, entries := m.PushIndex(t, "multi", "1", []string{"unknown/unknown", "linux/" + runtime.GOARCH},
		[]*registrytest.Image{registrytest.NewImage(), twoLayers(t)})
	got, err := m.puller(t).Pull(deadline(t), m.ref("multi:1"), m.bundle("c"))
	if err != nil || got != entries[1] {
		t.Fatalf("Pull = %q, %v; want %q", got, err, entries[1])
	}
}

func TestSecondPullFetchesNoLayer(t *testing.T) {
	inBothModes(t, func(t *testing.T, m *machine) {
		img := twoLayers(t)
		m.Push(t, "a", "1", img)
		first := m.puller(t)
		if _, err := first.Pull(deadline(t), m.ref("a:1"), m.bundle("c1")); err != nil {
			t.Fatal(err)
		}
		if err := first.Close(); err != nil { // as if the process had been restarted
			t.Fatal(err)
		}
		if _, err := m.puller(t).Pull(deadline(t), m.ref("a:1"), m.bundle("c2")); err != nil {
			t.Fatal(err)
		}
		for _, l := range img.Layers {
			if n := m.Seen("GET /v2/a/blobs/" + registrytest.Digest(l.Blob)); n != 1 {
				t.Errorf("layer fetched %d times", n)
			}
		}
		wantFiles(t, filepath.Join(m.bundle("c2"), "rootfs"), map[string]string{"etc/name": "top"})
	})
}

func TestSameBlobUnderAnotherDiffIDIsNotReused(t *testing.T) {
	m := newMachine(t)
	img := twoLayers(t)
	m.Push(t, "a", "1", img)
	p := m.puller(t)
	if _, err := p.Pull(deadline(t), m.ref("a:1"), m.bundle("c1")); err != nil {
		t.Fatal(err)
	}
	liar := registrytest.NewImage(img.Layers...)
	liar.Config["rootfs"] = registrytest.Object{"type": "layers", "diff_ids": []string{img.Layers[1].DiffID, img.Layers[1].DiffID}}
	m.Push(t, "a", "2", liar)
	_, err := p.Pull(deadline(t), m.ref("a:2"), m.bundle("c2"))
	wantCause(t, err, "not the one the image config names", "(layer sha256:")
}

func TestConcurrentPullsShareLayers(t *testing.T) {
	inBothModes(t, func(t *testing.T, m *machine) {
		img := twoLayers(t)
		m.Push(t, "a", "1", img)
		p := m.puller(t)
		var g errgroup.Group
		for i := range 4 {
			g.Go(func() error {
				_, err := p.Pull(deadline(t), m.ref("a:1"), m.bundle(strconv.Itoa(i)))
				return err
			})
		}
		if err := g.Wait(); err != nil {
			t.Fatal(err)
		}
		for _, l := range img.Layers {
			if n := m.Seen("GET /v2/a/blobs/" + registrytest.Digest(l.Blob)); n != 1 {
				t.Errorf("layer fetched %d times", n)
			}
		}
	})
}

// TestConcurrentImagesShareTheirBase: a layer that several images have is
// fetched once, although it is not finished when the others want it.
func TestConcurrentImagesShareTheirBase(t *testing.T) {
	inBothModes(t, func(t *testing.T, m *machine) {
		base := noiseLayer(t, "base", 4<<20)
		const images = 6
		for i := range images {
			n := strconv.Itoa(i)
			m.Push(t, "image"+n, "1", registrytest.NewImage(base, registrytest.Files(t, map[string]string{"own": n})))
		}
		p := m.puller(t)
		var g errgroup.Group
		for i := range images {
			g.Go(func() error {
				n := strconv.Itoa(i)
				_, err := p.Pull(deadline(t), m.ref("image"+n+":1"), m.bundle(n))
				return err
			})
		}
		if err := g.Wait(); err != nil {
			t.Fatal(err)
		}
		fetched := 0
		for i := range images {
			n := strconv.Itoa(i)
			fetched += m.Seen("GET /v2/image" + n + "/blobs/" + registrytest.Digest(base.Blob))
			wantFiles(t, filepath.Join(m.bundle(n), "rootfs"), map[string]string{"own": n})
		}
		if fetched != 1 {
			t.Errorf("the base was fetched %d times", fetched)
		}
	})
}

func TestRetryIntoTheSameBundleDoesNotStack(t *testing.T) {
	m := newMachine(t)
	m.needRoot(t)
	m.Push(t, "a", "1", twoLayers(t))
	p := m.puller(t)
	for range 3 {
		if _, err := p.Pull(deadline(t), m.ref("a:1"), m.bundle("c")); err != nil {
			t.Fatal(err)
		}
	}
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(m.bundles))
	if err != nil || len(mounts) != 1 {
		t.Errorf("%d mounts, %v", len(mounts), err)
	}
	if dirs := mustGlob(t, filepath.Join(m.work, "overlay", "*")); len(dirs) != 1 {
		t.Errorf("upper directories of replaced mounts stay: %q", dirs)
	}
}

func mustGlob(t testing.TB, pattern string) []string {
	t.Helper()
	list, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestManyLayers(t *testing.T) {
	inBothModes(t, func(t *testing.T, m *machine) {
		var layers []registrytest.Layer
		want := map[string]string{}
		for i := range 200 {
			n := strconv.Itoa(i)
			layers = append(layers, registrytest.Files(t, map[string]string{"f" + n: n, "last": n}))
			want["f"+n] = n
		}
		layers = append(layers, layers[0]) // once more, on top
		want["last"] = "0"
		m.Push(t, "many", "1", registrytest.NewImage(layers...))
		if _, err := m.puller(t).Pull(deadline(t), m.ref("many:1"), m.bundle("c")); err != nil {
			t.Fatal(err)
		}
		wantFiles(t, filepath.Join(m.bundle("c"), "rootfs"), want)
	})
}

func TestImageFromScratch(t *testing.T) {
	inBothModes(t, func(t *testing.T, m *machine) {
		m.Push(t, "scratch", "1", registrytest.NewImage())
		if _, err := m.puller(t).Pull(deadline(t), m.ref("scratch:1"), m.bundle("c")); err != nil {
			t.Fatal(err)
		}
	})
}

func TestCancelMidLayerRollsBack(t *testing.T) {
	inBothModes(t, func(t *testing.T, m *machine) {
		img := twoLayers(t)
		m.Push(t, "a", "1", img)
		last := registrytest.Digest(img.Layers[1].Blob)
		ctx, cancel := context.WithCancel(deadline(t))
		m.Hook(func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.HasSuffix(r.URL.Path, last) {
				return false
			}
			w.Header().Set("Content-Length", strconv.Itoa(len(img.Layers[1].Blob)))
			_, _ = w.Write(img.Layers[1].Blob[:20])
			_ = http.NewResponseController(w).Flush()
			cancel()
			<-r.Context().Done()
			return true
		})
		_, err := m.puller(t).Pull(ctx, m.ref("a:1"), m.bundle("c"))
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("Pull: %v", err)
		}
		m.wantNothingLeft(t)
	})
}

func TestOccupiedRootfsIsLeftAlone(t *testing.T) {
	inBothModes(t, func(t *testing.T, m *machine) {
		m.Push(t, "a", "1", twoLayers(t))
		mine := filepath.Join(m.bundle("c"), "rootfs", "mine")
		if err := os.MkdirAll(mine, 0o755); err != nil {
			t.Fatal(err)
		}
		_, err := m.puller(t).Pull(deadline(t), m.ref("a:1"), m.bundle("c"))
		wantCause(t, err, "Failed to pull image", "rootfs of the bundle is occupied")
		if _, err := os.Stat(mine); err != nil {
			t.Error(err)
		}
		if left := tree(t, m.work); len(left) > 0 {
			t.Errorf("left in the work directory: %q", left)
		}
	})
}

// TestWaiterTakesOverFromAFailedPull: the pull that stages a layer is
// cancelled while another waits for it.
func TestWaiterTakesOverFromAFailedPull(t *testing.T) {
	m := newMachine(t)
	img := registrytest.NewImage(registrytest.Files(t, map[string]string{"a": "1"}))
	m.Push(t, "a", "1", img)
	digest := registrytest.Digest(img.Layers[0].Blob)
	first, cancel := context.WithCancel(deadline(t))
	var once sync.Once
	started := make(chan struct{})
	m.Hook(func(_ http.ResponseWriter, r *http.Request) bool {
		block := false
		if strings.HasSuffix(r.URL.Path, digest) {
			once.Do(func() { block = true })
		}
		if block {
			close(started)
			<-r.Context().Done()
		}
		return block
	})
	p := m.puller(t)
	var g errgroup.Group
	g.Go(func() error {
		_, err := p.Pull(first, m.ref("a:1"), m.bundle("c1"))
		if !errors.Is(err, context.Canceled) {
			t.Errorf("first pull: %v", err)
		}
		return nil
	})
	<-started
	g.Go(func() error {
		_, err := p.Pull(deadline(t), m.ref("a:1"), m.bundle("c2"))
		return err
	})
	cancel()
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	wantFiles(t, filepath.Join(m.bundle("c2"), "rootfs"), map[string]string{"a": "1"})
}

func TestRootOfTheRootfsIsWhatTheTopmostLayerSays(t *testing.T) {
	tests := map[string]struct {
		roots []string // mode of the entry "./" of each layer, "" for no such entry
		want  os.FileMode
	}{
		"no layer says":                {[]string{"", ""}, 0o755},
		"the base says":                {[]string{"711", ""}, 0o711},
		"the topmost that says counts": {[]string{"711", "751", ""}, 0o751},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			inBothModes(t, func(t *testing.T, m *machine) {
				var layers []registrytest.Layer
				for i, mode := range tt.roots {
					files := map[string]string{"f" + strconv.Itoa(i): "x"}
					if mode != "" {
						files["./"] = mode
					}
					layers = append(layers, registrytest.Files(t, files))
				}
				m.Push(t, "a/b", "1", registrytest.NewImage(layers...))
				p := m.puller(t)
				if _, err := p.Pull(deadline(t), m.ref("a/b:1"), m.bundle("c")); err != nil {
					t.Fatal(err)
				}
				st, err := os.Stat(filepath.Join(m.bundle("c"), "rootfs"))
				if err != nil {
					t.Fatal(err)
				}
				want := tt.want
				if m.deps.Plain {
					want |= 0o700
				}
				if got := st.Mode().Perm(); got != want {
					t.Errorf("mode of the root is %v, want %v", got, want)
				}
				if said := strings.Join(tt.roots, "") != ""; said && st.ModTime().Unix() != 0 {
					t.Errorf("time of the root is %v, its entry says 1970", st.ModTime())
				}
			})
		})
	}
}

func TestRemoveUndoesAPull(t *testing.T) {
	inBothModes(t, func(t *testing.T, m *machine) {
		m.Push(t, "a/b", "1", twoLayers(t))
		p := m.puller(t)
		for range 2 { // a bundle can be filled again afterwards
			if _, err := p.Pull(deadline(t), m.ref("a/b:1"), m.bundle("c")); err != nil {
				t.Fatal(err)
			}
			if err := p.Remove(t.Context(), m.bundle("c")); err != nil {
				t.Fatal(err)
			}
			if left := append(tree(t, m.bundle("c")), mustGlob(t, filepath.Join(m.work, "overlay", "*"))...); len(left) > 0 {
				t.Errorf("left in the bundle, or of the mount: %q", left)
			}
			mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(m.bundle("c")))
			if err != nil || len(mounts) > 0 {
				t.Errorf("%d mounts are left, %v", len(mounts), err)
			}
		}
		if err := p.Remove(t.Context(), m.bundle("c")); err != nil {
			t.Errorf("removing nothing: %v", err)
		}
	})
}
