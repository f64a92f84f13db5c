package untar

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// FuzzExtract unpacks arbitrary bytes beside a file that must not change.
func FuzzExtract(f *testing.F) {
	f.Add(archive(f, ent{name: "a/b", body: "1"}, ent{name: "a/l", typ: tar.TypeLink, link: "/a/b"}, ent{name: "../x"}))
	f.Add(archive(f, ent{name: "d/.wh.x"}, ent{name: "s", typ: tar.TypeSymlink, link: "/"}, ent{name: "s/f", xattrs: map[string]string{"user.x": "1"}}))
	f.Fuzz(func(t *testing.T, raw []byte) { guarded(t, raw) })
}

// FuzzExtractEntries builds a valid tar from the fuzzer's bytes, three per
// entry: type, name and link target, from an alphabet of names that get in each
// other's way.
func FuzzExtractEntries(f *testing.F) {
	f.Add([]byte{2, 1, 12, 0, 4, 0, 1, 9, 9})
	f.Add([]byte("the quick brown fox jumps over the lazy dog"))
	names := []string{"a", "b", "a/b", "a/b/c", "b/a", "s", "s/a", "s/b/c", ".", "./", "../x", "/", "/a", ".wh.a", "a/.wh.b",
		"a/.wh..wh..opq", ".wh..wh..opq", "s/.wh.a", ".wh...", "a/.wh..", "..", "../guard", "OUT/guard", "OUT", "a/../b", "b/s"}
	types := []byte{tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeLink, tar.TypeFifo, tar.TypeChar, tar.TypeReg, tar.TypeSymlink}
	f.Fuzz(func(t *testing.T, program []byte) {
		base := t.TempDir()
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for ; len(program) >= 3; program = program[3:] {
			hdr := &tar.Header{Typeflag: types[int(program[0])%len(types)], Name: names[int(program[1])%len(names)], Mode: int64(program[0]) * 16}
			switch hdr.Typeflag {
			case tar.TypeReg:
				hdr.Name, hdr.Size = strings.TrimRight(hdr.Name, "/"), 3
			case tar.TypeSymlink, tar.TypeLink:
				hdr.Linkname = strings.Replace(names[int(program[2])%len(names)], "OUT", base, 1)
			}
			hdr.Name = strings.Replace(hdr.Name, "OUT", base, 1)
			if hdr.Name == "" || w.WriteHeader(hdr) != nil {
				continue
			}
			if hdr.Size > 0 {
				if _, err := w.Write([]byte("new")); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		guardedIn(t, base, b.Bytes())
	})
}

func guarded(t *testing.T, raw []byte) { guardedIn(t, t.TempDir(), raw) }

func guardedIn(t *testing.T, base string, raw []byte) {
	guard := filepath.Join(base, "guard")
	if err := os.WriteFile(guard, []byte("guard"), 0o600); err != nil {
		t.Fatal(err)
	}
	var before, after unix.Stat_t
	if err := unix.Stat(guard, &before); err != nil {
		t.Fatal(err)
	}
	for _, mode := range []Mode{Plain, Overlay} {
		dir := filepath.Join(base, "layer")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		_, _ = Extract(t.Context(), bytes.NewReader(raw), dir, Options{Mode: mode, MaxBytes: 1 << 20, MaxEntries: 200})
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal("what was unpacked cannot be removed:", err)
		}
		names, err := os.ReadDir(base)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Stat(guard, &after); err != nil || after.Ctim != before.Ctim || len(names) != 1 {
			t.Fatalf("changed outside the layer: %v %v", names, err)
		}
	}
}
