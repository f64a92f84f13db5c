package debian

import (
	"archive/tar"
	"bytes"
	"errors"
	"maps"
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
