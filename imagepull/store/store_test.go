package store

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/moby/sys/mountinfo"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/imagepull/layer"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t *testing.T, dir string, plain bool) *Store {
	t.Helper()
	s, err := Open(t.Context(), dir, Options{Plain: plain, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func openOverlay(t *testing.T, dir string) *Store {
	t.Helper()
	testenv.Root(t)
	s := open(t, dir, false)
	if s.Mode() != layer.Overlay {
		testenv.Missing(t, "needs overlay mounts, which are not permitted here")
	}
	return s
}

// with fills a layer with one file.
func with(name, content string) func(context.Context, string) error {
	return func(_ context.Context, dir string) error {
		return os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600)
	}
}

func add(t *testing.T, l *Lease, id ID, fill func(context.Context, string) error) {
	t.Helper()
	if cached, err := l.Layer(t.Context(), id, fill); err != nil || cached {
		t.Fatalf("cached %t, %v", cached, err)
	}
}

func release(t *testing.T, l *Lease) {
	t.Helper()
	if err := l.Release(); err != nil {
		t.Error(err)
	}
}

func keep(t *testing.T, l *Lease) {
	t.Helper()
	if err := l.Keep(); err != nil {
		t.Fatal(err)
	}
}

func count(t *testing.T, pattern ...string) int {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(pattern...))
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

var one, two = ID{"sha256:blob1", "sha256:diff1", false}, ID{"sha256:blob2", "sha256:diff2", false}

func TestSecondProcessIsRefused(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, true)
	if _, err := Open(t.Context(), dir, Options{Plain: true}); !errors.Is(err, ErrBusy) {
		t.Errorf("error %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, dir, true)
}

func TestFailedFillLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, true).Begin()
	boom := errors.New("boom")
	_, err := l.Layer(t.Context(), one, func(_ context.Context, dir string) error {
		if err := with("a", "x")(t.Context(), dir); err != nil {
			return err
		}
		return errors.Join(boom, os.Chmod(dir, 0o500)) // as an image may
	})
	if !errors.Is(err, boom) || count(t, dir, "tmp", "*")+count(t, dir, "layers", "*") != 0 {
		t.Errorf("error %v, or something is left", err)
	}
	add(t, l, one, with("a", "y")) // and the next one may try
}

func TestCancelledFillIsNotCommitted(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, true).Begin()
	ctx, cancel := context.WithCancel(t.Context())
	_, err := l.Layer(ctx, one, func(context.Context, string) error { cancel(); return nil })
	if !errors.Is(err, context.Canceled) || count(t, dir, "layers", "*") != 0 {
		t.Errorf("error %v, or the layer was committed", err)
	}
}

func TestLayerIdentityIsBothDigests(t *testing.T) {
	s := open(t, t.TempDir(), true)
	l := s.Begin()
	add(t, l, one, with("a", "1"))
	for _, id := range []ID{{one.Blob, two.DiffID, false}, {two.Blob, one.DiffID, false}, {one.DiffID, one.Blob, false}, {one.Blob, one.DiffID, true}} {
		if s.Has(id) {
			t.Errorf("%v is taken for %v", id, one)
		}
	}
	if !s.Has(one) {
		t.Error("the layer is not there")
	}
}

func TestReleaseRemovesOnlyWhatNobodyWants(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, true)
	a, b := s.Begin(), s.Begin()
	add(t, a, one, with("a", "1"))
	add(t, a, two, with("a", "2"))
	if cached, err := b.Layer(t.Context(), one, nil); err != nil || !cached {
		t.Fatalf("cached %t, %v", cached, err)
	}
	release(t, a)
	if !s.Has(one) || s.Has(two) || count(t, dir, "layers", "*") != 1 {
		t.Error("want the layer of the other lease, and only it")
	}
	keep(t, b)
	release(t, b)
	c := s.Begin()
	if cached, _ := c.Layer(t.Context(), one, nil); !cached {
		t.Error("a kept layer is gone")
	}
	release(t, c)
	release(t, c)
	if !s.Has(one) || count(t, dir, "tmp", "*") != 0 {
		t.Error("releasing a lease removed a kept layer, or left staging")
	}
}

func TestLayersOutliveTheProcessButNotTheBoot(t *testing.T) {
	dir, root := t.TempDir(), t.TempDir()
	boot := filepath.Join(root, "proc/sys/kernel/random/boot_id")
	if err := os.MkdirAll(filepath.Dir(boot), 0o755); err != nil {
		t.Fatal(err)
	}
	reopen := func(id string) *Store {
		if err := os.WriteFile(boot, []byte(id), 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open(t.Context(), dir, Options{Plain: true, Host: podvm.Host{Root: root}, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := reopen("first")
	l := s.Begin()
	add(t, l, one, with("a", "1"))
	keep(t, l)
	// What a killed process leaves, and what was never ours.
	for _, d := range []string{"tmp/layer-1/x", "layers/7"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for id, want := range map[string]bool{"first": true} { // the process restarts
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if s = reopen(id); s.Has(one) != want || count(t, dir, "tmp", "*") != 0 {
			t.Errorf("boot %s: has layer: %t", id, s.Has(one))
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = reopen("second")
	if s.Has(one) || count(t, dir, "layers", "*") != 1 {
		t.Error("a layer outlived the boot, or a foreign directory did not")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestLayerRemovedByHandIsFilledAgain(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, true)
	l := s.Begin()
	add(t, l, one, with("a", "1"))
	keep(t, l)
	if err := os.RemoveAll(s.path("layers", s.name(one))); err != nil {
		t.Fatal(err)
	}
	add(t, s.Begin(), one, with("a", "1"))
}

func TestPlainRootfsIsRolledBackWithItsDirectories(t *testing.T) {
	dir, parent := t.TempDir(), t.TempDir()
	s := open(t, dir, true)
	for _, existing := range []string{"", "deep", "deep/bundle/rootfs"} {
		if err := os.MkdirAll(filepath.Join(parent, existing), 0o755); err != nil {
			t.Fatal(err)
		}
		l := s.Begin()
		add(t, l, one, with("a", "1"))
		if err := l.Rootfs(t.Context(), filepath.Join(parent, "deep/bundle"), []ID{one}); err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(filepath.Join(parent, "deep/bundle/rootfs/a")); err != nil || string(b) != "1" {
			t.Errorf("%q, %v", b, err)
		}
		release(t, l)
		if _, err := os.Stat(filepath.Join(parent, existing)); err != nil {
			t.Errorf("what existed is gone: %v", err)
		}
		if count(t, parent, existing, "*")+count(t, parent, existing, ".rootfs.new") != 0 {
			t.Errorf("%q: something is left", existing)
		}
	}
}

func TestRootfsRefusesWhatIsInTheWay(t *testing.T) {
	s := open(t, t.TempDir(), true)
	for name, put := range map[string]func(rootfs string) error{
		"file":      func(p string) error { return os.WriteFile(p, nil, 0o600) },
		"link":      func(p string) error { return os.Symlink(t.TempDir(), p) },
		"not empty": func(p string) error { return os.MkdirAll(filepath.Join(p, "x"), 0o755) },
	} {
		t.Run(name, func(t *testing.T) {
			bundle := t.TempDir()
			if err := put(filepath.Join(bundle, "rootfs")); err != nil {
				t.Fatal(err)
			}
			l := s.Begin()
			if err := l.Rootfs(t.Context(), bundle, nil); !errors.Is(err, ErrRootfs) {
				t.Errorf("error %v", err)
			}
			release(t, l)
			if count(t, bundle, "rootfs") != 1 {
				t.Error("what was in the way is gone")
			}
		})
	}
}

func TestOverlayMountRefusesAForeignMount(t *testing.T) {
	s := openOverlay(t, t.TempDir())
	bundle := t.TempDir()
	rootfs := filepath.Join(bundle, "rootfs")
	if err := os.Mkdir(rootfs, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", rootfs, "tmpfs", 0, "size=4k"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(rootfs, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	l := s.Begin()
	if err := l.Rootfs(t.Context(), bundle, nil); !errors.Is(err, ErrRootfs) {
		t.Errorf("error %v", err)
	}
	release(t, l)
}

// TestForeignMountOnOurRootfsStays: a retry takes off what this store mounted,
// not what somebody mounted over it.
func TestForeignMountOnOurRootfsStays(t *testing.T) {
	s := openOverlay(t, t.TempDir())
	bundle := t.TempDir()
	rootfs := filepath.Join(bundle, "rootfs")
	l := s.Begin()
	add(t, l, one, with("a", "1"))
	if err := l.Rootfs(t.Context(), bundle, []ID{one}); err != nil {
		t.Fatal(err)
	}
	defer release(t, l)
	if err := unix.Mount("tmpfs", rootfs, "tmpfs", 0, "size=4k"); err != nil {
		t.Fatal(err)
	}
	again := s.Begin()
	if err := again.Rootfs(t.Context(), bundle, nil); !errors.Is(err, ErrRootfs) {
		t.Errorf("error %v", err)
	}
	release(t, again)
	var st unix.Statfs_t
	if err := unix.Statfs(rootfs, &st); err != nil || st.Type != unix.TMPFS_MAGIC {
		t.Errorf("the foreign mount is gone: type %#x, %v", st.Type, err)
		return
	}
	if err := unix.Unmount(rootfs, 0); err != nil {
		t.Error(err)
	}
}

func TestOverlayRootfsIsWritableAndSweptWhenUnmounted(t *testing.T) {
	dir, parent := t.TempDir(), t.TempDir()
	s := openOverlay(t, dir)
	rootfs := filepath.Join(parent, "b", "rootfs")
	l := s.Begin()
	add(t, l, one, with("a", "1"))
	add(t, l, two, with("b", "2"))
	if err := l.Rootfs(t.Context(), filepath.Join(parent, "b"), []ID{one, two, one}); err != nil {
		t.Fatal(err)
	}
	keep(t, l)
	if err := os.WriteFile(filepath.Join(rootfs, "a"), []byte("changed"), 0o600); err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(s.path("layers", s.name(one), "a")); err != nil || string(b) != "1" {
		t.Errorf("writing to a rootfs changed a layer: %q, %v", b, err)
	}
	if err := s.sweep(t.Context()); err != nil || count(t, dir, "overlay", "*") != 1 {
		t.Errorf("a mounted overlay was swept: %v", err)
	}
	// What kata-agent does at the end of a container.
	if err := unix.Unmount(rootfs, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(rootfs); err != nil {
		t.Errorf("rootfs is not an empty directory: %v", err)
	}
	if err := s.sweep(t.Context()); err != nil || count(t, dir, "overlay", "*") != 0 {
		t.Errorf("upper directory of a gone mount stays: %v", err)
	}
}

func TestOverlayRollbackRestoresTheMountTable(t *testing.T) {
	dir, parent := t.TempDir(), t.TempDir()
	s := openOverlay(t, dir)
	l := s.Begin()
	add(t, l, one, with("a", "1"))
	if err := l.Rootfs(t.Context(), filepath.Join(parent, "b"), []ID{one}); err != nil {
		t.Fatal(err)
	}
	release(t, l)
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(parent))
	if err != nil || len(mounts) != 0 || count(t, parent, "*") != 0 || count(t, dir, "overlay", "*") != 0 || count(t, dir, "layers", "*") != 0 {
		t.Errorf("%d mounts, or files, are left, %v", len(mounts), err)
	}
}

func TestMountFailureIsRolledBack(t *testing.T) {
	dir, parent := t.TempDir(), t.TempDir()
	s := openOverlay(t, dir)
	l := s.Begin()
	add(t, l, one, with("a", "1"))
	// The second layer was never staged, so the mount fails.
	if err := l.Rootfs(t.Context(), filepath.Join(parent, "b"), []ID{one, two}); err == nil {
		t.Fatal("a layer that is not there was mounted")
	}
	release(t, l)
	if count(t, parent, "*") != 0 || count(t, dir, "overlay", "*") != 0 {
		t.Error("something is left")
	}
}

func TestFree(t *testing.T) {
	for name, tt := range map[string]struct {
		st   unix.Statfs_t
		want int64
	}{
		"ordinary":              {unix.Statfs_t{Blocks: 100, Bavail: 10, Bsize: 4096, Frsize: 4096}, 40960},
		"large blocks to write": {unix.Statfs_t{Blocks: 100, Bavail: 10, Bsize: 1 << 20, Frsize: 512}, 5120}, // FUSE, NFS
		"no fragments":          {unix.Statfs_t{Blocks: 100, Bavail: 10, Bsize: 1024}, 10240},
		"full":                  {unix.Statfs_t{Blocks: 100, Bsize: 4096, Frsize: 4096}, 0},
		"no limit":              {unix.Statfs_t{Bsize: 4096, Frsize: 4096}, math.MaxInt64},
		"no unit":               {unix.Statfs_t{Blocks: 100, Bavail: 10}, math.MaxInt64},
		"nonsense":              {unix.Statfs_t{Blocks: 100, Bavail: math.MaxUint64, Bsize: -1, Frsize: -1}, math.MaxInt64},
		"too much":              {unix.Statfs_t{Blocks: 100, Bavail: math.MaxUint64, Bsize: 4096, Frsize: 4096}, math.MaxInt64},
	} {
		if got := free(tt.st); got != tt.want {
			t.Errorf("%s: %d, want %d", name, got, tt.want)
		}
	}
}
