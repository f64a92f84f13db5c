package untar

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm/testenv"
)

// yard is a directory with files that no layer may touch, beside the one a
// layer is unpacked into.
type yard struct {
	base, outside, layer string
	before               map[string]string
}

func newYard(t *testing.T) *yard {
	t.Helper()
	base := t.TempDir()
	y := &yard{base: base, outside: filepath.Join(base, "outside"), layer: filepath.Join(base, "layer")}
	for _, err := range []error{
		os.MkdirAll(filepath.Join(y.outside, "dir"), 0o755), os.Mkdir(y.layer, 0o755),
		os.WriteFile(filepath.Join(y.outside, "secret"), []byte("secret"), 0o644),
		os.WriteFile(filepath.Join(y.outside, "dir/f"), []byte("f"), 0o644),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	y.before = y.snapshot(t)
	return y
}

// snapshot holds everything a change of which would show: ctime covers
// content, owner, mode, links and attributes. The layer itself is left out.
func (y *yard) snapshot(t *testing.T) map[string]string {
	t.Helper()
	m := map[string]string{}
	err := filepath.WalkDir(y.base, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if p == y.layer {
			return fs.SkipDir
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		m[p] = fmt.Sprintf("%d %o %d %v", st.Ino, st.Mode, st.Nlink, st.Ctim)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestAttacks(t *testing.T) {
	// OUT stands for the absolute path of the directory outside, "../outside"
	// is the same seen from the layer.
	tests := []struct {
		name string
		in   []ent
		err  error // nil: unpacks, harmlessly
	}{
		{"name with dot dot", []ent{{name: "../outside/secret", body: "x"}}, ErrArchive},
		{"dot dot in the middle", []ent{{name: "a/../../outside/secret", body: "x"}}, ErrArchive},
		{"dot dot alone", []ent{{name: "..", typ: tar.TypeDir, mode: 0o777}}, ErrArchive},
		{"directory dot dot", []ent{{name: "a/"}, {name: "a/../"}}, ErrArchive},
		{"absolute name", []ent{{name: "OUT/secret", body: "x"}}, nil},
		{"write through an absolute symlink", []ent{{name: "s", typ: tar.TypeSymlink, link: "OUT/secret"}, {name: "s", body: "x"}}, nil},
		{"write through a relative symlink", []ent{{name: "s", typ: tar.TypeSymlink, link: "../outside/secret"}, {name: "s", body: "x"}}, nil},
		{"write below an absolute symlink", []ent{{name: "s", typ: tar.TypeSymlink, link: "OUT"}, {name: "s/secret", body: "x"}}, nil},
		{"write below a relative symlink", []ent{{name: "s", typ: tar.TypeSymlink, link: "../../../../../../.."}, {name: "s/etc/x", body: "x"}}, nil},
		{"write below a symlink to a symlink", []ent{{name: "a/s", typ: tar.TypeSymlink, link: "/t"}, {name: "t", typ: tar.TypeSymlink, link: "OUT"}, {name: "a/s/secret", body: "x"}}, nil},
		{"swap of a parent by a symlink", []ent{{name: "d/x"}, {name: "d", typ: tar.TypeSymlink, link: "OUT"}, {name: "d/secret", body: "x"}}, nil},
		{"swap of a grandparent by a symlink", []ent{{name: "d/e/x"}, {name: "d", typ: tar.TypeSymlink, link: "../outside"}, {name: "d/e/secret", body: "x"}, {name: "d/secret", body: "y"}}, nil},
		{"swap of a noted directory by a symlink", []ent{{name: "d/", mode: 0o777, uid: 1}, {name: "d", typ: tar.TypeSymlink, link: "OUT"}}, nil},
		{"mode of a directory through a symlink", []ent{{name: "s", typ: tar.TypeSymlink, link: "../outside/dir"}, {name: "s/", mode: 0o777}}, nil},
		{"removal of a tree with a symlink in it", []ent{{name: "d/s", typ: tar.TypeSymlink, link: "OUT"}, {name: "d", body: "x"}}, nil},
		{"hard link outside, relative", []ent{{name: "h", typ: tar.TypeLink, link: "../outside/secret"}}, ErrArchive},
		{"hard link outside, absolute", []ent{{name: "h", typ: tar.TypeLink, link: "OUT/secret"}}, ErrArchive},
		{"hard link outside through a symlink", []ent{{name: "s", typ: tar.TypeSymlink, link: "OUT"}, {name: "h", typ: tar.TypeLink, link: "s/secret"}}, ErrArchive},
		{"hard link to a symlink, then written", []ent{{name: "s", typ: tar.TypeSymlink, link: "OUT/secret"}, {name: "h", typ: tar.TypeLink, link: "s"}, {name: "h", body: "x"}}, nil},
		{"hard link to a symlink, then below", []ent{{name: "s", typ: tar.TypeSymlink, link: "OUT"}, {name: "h", typ: tar.TypeLink, link: "s"}, {name: "h/secret", body: "x"}}, nil},
		{"hard link of the root", []ent{{name: "h", typ: tar.TypeLink, link: "/"}}, ErrArchive},
		{"root replaced by a symlink", []ent{{name: ".", typ: tar.TypeSymlink, link: "OUT"}}, ErrArchive},
		{"root replaced by a file", []ent{{name: ".", typ: tar.TypeReg}}, ErrArchive},
		{"device over a file", []ent{{name: "f", body: "x"}, {name: "f", typ: tar.TypeFifo}}, nil},
		{"fifo as parent", []ent{{name: "f", typ: tar.TypeFifo}, {name: "f/x"}}, ErrArchive},
		{"whiteout of dot", []ent{{name: ".wh.."}}, ErrArchive},
		{"whiteout of dot dot", []ent{{name: "d/.wh..."}}, ErrArchive},
		{"whiteout of nothing", []ent{{name: "d/.wh."}}, ErrArchive},
		{"whiteout of dot dot, as a directory", []ent{{name: ".wh.../x"}}, ErrArchive},
		{"whiteout as a directory", []ent{{name: ".wh.d/f"}}, ErrArchive},
		{"whiteout of the parent", []ent{{name: "d/f"}, {name: ".wh.d"}, {name: "d/g"}}, nil},
		{"whiteout below a symlink", []ent{{name: "s", typ: tar.TypeSymlink, link: "../outside"}, {name: "s/.wh.secret"}}, nil},
		{"opaque marker below a symlink", []ent{{name: "s", typ: tar.TypeSymlink, link: "OUT/dir"}, {name: "s/.wh..wh..opq"}}, nil},
		{"hard link to a whiteout", []ent{{name: ".wh.x"}, {name: "h", typ: tar.TypeLink, link: "x"}}, ErrArchive},
		{"hard link to a marker", []ent{{name: ".wh.x"}, {name: "h", typ: tar.TypeLink, link: ".wh.x"}}, ErrArchive},
		{"name longer than the file system takes", []ent{{name: strings.Repeat("n", 256)}}, ErrTooLarge},
		{"deep path", []ent{{name: strings.Repeat("d/", 257) + "f"}}, ErrTooLarge},
		{"path beyond PATH_MAX", []ent{{name: strings.Repeat(strings.Repeat("d", 250)+"/", 17) + "f"}}, ErrTooLarge},
		{"long symlink target", []ent{{name: "s", typ: tar.TypeSymlink, link: strings.Repeat("x", 4096)}}, ErrTooLarge},
		{"deep tree through symlinks", []ent{
			{name: strings.Repeat("d/", 200)}, {name: "s", typ: tar.TypeSymlink, link: strings.Repeat("d/", 200)},
			{name: "s/" + strings.Repeat("e/", 100) + "f"}}, ErrTooLarge},
		{"attribute name too long", []ent{{name: "f", xattrs: map[string]string{"user." + strings.Repeat("x", 255): "1"}}}, ErrArchive},
	}
	for _, tt := range tests {
		for mode, modeName := range []string{"overlay", "plain"} {
			t.Run(tt.name+"/"+modeName, func(t *testing.T) {
				if Mode(mode) == Overlay {
					testenv.Root(t)
				}
				y := newYard(t)
				in := make([]ent, len(tt.in))
				for i, e := range tt.in {
					e.name = strings.Replace(e.name, "OUT", y.outside, 1)
					e.link = strings.Replace(e.link, "OUT", y.outside, 1)
					in[i] = e
				}
				_, err := Extract(t.Context(), bytes.NewReader(archive(t, in...)), y.layer, Options{Mode: Mode(mode)})
				if plainIgnores := tt.name == "hard link to a whiteout" && Mode(mode) == Plain; !plainIgnores {
					if !errors.Is(err, tt.err) || (err != nil) != (tt.err != nil) {
						t.Errorf("error %v, want %v", err, tt.err)
					}
				}
				if d := cmp.Diff(y.before, y.snapshot(t)); d != "" {
					t.Errorf("changed outside the layer:\n%s", d)
				}
				if err := os.RemoveAll(y.layer); err != nil {
					t.Errorf("what was unpacked cannot be removed: %v", err)
				}
			})
		}
	}
}

// endless yields the header of an empty directory again and again, each time
// with another name.
type endless struct {
	hdr  func(i int) *tar.Header
	i    int
	rest []byte
	read int64
}

func (e *endless) Read(p []byte) (int, error) {
	if len(e.rest) == 0 {
		var b bytes.Buffer
		if err := tar.NewWriter(&b).WriteHeader(e.hdr(e.i)); err != nil {
			return 0, err
		}
		e.i++
		e.rest = b.Bytes()
	}
	n := copy(p, e.rest)
	e.rest = e.rest[n:]
	e.read += int64(n)
	return n, nil
}

func TestEntryCountIsCapped(t *testing.T) {
	onceIsEnough(t)
	t.Run("endless entries of one name", func(t *testing.T) {
		src := &endless{hdr: func(int) *tar.Header { return &tar.Header{Name: "d/", Typeflag: tar.TypeDir} }}
		_, err := Extract(t.Context(), src, t.TempDir(), Options{Mode: Plain, MaxEntries: 5000})
		if !errors.Is(err, ErrTooLarge) || src.i > 5002 {
			t.Errorf("%v after %d headers", err, src.i)
		}
	})
	t.Run("ten million entries", func(t *testing.T) {
		header := archive(t, ent{name: "./", typ: tar.TypeDir})[:512]
		src := io.LimitReader(&repeated{header, 0}, 10_000_000*512)
		const limit = DefaultMaxEntries / 16 // what the race detector does in seconds
		st, err := Extract(t.Context(), src, t.TempDir(), Options{Mode: Plain, MaxEntries: limit})
		if !errors.Is(err, ErrTooLarge) || st.Entries != limit+1 {
			t.Errorf("%v after %d entries", err, st.Entries)
		}
	})
	t.Run("implied directories count", func(t *testing.T) {
		src := &endless{hdr: func(i int) *tar.Header {
			return &tar.Header{Name: fmt.Sprint(i, "/", strings.Repeat("d/", 40), "f"), Typeflag: tar.TypeReg}
		}}
		_, err := Extract(t.Context(), src, t.TempDir(), Options{Mode: Plain, MaxEntries: 1000})
		if !errors.Is(err, ErrTooLarge) || src.i > 30 {
			t.Errorf("%v after %d headers", err, src.i)
		}
	})
}

// repeated is b without end.
type repeated struct {
	b  []byte
	at int
}

func (r *repeated) Read(p []byte) (n int, err error) {
	for n < len(p) {
		m := copy(p[n:], r.b[r.at:])
		n, r.at = n+m, (r.at+m)%len(r.b)
	}
	return n, nil
}

func TestSizesAreCapped(t *testing.T) {
	onceIsEnough(t)
	pax := func(typ byte, size int64) []byte {
		var b bytes.Buffer
		if err := tar.NewWriter(&b).WriteHeader(&tar.Header{Name: "x", Size: size, Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		raw := b.Bytes()[:512]
		raw[156] = typ
		sum := 0
		copy(raw[148:156], "        ")
		for _, c := range raw {
			sum += int(c)
		}
		copy(raw[148:156], fmt.Sprintf("%06o\x00 ", sum))
		return raw
	}
	value := strings.Repeat("v", 60<<10)
	tests := []struct {
		name string
		in   io.Reader
		err  error
	}{
		{"PAX header that claims 1 GiB", io.MultiReader(bytes.NewReader(pax('x', 1<<30)), zeros{}), ErrArchive},
		{"GNU long name that claims 1 GiB", io.MultiReader(bytes.NewReader(pax('L', 1<<30)), zeros{}), ErrArchive},
		{"file larger than the cap", bytes.NewReader(pax('0', 1<<21)), ErrTooLarge},
		{"attributes without end", &endless{hdr: func(i int) *tar.Header {
			return &tar.Header{Name: "f", Typeflag: tar.TypeReg, PAXRecords: map[string]string{xattrKey + "trusted.v": value}}
		}}, ErrTooLarge},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Extract(t.Context(), tt.in, t.TempDir(), Options{Mode: Plain, MaxBytes: 1 << 20})
			if !errors.Is(err, tt.err) {
				t.Errorf("error %v, want %v", err, tt.err)
			}
		})
	}
}

func TestRememberedDirectoriesAreCapped(t *testing.T) {
	onceIsEnough(t)
	x := &extractor{tree: &tree{dirs: map[string]attrs{}}}
	long := strings.Repeat("d", 4000)
	for range maxNoted / 4000 {
		if err := x.noteDir(long, attrs{}); err != nil {
			if !errors.Is(err, ErrTooLarge) {
				t.Fatal(err)
			}
			return
		}
	}
	t.Error("no limit")
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestBrokenArchives(t *testing.T) {
	whole := archive(t, ent{name: "a", body: strings.Repeat("x", 1000)}, ent{name: "b", xattrs: map[string]string{"user.x": "1"}})
	// Offsets: header, data and padding of a to 1536, PAX header to 2048, its
	// records to 2560, header of b. Cuts in padding are harmless.
	for _, cut := range []int{1, 100, 511, 513, 1511, 1536 + 1, 2048 - 1, 2048 + 1, 2048 + 15, 2560 + 1, 3072 - 1} {
		if _, _, err := extract(t, whole[:cut], Plain); !errors.Is(err, ErrArchive) {
			t.Errorf("cut at %d: %v", cut, err)
		}
	}
	garbage := append(append([]byte{}, whole...), bytes.Repeat([]byte("garbage!"), 64)...)
	if _, _, err := extract(t, garbage, Plain); !errors.Is(err, ErrArchive) {
		t.Errorf("garbage after the end: %v", err)
	}
	if _, _, err := extract(t, garbage[:len(whole)+7], Plain); !errors.Is(err, ErrArchive) {
		t.Errorf("short garbage after the end: %v", err)
	}
	whole[20] ^= 1
	if _, _, err := extract(t, whole, Plain); !errors.Is(err, ErrArchive) {
		t.Errorf("bad checksum: %v", err)
	}
}

func TestExtractStopsWithContext(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("why")
	src := &endless{hdr: func(i int) *tar.Header {
		if i == 10 {
			cancel(why)
		}
		return &tar.Header{Name: "d/", Typeflag: tar.TypeDir}
	}}
	if _, err := Extract(ctx, src, t.TempDir(), Options{Mode: Plain}); !errors.Is(err, why) {
		t.Errorf("got %v", err)
	}
}

// TestExtractStopsWithContextInAHole: a sparse file of any size takes no byte of
// the tar, so no failing read ends the work.
func TestExtractStopsWithContextInAHole(t *testing.T) {
	const size = 4 << 30
	h := archive(t, ent{name: "f"})[:512]
	h[156] = tar.TypeGNUSparse
	copy(h[257:], "ustar  \x00")
	clear(h[345:512])
	number := func(at int, n int64) { copy(h[at:], fmt.Sprintf("%011o\x00", n)) }
	number(386, size) // one fragment: nothing, at the end
	number(398, 0)
	number(483, size)
	number(124, 0)
	copy(h[148:], "        ")
	sum := 0
	for _, b := range h {
		sum += int(b)
	}
	copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))

	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("why")
	dir := t.TempDir()
	_, err := Extract(ctx, reading{bytes.NewReader(h), func() { cancel(why) }}, dir, Options{Mode: Plain})
	if !errors.Is(err, why) {
		t.Errorf("got %v", err)
	}
	if st, err := os.Stat(dir + "/f"); err != nil || st.Size() != 0 {
		t.Errorf("the file was finished: %v, %v", st, err)
	}
}

// reading calls a function at each Read.
type reading struct {
	io.Reader
	then func()
}

func (r reading) Read(p []byte) (int, error) { r.then(); return r.Reader.Read(p) }
