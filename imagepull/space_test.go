package imagepull

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/imagepull/layer"
	"github.com/sealpod/sealpod/imagepull/registry/registrytest"
	"github.com/sealpod/sealpod/imagepull/store"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/testenv"
)

// onTmpfs puts the machine's work directory and bundles on a tmpfs of their own,
// beside a file of someone else's. The result mounts it anew with other options.
func (m *machine) onTmpfs(t testing.TB, options string) (remount func(options string)) {
	t.Helper()
	testenv.Root(t)
	mnt := t.TempDir()
	if err := unix.Mount("tmpfs", mnt, "tmpfs", 0, options); err != nil {
		testenv.Missing(t, "needs to mount a tmpfs: "+err.Error())
	}
	m.work, m.bundles = filepath.Join(mnt, "work"), filepath.Join(mnt, "bundles")
	m.deps.Config.WorkDir = m.work
	theirs := filepath.Join(mnt, "theirs")
	if err := errors.Join(os.Mkdir(m.bundles, 0o755), os.WriteFile(theirs, []byte("theirs"), 0o600)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		wantFiles(t, mnt, map[string]string{"theirs": "theirs"})
		cleanMounts(t, m.bundles)
		if err := unix.Unmount(mnt, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return func(options string) {
		t.Helper()
		if err := unix.Mount("tmpfs", mnt, "tmpfs", unix.MS_REMOUNT, options); err != nil {
			t.Fatal(err)
		}
	}
}

// noiseLayer is a layer whose file does not compress.
func noiseLayer(t testing.TB, name string, size int) registrytest.Layer {
	t.Helper()
	b := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{byte(len(name))}).Read(b)
	return registrytest.Files(t, map[string]string{name: string(b)})
}

func TestImageThatCannotFitIsNotFetched(t *testing.T) {
	broker := &keyBroker{known: map[string]podvm.Secret{}}
	for name, big := range map[string]registrytest.Layer{
		"plain":     noiseLayer(t, "big", 4<<20),
		"encrypted": encrypt(t, noiseLayer(t, "big", 4<<20), "big", broker),
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			m.needRoot(t)
			remount := m.onTmpfs(t, "size=2m")
			m.deps.KeyUnwrapper = broker
			small := noiseLayer(t, "small", 500_000)
			m.Push(t, "a", "small", registrytest.NewImage(small))
			m.Push(t, "a", "big", registrytest.NewImage(small, big))
			p := m.puller(t)
			// What is there already does not count, although it takes space.
			for i := range 3 {
				if _, err := p.Pull(deadline(t), m.ref("a:small"), m.bundle(fmt.Sprint(i))); err != nil {
					t.Fatal(err)
				}
			}
			asked := broker.asked.Load()
			_, err := p.Pull(deadline(t), m.ref("a:big"), m.bundle("big"))
			if !errors.Is(err, unix.ENOSPC) {
				t.Errorf("Pull: %v", err)
			}
			// 4 MiB as they are, 2.5 times that guessed; 2 MiB less what is there.
			wantCause(t, err, "Failed to pull image", "no space for the image: the image needs about 10.5 MB, "+m.work+" has 1.6 MB free")
			if n := m.Seen("GET /v2/a/blobs/" + registrytest.Digest(big.Blob)); n != 0 || broker.asked.Load() != asked {
				t.Errorf("layer fetched %d times, or its key was", n)
			}
			remount("size=20m")
			if _, err := p.Pull(deadline(t), m.ref("a:big"), m.bundle("big")); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestLayerThatOutgrowsTheDisk: what the preflight cannot know is found while
// unpacking, by the disk or, where files would not fill it, by the length of
// the tar.
func TestLayerThatOutgrowsTheDisk(t *testing.T) {
	broker := &keyBroker{known: map[string]podvm.Secret{}}
	big := registrytest.Files(t, map[string]string{"big": strings.Repeat("\x00x", 16<<20)})
	var again bytes.Buffer // one small name over and over
	w := tar.NewWriter(&again)
	for range 50 {
		if err := errors.Join(w.WriteHeader(&tar.Header{Name: "a", Mode: 0o644, Size: 1 << 20})); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	over := registrytest.Layer{Blob: gz(t, again.Bytes()), MediaType: registrytest.GzipType, DiffID: registrytest.Digest(again.Bytes())}
	for name, l := range map[string]registrytest.Layer{
		"file": big, "file, encrypted": encrypt(t, big, "big", broker),
		"one name again and again": over, "one name again and again, encrypted": encrypt(t, over, "over", broker),
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			m.needRoot(t)
			remount := m.onTmpfs(t, "size=4m")
			m.deps.KeyUnwrapper = broker
			m.Push(t, "a", "1", registrytest.NewImage(l))
			p := m.puller(t)
			_, err := p.Pull(deadline(t), m.ref("a:1"), m.bundle("c"))
			if !errors.Is(err, unix.ENOSPC) || errors.Is(err, layer.ErrTooLarge) {
				t.Errorf("Pull: %v", err)
			}
			wantCause(t, err, "no space left to unpack a layer", m.work+" had 4.2 MB free when the pull began")
			m.wantNothingLeft(t)
			remount("size=100m")
			if _, err := p.Pull(deadline(t), m.ref("a:1"), m.bundle("c")); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestDiskFullAtEveryFile lets the file system run out of files at each one a
// pull makes, from opening the store to config.json.
func TestDiskFullAtEveryFile(t *testing.T) {
	m := newMachine(t)
	m.needRoot(t)
	files := map[string]string{}
	for i := range 20 { // more than opening the store takes
		files[fmt.Sprint("f", i)] = "x"
	}
	m.Push(t, "a", "1", registrytest.NewImage(registrytest.Files(t, files), registrytest.Files(t, map[string]string{"own": "x"})))
	pulled, failed := false, []string{}
	for inodes := 3; !pulled; inodes++ { // root, bundles, theirs
		if inodes > 100 {
			t.Fatal("does not fit in 100 files")
		}
		t.Run(fmt.Sprint(inodes), func(t *testing.T) {
			m := &machine{Server: m.Server, deps: m.deps}
			remount := m.onTmpfs(t, fmt.Sprintf("size=1m,nr_inodes=%d", inodes))
			p := m.puller(t)
			_, err := p.Pull(deadline(t), m.ref("a:1"), m.bundle("new/c"))
			if pulled = err == nil; pulled {
				return
			}
			if !errors.Is(err, unix.ENOSPC) {
				t.Errorf("Pull: %v", err)
			}
			failed = append(failed, err.Error())
			wantCause(t, err, "Failed to pull image")
			m.wantNothingLeft(t)
			remount("size=1m,nr_inodes=100")
			if _, err := p.Pull(deadline(t), m.ref("a:1"), m.bundle("new/c")); err != nil {
				t.Errorf("with space again: %v", err)
			}
		})
	}
	for _, phase := range []string{"creating the image store", "trying an overlay mount", "unpacking", "preparing the overlay", "config.json"} {
		if !slices.ContainsFunc(failed, func(s string) bool { return strings.Contains(s, phase) }) {
			t.Errorf("the disk was never full at %q:\n%s", phase, strings.Join(failed, "\n"))
		}
	}
}

// TestLayerOnItsWayTakesNoMoreSpace: of two pulls of one image the second needs
// nothing that the first does not, also when that has filled most of the disk.
func TestLayerOnItsWayTakesNoMoreSpace(t *testing.T) {
	m := newMachine(t)
	m.needRoot(t)
	m.onTmpfs(t, "size=10m")
	p := m.puller(t)
	st, err := p.openStore(deadline(t))
	if err != nil {
		t.Fatal(err)
	}
	one := &pullLayer{id: store.ID{Blob: "sha256:b", DiffID: "sha256:d"}, spec: layer.Spec{Size: 6 << 20}}
	other := &pullLayer{id: store.ID{Blob: "sha256:x", DiffID: "sha256:d"}, spec: layer.Spec{Size: 6 << 20}}
	lease := st.Begin()
	_, err = lease.Layer(t.Context(), one.id, func(_ context.Context, dir string) error {
		if err := os.WriteFile(filepath.Join(dir, "f"), make([]byte, 6<<20), 0o600); err != nil {
			return err
		}
		second := &pulling{Puller: p, store: st, log: p.deps.Log}
		if err := second.checkSpace(pullLayers{one}); err != nil {
			t.Errorf("the same layer: %v", err)
		}
		if err := second.checkSpace(pullLayers{one, other}); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("another one: %v", err)
		}
		return nil
	})
	if err := errors.Join(err, lease.Release()); err != nil {
		t.Error(err)
	}
}
