package store

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/imagepull/layer/untar"
)

// unpacked fills a layer with what names say: directories end in a slash, and
// files are empty.
func unpacked(names ...string) func(context.Context, string) error {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range names {
		h := &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o711}
		if name[len(name)-1] == '/' {
			h.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(h); err != nil {
			panic(err)
		}
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return func(ctx context.Context, dir string) error {
		_, err := untar.Extract(ctx, &b, dir, untar.Options{})
		return err
	}
}

// TestLayersAreWalkedOnce: what the first mount of a layer found out is there
// for the second one, in this process and in the next, and goes with the layer.
func TestLayersAreWalkedOnce(t *testing.T) {
	dir := t.TempDir()
	s := openOverlay(t, dir)
	below, above := ID{Blob: "below"}, ID{Blob: "above"}
	mode := func(bundle string) os.FileMode {
		t.Helper()
		info, err := os.Stat(filepath.Join(bundle, "rootfs", "a"))
		if err != nil {
			t.Fatal(err)
		}
		return info.Mode().Perm()
	}
	rootfs := func(s *Store) (*Lease, string) {
		t.Helper()
		l := s.Begin()
		for id, fill := range map[ID]func(context.Context, string) error{below: unpacked("a/", "b/"), above: unpacked("a/f", "b/", "b/c/d/f")} {
			if _, err := l.Layer(t.Context(), id, fill); err != nil {
				t.Fatal(err)
			}
		}
		bundle := t.TempDir()
		if err := l.Rootfs(t.Context(), bundle, []ID{below, above}); err != nil {
			t.Fatal(err)
		}
		return l, bundle
	}
	file := s.path("implied", s.name(above))
	l, bundle := rootfs(s)
	raw, err := os.ReadFile(file)
	if err != nil || string(raw) != "a\x00b/c\x00b/c/d\x00" || mode(bundle) != 0o711 {
		t.Errorf("%q, mode %o, %v", raw, mode(bundle), err)
	}
	if count(t, dir, "implied", "*") != 1 {
		t.Error("something is written down of a layer that describes all it has")
	}
	release(t, l)
	if count(t, dir, "implied", "*") != 0 {
		t.Error("more is known of a layer that has gone")
	}

	l, bundle = rootfs(s)
	keep(t, l)
	defer func() {
		if err := s.RemoveRootfs(t.Context(), bundle); err != nil {
			t.Error(err)
		}
	}()
	// Only who does not walk believes this.
	if err := os.WriteFile(file, []byte("b/c\x00"), 0o600); err != nil {
		t.Fatal(err)
	}
	orphan := s.path("implied", s.name(one))
	if err := os.WriteFile(orphan, []byte("x\x00"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 { // in this process and in the next
		l, bundle := rootfs(s)
		if mode(bundle) != 0o755 {
			t.Errorf("the layer was walked through again: mode %o", mode(bundle))
		}
		release(t, l)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = openOverlay(t, dir)
	}
	if _, err := os.Lstat(orphan); err == nil {
		t.Error("what is known of a layer that is not there stays")
	}
	// A layer that was removed by hand comes back, and nothing is believed of it.
	if err := os.RemoveAll(s.path("layers", s.name(above))); err != nil {
		t.Fatal(err)
	}
	l, bundle2 := rootfs(s)
	if mode(bundle2) != 0o711 {
		t.Errorf("mode %o", mode(bundle2))
	}
	release(t, l)
}

// BenchmarkMountOfImplied mounts what has a large layer with files in directories
// it does not describe, as the second pull of such an image does.
func BenchmarkMountOfImplied(b *testing.B) {
	s, err := Open(b.Context(), b.TempDir(), Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	var below, above []string
	for i := range 2000 {
		below = append(below, fmt.Sprintf("usr/d%d/", i))
		if i >= 20 {
			above = append(above, fmt.Sprintf("usr/d%d/", i))
		}
		for j := range 10 {
			above = append(above, fmt.Sprintf("usr/d%d/f%d", i, j))
		}
	}
	ids := []ID{{Blob: "below"}, {Blob: "above"}}
	l := s.Begin()
	for i, names := range [][]string{below, above} {
		if _, err := l.Layer(b.Context(), ids[i], unpacked(names...)); err != nil {
			b.Fatal(err)
		}
	}
	if err := l.Keep(); err != nil {
		b.Fatal(err)
	}
	bundle := b.TempDir()
	for b.Loop() {
		l := s.Begin()
		if err := l.Rootfs(b.Context(), bundle, ids); err != nil {
			b.Fatal(err)
		}
		if err := l.Release(); err != nil {
			b.Fatal(err)
		}
	}
	if _, err := os.Stat(s.path("implied", s.name(ids[1]))); err != nil {
		b.Error(err)
	}
	_ = unix.Unmount(filepath.Join(bundle, "rootfs"), unix.MNT_DETACH)
}
