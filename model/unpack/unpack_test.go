package unpack

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/model/room"
	"github.com/sealpod/sealpod/podvm/testenv"
)

type entry struct {
	name, body string
	typ        byte // of tar
	link       string
}

func tarOf(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Typeflag: e.typ, Size: int64(len(e.body)), Mode: 0o4770, Linkname: e.link}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(e.body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func gzipOf(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func zipOf(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for _, e := range entries {
		h := &zip.FileHeader{Name: e.name, Method: zip.Deflate}
		if e.typ == tar.TypeSymlink {
			h.SetMode(fs.ModeSymlink | 0o777)
		}
		f, err := w.CreateHeader(h)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write([]byte(e.body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// unpacked puts an archive into a folder, unpacks it and returns what is there.
func unpacked(t testing.TB, ctx context.Context, name string, archive []byte, o Options) (map[string]string, error) {
	t.Helper()
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name), archive, 0o644); err != nil {
		t.Fatal(err)
	}
	err = InPlace(ctx, root, name, o)
	got := map[string]string{}
	if werr := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(p)
		got[strings.TrimPrefix(p, dir+"/")] = string(b)
		return err
	}); werr != nil {
		t.Fatal(werr)
	}
	return got, err
}

var model = []entry{
	{name: "./", typ: tar.TypeDir}, {name: "m/", typ: tar.TypeDir}, {name: "./m/config.json", body: "{}"},
	{name: "m/weights/1.bin", body: strings.Repeat("w", 1<<20)}, {name: "m/empty"},
}

func TestInPlace(t *testing.T) {
	want := map[string]string{"m/config.json": "{}", "m/weights/1.bin": strings.Repeat("w", 1<<20), "m/empty": ""}
	for name, archive := range map[string][]byte{
		"model.tar": tarOf(t, model...), "model.TAR.gz": gzipOf(t, tarOf(t, model...)), "model.tgz": gzipOf(t, tarOf(t, model...)),
		"model.zip": zipOf(t, model[2:]...),
	} {
		var bytes int64
		got, err := unpacked(t, t.Context(), name, archive, Options{Progress: func(n int64) { bytes += n }})
		if err != nil || !maps.Equal(got, want) || bytes != 1<<20+2 {
			t.Errorf("%s: %v, %d files, %d bytes", name, err, len(got), bytes)
		}
		got, err = unpacked(t, t.Context(), "sub/"+name, archive, Options{StripFirst: true})
		if err != nil || !slices.Equal(slices.Sorted(maps.Keys(got)), []string{"sub/config.json", "sub/empty", "sub/weights/1.bin"}) {
			t.Errorf("%s: %v, %v", name, err, slices.Sorted(maps.Keys(got)))
		}
	}
	// An archive may hold its own name.
	got, err := unpacked(t, t.Context(), "a.tar", tarOf(t, entry{name: "a.tar", body: "x"}), Options{})
	if err != nil || got["a.tar"] != "x" {
		t.Error(got, err)
	}
	for name, is := range map[string]bool{"a.tar": true, "A.TGZ": true, "b/a.zip": true, "a.gz": false, "a": false, "tar": false} {
		if Is(name) != is {
			t.Errorf("%s: %v", name, !is)
		}
	}
}

func TestRefused(t *testing.T) {
	whole := gzipOf(t, tarOf(t, model...))
	broken := slices.Clone(zipOf(t, model[3]))
	broken[60] ^= 1
	for what, tt := range map[string]struct {
		name    string
		archive []byte
	}{
		"above":           {"a.tar", tarOf(t, entry{name: "../x", body: "x"})},
		"above inside":    {"a.tar", tarOf(t, entry{name: "a/../../x", body: "x"})},
		"absolute":        {"a.tar", tarOf(t, entry{name: "/etc/x", body: "x"})},
		"link":            {"a.tar", tarOf(t, entry{name: "l", typ: tar.TypeSymlink, link: "/etc"})},
		"hard link":       {"a.tar", tarOf(t, entry{name: "l", typ: tar.TypeLink, link: "a.tar"})},
		"device":          {"a.tar", tarOf(t, entry{name: "l", typ: tar.TypeChar})},
		"pipe":            {"a.tar", tarOf(t, entry{name: "l", typ: tar.TypeFifo})},
		"above in zip":    {"a.zip", zipOf(t, entry{name: "../x", body: "x"})},
		"link in zip":     {"a.zip", zipOf(t, entry{name: "l", body: "/etc", typ: tar.TypeSymlink})},
		"cut":             {"a.tgz", whole[:len(whole)/2]},
		"cut at the end":  {"a.tgz", whole[:len(whole)-3]},
		"no tar":          {"a.tar", []byte(strings.Repeat("x", 2000))},
		"no gzip":         {"a.tgz", tarOf(t, model...)},
		"no zip":          {"a.zip", whole},
		"checksum of zip": {"a.zip", broken},
		"in progress":     {"a.tar", tarOf(t, entry{name: ".x.part", body: "x"})},
	} {
		got, err := unpacked(t, t.Context(), tt.name, tt.archive, Options{})
		if !errors.Is(err, ErrArchive) {
			t.Errorf("%s: %v", what, err)
		}
		for name := range got {
			if strings.HasSuffix(name, ".part") || strings.Contains(name, "x") {
				t.Errorf("%s: %s is left", what, name)
			}
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := unpacked(t, ctx, "a.tar", tarOf(t, model...), Options{}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestNoSpace(t *testing.T) {
	testenv.Root(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	bomb := gzipOf(t, tarOf(t, entry{name: "a", body: strings.Repeat("\x00", 3<<20)}, entry{name: "b", body: strings.Repeat("\x00", 3<<20)}))
	if err := os.WriteFile(dir+"/m.tgz", bomb, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := InPlace(t.Context(), root, "m.tgz", Options{}); !errors.Is(err, room.ErrSpace) {
		t.Error(err)
	}
	if _, err := os.Stat(dir + "/b"); err == nil {
		t.Error("a part has its name")
	}
}

func FuzzTar(f *testing.F) {
	f.Add(tarOf(f, model[:3]...))
	f.Fuzz(func(t *testing.T, in []byte) { fuzz(t, "a.tar", in) })
}

func FuzzZip(f *testing.F) {
	f.Add(zipOf(f, model[2]))
	f.Fuzz(func(t *testing.T, in []byte) { fuzz(t, "a.zip", in) })
}

// fuzz unpacks in.
func fuzz(t *testing.T, name string, in []byte) {
	got, err := unpacked(t, t.Context(), name, in, Options{})
	if err != nil && !errors.Is(err, ErrArchive) && !errors.Is(err, room.ErrSpace) && !errors.As(err, new(*fs.PathError)) && !errors.As(err, new(*os.LinkError)) {
		t.Fatal(err)
	}
	for p := range got {
		if strings.HasSuffix(p, ".part") {
			t.Fatalf("%s is left", p)
		}
	}
}

// TestNamesInEachOthersWay: what cannot all be in one folder is the archive's fault,
// and has its word.
func TestNamesInEachOthersWay(t *testing.T) {
	for what, entries := range map[string][]entry{
		"below a file":        {{name: "a", body: "x"}, {name: "a/b", body: "x"}},
		"folder over a file":  {{name: "a", body: "x"}, {name: "a/", typ: tar.TypeDir}},
		"file over a folder":  {{name: "a/b", body: "x"}, {name: "a", body: "x"}},
		"below the archive":   {{name: "m.tar/x", body: "x"}},
		"folder of that name": {{name: "m.tar/", typ: tar.TypeDir}},
	} {
		if got, err := unpacked(t, t.Context(), "m.tar", tarOf(t, entries...), Options{}); !errors.Is(err, ErrArchive) {
			t.Errorf("%s: %v", what, err)
		} else if _, left := got[".a.part"]; left {
			t.Errorf("%s: a part is left", what)
		}
	}
}

// TestReadOnlyFileInProgress: a run was killed when an entry had its mode and not yet
// its name.
func TestReadOnlyFileInProgress(t *testing.T) {
	testenv.Root(t)
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for name, text := range map[string][]byte{"m.tar": tarOf(t, entry{name: "a", body: "x"}), ".a.part": []byte("x")} {
		if err := errors.Join(os.WriteFile(filepath.Join(dir, name), text, 0o444), os.Chown(filepath.Join(dir, name), 65534, 65534)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(dir, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with its user
		if _, err := unix.SetfsuidRetUid(65534); err != nil {
			done <- err
			return
		}
		done <- InPlace(t.Context(), root, "m.tar", Options{})
	}()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestZipOfTooManyEntries: its directory is read at once, before anything is counted.
func TestZipOfTooManyEntries(t *testing.T) {
	const n = 1_000_000
	header := make([]byte, 47)
	copy(header, "PK\x01\x02")
	header[28], header[46] = 1, 'x' // a name of one byte
	dir := bytes.Repeat(header, n)
	end := make([]byte, 22)
	copy(end, "PK\x05\x06")
	binary.LittleEndian.PutUint16(end[8:], n%65536)
	binary.LittleEndian.PutUint16(end[10:], n%65536)
	binary.LittleEndian.PutUint32(end[12:], uint32(len(dir)))
	root := t.TempDir()
	file, err := os.Create(filepath.Join(root, "a.zip"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.Write(append(dir, end...)); err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	u := &unpacker{ctx: t.Context()}
	if err := u.zip(file); !errors.Is(err, ErrArchive) {
		t.Error(err)
	}
	runtime.ReadMemStats(&after)
	if took := (after.TotalAlloc - before.TotalAlloc) >> 20; took > 200 {
		t.Errorf("%d MiB of memory", took)
	}
}
