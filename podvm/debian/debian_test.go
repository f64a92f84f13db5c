package debian

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// archive is an archive as mmdebstrap makes it, much smaller.
func archive(t *testing.T) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, h := range []struct {
		tar.Header
		data string
	}{
		{tar.Header{Typeflag: tar.TypeDir, Name: "./usr/sbin/", Mode: 0o755}, ""},
		{tar.Header{Typeflag: tar.TypeReg, Name: "./boot/vmlinuz-6.12", Mode: 0o644}, "kernel"},
		{tar.Header{Typeflag: tar.TypeReg, Name: "./usr/sbin/mke2fs", Mode: 0o755}, "program"},
		{tar.Header{Typeflag: tar.TypeSymlink, Name: "./usr/sbin/mkfs.ext4", Linkname: "mke2fs"}, ""},
		{tar.Header{Typeflag: tar.TypeSymlink, Name: "./usr/sbin/mkfs", Linkname: "/sbin/mkfs.ext4"}, ""},
		{tar.Header{Typeflag: tar.TypeLink, Name: "./usr/sbin/hard", Linkname: "./usr/sbin/mke2fs"}, ""},
		{tar.Header{Typeflag: tar.TypeSymlink, Name: "./usr/sbin/broken", Linkname: "nothing"}, ""},
	} {
		h.Size = int64(len(h.data))
		if err := w.WriteHeader(&h.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(h.data)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestClosureFollowsLinks(t *testing.T) {
	all, err := Read(bytes.NewReader(archive(t)))
	if err != nil {
		t.Fatal(err)
	}
	got, err := all.Closure([]string{"usr/sbin/mkfs", "usr/sbin/hard"})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"usr/sbin/hard", "usr/sbin/mke2fs", "usr/sbin/mkfs", "usr/sbin/mkfs.ext4"}
	if names := slices.Sorted(maps.Keys(got)); !slices.Equal(names, want) {
		t.Errorf("got %q, want %q", names, want)
	}
	if n := got["usr/sbin/hard"]; string(n.Data) != "program" || n.Mode != unix.S_IFREG|0o755 {
		t.Errorf("the hard link is %o with %q", n.Mode, n.Data)
	}
	if _, err := all.Closure([]string{"usr/sbin/broken"}); err == nil || !strings.Contains(err.Error(), "usr/sbin/nothing") {
		t.Errorf("a link to nothing: %v", err)
	}
}

func TestDirectoriesKeepTheirBits(t *testing.T) {
	all, err := Read(bytes.NewReader(archive(t)))
	if err != nil {
		t.Fatal(err)
	}
	if n := all["usr/sbin"]; n.Kind() != unix.S_IFDIR || n.Mode&0o7777 != 0o755 {
		t.Errorf("usr/sbin is %o", n.Mode)
	}
}

func TestTreesGoThroughArchives(t *testing.T) {
	tree := Tree{
		"usr/bin/tool": File(0o755, []byte("program")), "usr/bin/link": Link("tool"), "tmp": Dir(0o1777), "etc/deep/file": File(0o600, nil),
	}
	r, err := tree.Tar()
	if err != nil {
		t.Fatal(err)
	}
	first, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Read(bytes.NewReader(first))
	if err != nil {
		t.Fatal(err)
	}
	for name, n := range tree {
		if m := got[name]; m.Mode != n.Mode || string(m.Data) != string(n.Data) {
			t.Errorf("%s is %o %q", name, m.Mode, m.Data)
		}
	}
	if n := got["etc/deep"]; n.Mode != Dir(0o755).Mode {
		t.Errorf("etc/deep is %o", n.Mode)
	}
	again, err := got.Tar()
	if err != nil {
		t.Fatal(err)
	}
	if second, err := io.ReadAll(again); err != nil || !bytes.Equal(first, second) {
		t.Errorf("%d bytes, then %d, %v", len(first), len(second), err)
	}
	if _, err := (Tree{"pipe": {Mode: unix.S_IFIFO | 0o600}}).Tar(); err == nil {
		t.Error("a pipe in an archive")
	}
}

func TestDirectoriesAreReadWithoutTheirOwnersHabits(t *testing.T) {
	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{"plain": 0o640, "program": 0o700} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/nowhere", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	got, err := ReadDir(dir, "/opt/x")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]uint32{
		"opt/x": unix.S_IFDIR | 0o755, "opt/x/plain": unix.S_IFREG | 0o644, "opt/x/program": unix.S_IFREG | 0o755, "opt/x/link": unix.S_IFLNK | 0o777,
	} {
		if got[name].Mode != want {
			t.Errorf("%s is %o", name, got[name].Mode)
		}
	}
	if err := unix.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadDir(dir, ""); err == nil {
		t.Error("a pipe in a tree")
	}
}

func TestListsOfPackages(t *testing.T) {
	sum := strings.Repeat("0a", 32)
	got, err := ParsePackages([]byte(sum + "  b_1_all.deb\n" + sum + "  a_1:2_amd64.deb\n"))
	if err != nil || len(got) != 2 || got[0].File != "a_1:2_amd64.deb" || got[1].SHA256 != sum {
		t.Fatalf("%v, %v", got, err)
	}
	again, err := ParsePackages(FormatPackages(got))
	if err != nil || !slices.Equal(again, got) {
		t.Errorf("%v, %v", again, err)
	}
	for name, raw := range map[string]string{
		"no sum": "x  a.deb", "short sum": "0a  a.deb", "one space": sum + " a.deb", "a path": sum + "  a/b.deb", "no package": sum + "  a.txt",
	} {
		if _, err := ParsePackages([]byte(raw)); !errors.Is(err, ErrPackages) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzParsePackages(f *testing.F) {
	f.Add([]byte(strings.Repeat("0a", 32) + "  a_1_all.deb\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		got, err := ParsePackages(raw)
		if err != nil {
			return
		}
		if again, err := ParsePackages(FormatPackages(got)); err != nil || !slices.Equal(again, got) {
			t.Errorf("%v, then %v, %v", got, again, err)
		}
	})
}
