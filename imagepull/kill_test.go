package imagepull

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/imagepull/registry"
	"github.com/sealpod/sealpod/imagepull/registry/registrytest"
)

const kills = 50

// The child's work directory and registry; set only for it.
const (
	childWork = "IMAGEPULL_TEST_WORK"
	childHost = "IMAGEPULL_TEST_REGISTRY"
)

// TestPullerProcess is the process TestKilledAtAnyPoint kills. It pulls for as
// long as it lives, each time first from an empty cache, and says when it begins.
func TestPullerProcess(t *testing.T) {
	host := os.Getenv(childHost)
	if host == "" {
		t.Skip("is run by TestKilledAtAnyPoint")
	}
	m := newMachine(t)
	m.work, m.bundles = filepath.Join(os.Getenv(childWork), "work"), filepath.Join(os.Getenv(childWork), "bundles")
	m.deps.Plain = false
	m.deps.Config.WorkDir = m.work
	m.deps.Config.Registries = &registry.Rules{Registry: []registry.Rule{{Prefix: host, Location: host, Insecure: true}}}
	for {
		fmt.Println("pulling")
		p, err := New(m.deps)
		if err != nil {
			t.Fatal(err)
		}
		for range 3 { // the others find the layers, and the mount of the one before
			if _, err := p.Pull(context.Background(), host+"/a:1", m.bundle("c")); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(p.Remove(context.Background(), m.bundle("c")), p.Close(), m.dropLayers()); err != nil {
			t.Fatal(err)
		}
	}
}

// dropLayers empties the cache of a closed store, at once even if killed.
func (m *machine) dropLayers() error {
	away := filepath.Join(m.work, "tmp", "away")
	return errors.Join(os.Rename(filepath.Join(m.work, "layers"), away), os.RemoveAll(away))
}

// TestKilledAtAnyPoint kills a process that pulls, at random, and starts
// another one on what it left: no mount, no layer, no staging and no overlay
// remains of the killed pull, nothing outside work directory and bundle has
// changed, and the next pull works.
func TestKilledAtAnyPoint(t *testing.T) {
	m := newMachine(t)
	m.needRoot(t)
	base := t.TempDir()
	m.work, m.bundles = filepath.Join(base, "work"), filepath.Join(base, "bundles")
	m.deps.Config.WorkDir = m.work
	t.Cleanup(func() { cleanMounts(t, base) })
	var layers []registrytest.Layer
	want := map[string]string{}
	for i := range 4 {
		files := map[string]string{"noise" + strconv.Itoa(i): string(make([]byte, 300_000))}
		for j := range 40 {
			name := fmt.Sprintf("dir%d/file%d", j%7, i*100+j)
			files[name] = name
			want[name] = name
		}
		layers = append(layers, registrytest.Files(t, files))
	}
	m.Push(t, "a", "1", registrytest.NewImage(layers...))
	guest := guestFiles(t, base)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	took := pullUntilKilled(t, m, -1)
	overlays, marks, mounted, implied := 0, 0, 0, 0
	for range kills {
		pullUntilKilled(t, m, time.Duration(random.Int64N(int64(took))))
		overlays += len(mustGlob(t, filepath.Join(m.work, "overlay", "*")))
		marks += len(mustGlob(t, filepath.Join(m.work, "unfinished", "*")))
		mounted += len(mountsBelow(t, base))

		p, err := New(m.deps)
		if err != nil {
			t.Fatal(err)
		}
		// The first pull opens the store; this one only does that.
		if _, err := p.Pull(deadline(t), m.ref("a:none"), m.bundle("other")); err == nil {
			t.Fatal("an image that is not there was pulled")
		}
		// A pull that was complete but not yet answered stays mounted. Its
		// caller takes the mount off, or asks again.
		complete := len(mountsBelow(t, base)) == 1
		if n := len(mountsBelow(t, base)); n > 1 {
			t.Errorf("%d mounts are left", n)
		}
		if got := len(mustGlob(t, filepath.Join(m.work, "layers", "*"))); got != 0 && got != len(layers) {
			t.Errorf("%d of %d layers are left of an unfinished pull", got, len(layers))
		}
		for _, known := range mustGlob(t, filepath.Join(m.work, "implied", "*")) {
			if _, err := os.Lstat(filepath.Join(m.work, "layers", filepath.Base(known))); err != nil {
				t.Errorf("something is known of a layer that is not there: %v", err)
			}
			implied++
		}
		for _, dir := range []string{"tmp", "unfinished", "overlay"} {
			if left := mustGlob(t, filepath.Join(m.work, dir, "*")); len(left) > 0 && (dir != "overlay" || !complete) {
				t.Errorf("left: %q", left)
			}
		}
		if _, err := p.Pull(deadline(t), m.ref("a:1"), m.bundle("c")); err != nil {
			t.Fatalf("after a kill: %v", err)
		}
		wantFiles(t, filepath.Join(m.bundle("c"), "rootfs"), want)
		if err := errors.Join(p.Remove(t.Context(), m.bundle("c")), p.Close(), m.dropLayers()); err != nil {
			t.Fatal(err)
		}
		if left := tree(t, m.bundles); len(left) != 1 {
			t.Errorf("left among the bundles: %q", left)
		}
		if t.Failed() {
			break
		}
	}
	t.Logf("killed %d times, each within %v: found %d overlays, %d marks, %d mounts and what was known of %d layers", kills, took, overlays, marks, mounted, implied)
	if marks == 0 {
		t.Error("no kill hit a pull under way")
	}
	if d := cmp.Diff(guest, stamps(t, filepath.Join(base, "guest"))); d != "" {
		t.Errorf("files of the guest changed:\n%s", d)
	}
}

// pullUntilKilled starts the child and kills it after a time that counts from
// the beginning of its first pull. A negative one kills it at the beginning of
// the third pull and returns how long the second took.
func pullUntilKilled(t *testing.T, m *machine, after time.Duration) (took time.Duration) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestPullerProcess$")
	cmd.Env = append(os.Environ(), "TMPDIR="+t.TempDir(), childHost+"="+m.Host, childWork+"="+filepath.Dir(m.work))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for n := 0; after < 0 && n < 2; n++ {
		lines.Scan()
	}
	start := time.Now()
	if !lines.Scan() {
		t.Error("the child ended by itself")
	}
	took = time.Since(start)
	if after >= 0 {
		<-time.After(after)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait() // killed
	return took
}

func mountsBelow(t testing.TB, dir string) []*mountinfo.Info {
	t.Helper()
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		t.Fatal(err)
	}
	return mounts
}

// guestFiles makes files beside the work directory and returns their stamps.
func guestFiles(t testing.TB, base string) map[string]string {
	t.Helper()
	dir := filepath.Join(base, "guest")
	for _, name := range []string{"etc/passwd", "dir0/file0", "noise0"} {
		p := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(name), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	return stamps(t, dir)
}

// stamps are mtime and ctime of all files; ctime covers mode, owner, links and
// attributes.
func stamps(t testing.TB, dir string) map[string]string {
	t.Helper()
	m := map[string]string{}
	err := filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil {
			err = unix.Lstat(p, &st)
		}
		m[p] = fmt.Sprint(st.Ino, st.Mtim, st.Ctim)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}
