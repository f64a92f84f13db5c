package image

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sealpod/sealpod/podvm/debian"
	"github.com/sealpod/sealpod/podvm/testenv"
)

// needTools returns only where a build can go on without a network.
func needTools(t *testing.T) {
	t.Helper()
	if err := CheckTools(true); err != nil {
		testenv.Missing(t, err.Error())
	}
}

func TestMissingToolsAreNamedWithTheirPackages(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	err := CheckTools(true)
	if !errors.Is(err, ErrTools) {
		t.Fatal(err)
	}
	for _, want := range []string{"mmdebstrap (package mmdebstrap)", "veritysetup (package cryptsetup-bin)", "qemu-img (package qemu-utils)"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v: without %s", err, want)
		}
	}
	if err := CheckTools(false); strings.Contains(err.Error(), "qemu-img") {
		t.Error(err)
	}
}

// cached is a cache that has packages for a build, so that none are fetched:
// with kernel and stub, that nobody could boot.
func cached(t *testing.T, o Options) (list []debian.Package) {
	t.Helper()
	all := packagesOf()
	all["usr/lib/systemd/boot/efi/linuxx64.efi.stub"] = debian.File(0o644, stub())
	all["boot/vmlinuz-6.12"] = debian.File(0o644, stub())
	all["usr/lib/os-release"] = debian.File(0o644, []byte("ID=debian\n"))
	var builtin []string
	for _, name := range initrdModules {
		builtin = append(builtin, "kernel/"+name+".ko")
	}
	all["usr/lib/modules/6.12/modules.builtin"] = debian.File(0o644, []byte(strings.Join(builtin, "\n")+"\n"))
	list = []debian.Package{{File: "a_1_all.deb", SHA256: strings.Repeat("0a", 32)}}
	path, _ := cachePath(o)
	if err := writeCache(path, all, list); err != nil {
		t.Fatal(err)
	}
	return list
}

func testOptions(t *testing.T) Options {
	t.Helper()
	dir := t.TempDir()
	o := Options{Out: filepath.Join(dir, "podvm"), Init: filepath.Join(dir, "init"), Cache: dir}
	if err := os.WriteFile(o.Init, []byte("\x7fELF"), 0o600); err != nil {
		t.Fatal(err)
	}
	return o
}

func TestBuild(t *testing.T) {
	needTools(t)
	o := testOptions(t)
	list := cached(t, o)
	o.Pinned, o.QCow2 = list, true
	o.PauseBundle = t.TempDir()
	if err := os.WriteFile(filepath.Join(o.PauseBundle, "config.json"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	o.KataAgent = o.Init
	r, err := Build(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "sfdisk", "--json", "--verify", r.Raw).Output()
	if err == nil {
		out, err = exec.CommandContext(t.Context(), "sfdisk", "--json", r.Raw).Output()
	}
	if err != nil {
		t.Fatal(err)
	}
	var table struct {
		PartitionTable struct {
			Partitions []struct{ Name, Type, UUID string }
		}
	}
	if err := json.Unmarshal(out, &table); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, p := range table.PartitionTable.Partitions {
		names = append(names, p.Name)
	}
	if got := strings.Join(names, " "); got != "esp root root-verity trusted_store" {
		t.Errorf("partitions %s", got)
	}
	if id := strings.ToLower(table.PartitionTable.Partitions[1].UUID); id != uuid(r.RootHash[:32]) {
		t.Errorf("the root partition is %s for %s", id, r.RootHash)
	}
	uki, err := os.ReadFile(r.UKI)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(r.Raw)
	if err != nil || !bytes.Contains(raw, uki[:4096]) {
		t.Errorf("the kernel image is not on the disk, %v", err)
	}
	if line, err := sectionData(uki, ".cmdline"); err != nil || !strings.HasPrefix(string(line), "roothash="+r.RootHash+" ") {
		t.Errorf("command line %s, %v", line, err)
	}
	if out, err := exec.CommandContext(t.Context(), "qemu-img", "compare", "-f", "raw", "-F", "qcow2", r.Raw, r.QCow2).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	left, err := filepath.Glob(filepath.Join(o.Cache, ".*"))
	if err != nil || len(left) > 0 {
		t.Errorf("%q is left, %v", left, err)
	}
}

// What the builder's machine and account are like is not in the image.
func TestBuildsAreEqual(t *testing.T) {
	needTools(t)
	tree := t.TempDir()
	build := func() *Result {
		t.Helper()
		o := testOptions(t)
		cached(t, o)
		o.Trees = []string{tree}
		r, err := Build(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	file := filepath.Join(tree, "usr", "local", "bin", "program")
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("\x7fELF"), 0o700); err != nil {
		t.Fatal(err)
	}
	first := build()
	for _, mode := range []os.FileMode{0o755, 0o711} {
		if err := os.Chmod(file, mode); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("TZ", "Asia/Tokyo")
	t.Setenv("LC_ALL", "de_DE.UTF-8")
	t.Setenv("SOURCE_DATE_EPOCH", "1")
	t.Setenv("TMPDIR", t.TempDir())
	if again := build(); again.SHA256 != first.SHA256 || *again.Measurements != *first.Measurements {
		t.Errorf("%+v, then %+v", first, again)
	}
	if err := os.WriteFile(file, []byte("\x7fELG"), 0o700); err != nil {
		t.Fatal(err)
	}
	if other := build(); other.SHA256 == first.SHA256 || other.Measurements.PCR11 == first.Measurements.PCR11 {
		t.Errorf("another program, and the same image: %+v", other)
	}
}

func TestBuildRefuses(t *testing.T) {
	needTools(t)
	for name, c := range map[string]struct {
		change func(*Options)
		err    error
	}{
		"a profile that is none": {func(o *Options) { o.Profile = "developer" }, nil},
		"other packages":         {func(o *Options) { o.Pinned = []debian.Package{{File: "b_1_all.deb"}} }, ErrPinned},
		"a tree that is none":    {func(o *Options) { o.Trees = []string{"/nothing"} }, os.ErrNotExist},
		"an agent that is none":  {func(o *Options) { o.KataAgent = "/nothing" }, os.ErrNotExist},
		"no first program":       {func(o *Options) { o.Init = "/nothing" }, os.ErrNotExist},
		"a bundle that is none":  {func(o *Options) { o.PauseBundle = "/nothing" }, os.ErrNotExist},
	} {
		o := testOptions(t)
		cached(t, o)
		c.change(&o)
		if _, err := Build(t.Context(), o); err == nil || c.err != nil && !errors.Is(err, c.err) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Stat(o.Out + ".raw"); err == nil {
			t.Errorf("%s: there is an image", name)
		}
	}
}
