package imagepull

import (
	"context"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/sys/mountinfo"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/imagepull/registry"
	"github.com/sealpod/sealpod/imagepull/registry/registrytest"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// machine is a work directory, a bundle parent and a registry.
type machine struct {
	*registrytest.Server
	work, bundles string
	deps          Deps
}

// newMachine is unprivileged unless the test changes deps.Plain.
func newMachine(t testing.TB) *machine {
	t.Helper()
	m := &machine{Server: registrytest.New(t), work: filepath.Join(t.TempDir(), "work"), bundles: t.TempDir()}
	t.Cleanup(func() { cleanMounts(t, m.bundles) })
	conf := DefaultConfig()
	conf.WorkDir = m.work
	conf.Registries = &registry.Rules{Registry: []registry.Rule{{Prefix: m.Host, Location: m.Host, Insecure: true}}}
	m.deps = Deps{
		Config: conf, Plain: true, Backoff: time.Millisecond, Log: slog.New(slog.DiscardHandler),
		Host: podvm.Host{LookupEnv: func(string) (string, bool) { return "", false }},
	}
	return m
}

func cleanMounts(t testing.TB, under string) {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(under))
	if err != nil {
		t.Error(err)
	}
	for _, m := range mounts {
		if err := unix.Unmount(m.Mountpoint, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}
}

func (m *machine) puller(t testing.TB) *Puller {
	t.Helper()
	p, err := New(m.deps)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func (m *machine) ref(name string) string { return m.Host + "/" + name }

func (m *machine) bundle(name string) string { return filepath.Join(m.bundles, name) }

// needRoot selects overlay mounts, or skips.
func (m *machine) needRoot(t testing.TB) {
	t.Helper()
	testenv.Root(t)
	m.deps.Plain = false
}

func deadline(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// tree lists everything below dir, without what a store has from its opening.
func tree(t testing.TB, dir string) []string {
	t.Helper()
	var list []string
	err := filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(dir, p)
		if !slices.Contains([]string{".", "lock", "boot_id", "implied", "layers", "overlay", "tmp", "unfinished"}, rel) {
			list = append(list, rel)
		}
		return err
	})
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return list
}

// wantNothingLeft checks that a failed pull left no trace.
func (m *machine) wantNothingLeft(t testing.TB) {
	t.Helper()
	if left := tree(t, m.work); len(left) > 0 {
		t.Errorf("left in the work directory: %q", left)
	}
	if left := tree(t, m.bundles); len(left) > 0 {
		t.Errorf("left among the bundles: %q", left)
	}
	for _, dir := range []string{m.work, m.bundles} {
		mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
		if err != nil || len(mounts) > 0 {
			t.Errorf("%d mounts left below %s, %v", len(mounts), dir, err)
		}
	}
}

// guarded makes files of a guest beside the work directory. The function it
// returns is for after a pull that failed: nothing of it is left, nothing of the
// guest has changed, and the next pull works.
func (m *machine) guarded(t testing.TB) func(*Puller) {
	t.Helper()
	base := filepath.Dir(m.work)
	before := guestFiles(t, base)
	return func(p *Puller) {
		t.Helper()
		m.wantNothingLeft(t)
		m.Hook(nil)
		m.Push(t, "next", "1", twoLayers(t))
		if _, err := p.Pull(deadline(t), m.ref("next:1"), m.bundle("next")); err != nil {
			t.Errorf("the next pull: %v", err)
		}
		wantFiles(t, filepath.Join(m.bundle("next"), "rootfs"), map[string]string{"etc/name": "top"})
		if err := p.Remove(t.Context(), m.bundle("next")); err != nil {
			t.Error(err)
		}
		if d := cmp.Diff(before, stamps(t, filepath.Join(base, "guest"))); d != "" {
			t.Errorf("files of the guest changed:\n%s", d)
		}
	}
}

func wantFiles(t testing.TB, dir string, want map[string]string) {
	t.Helper()
	for name, content := range want {
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || string(got) != content {
			t.Errorf("%s: %q, %v; want %q", name, got, err, content)
		}
	}
}

// wantCause checks the sentence that leaves the guest.
func wantCause(t testing.TB, err error, parts ...string) {
	t.Helper()
	cause := podvm.Cause(err)
	for _, p := range parts {
		if !strings.Contains(cause, p) {
			t.Errorf("cause %q lacks %q; chain: %v", cause, p, err)
		}
	}
}
