package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// put unpacks headers and bodies, in turn, as a plain layer.
func put(t *testing.T, entries ...any) string {
	t.Helper()
	raw := tarFrom(t, entries...)
	s := plainLayer(oci, raw, raw)
	dir := t.TempDir()
	_, err := Apply(t.Context(), bytes.NewReader(raw), s.spec, nil, dir, Options{Mode: Plain})
	must(t, err)
	return dir
}

func tarFrom(t *testing.T, entries ...any) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := 0; i < len(entries); i += 2 {
		h, body := entries[i].(tar.Header), entries[i+1].(string)
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
			if strings.HasSuffix(h.Name, "/") {
				h.Typeflag = tar.TypeDir
			}
		}
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		h.Size = int64(len(body))
		if h.ModTime.IsZero() {
			h.ModTime = time.Unix(1500000000, 0)
		}
		must(t, w.WriteHeader(&h))
		_, err := w.Write([]byte(body))
		must(t, err)
	}
	must(t, w.Close())
	return b.Bytes()
}

// show describes a merged tree, one line per name.
func show(t *testing.T, dir string) []string {
	t.Helper()
	lines := []string{}
	inodes := map[uint64]string{}
	must(t, filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		rel := strings.TrimPrefix(p, dir+"/")
		var st unix.Stat_t
		must(t, unix.Lstat(p, &st))
		line := fmt.Sprintf("%c %o %s", "?pc?d?b?-?l?s"[st.Mode>>12], st.Mode&0o7777, rel)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			if first, ok := inodes[st.Ino]; ok {
				lines = append(lines, line+" == "+first)
				return nil
			}
			inodes[st.Ino] = rel
			b, err := os.ReadFile(p)
			must(t, err)
			line += " " + string(b)
		case unix.S_IFLNK:
			target, err := os.Readlink(p)
			must(t, err)
			line += " -> " + target
		}
		buf := make([]byte, 100)
		if n, err := unix.Lgetxattr(p, "user.x", buf); err == nil {
			line += " user.x=" + string(buf[:n])
		}
		if st.Mtim.Sec != 1500000000 && st.Mtim.Nsec != 1 && st.Mtim.Sec < 1600000000 {
			line += fmt.Sprint(" @", st.Mtim.Sec)
		}
		lines = append(lines, line)
		return nil
	}))
	return lines
}

func h(name string) tar.Header { return tar.Header{Name: name} }

func link(typ byte, name, target string) tar.Header {
	return tar.Header{Typeflag: typ, Name: name, Linkname: target}
}

func TestMerge(t *testing.T) {
	at := func(h tar.Header, mode int64, sec int64, x string) tar.Header {
		h.Mode, h.ModTime = mode, time.Unix(sec, 0)
		if x != "" {
			h.PAXRecords = map[string]string{"SCHILY.xattr.user.x": x}
		}
		return h
	}
	tests := map[string]struct {
		layers [][]any
		want   []string
	}{
		"no layers": {want: []string{}},
		"upper files win, directories join": {
			layers: [][]any{{h("d/"), "", h("d/a"), "1", h("d/b"), "1"}, {h("d/b"), "2", h("d/c"), "2"}},
			want:   []string{"d 755 d", "- 755 d/a 1", "- 755 d/b 2", "- 755 d/c 2"},
		},
		"modes, times and attributes of the topmost": {
			layers: [][]any{
				{at(h("d/"), 0o700, 1000, "low"), "", at(h("d/f"), 0o4711, 1100, "f"), "1", at(h("e/"), 0o711, 1200, "e"), "", h("e/x"), "1"},
				{at(h("d/"), 0o3777, 1300, ""), "", at(h("d/g"), 0o444, 1400, "g"), "2"},
			},
			want: []string{"d 3777 d @1300", "- 4711 d/f 1 user.x=f @1100", "- 444 d/g 2 user.x=g @1400", "d 711 e user.x=e @1200", "- 755 e/x 1"},
		},
		"directories of which nothing is said stay what they were": {
			layers: [][]any{{at(h("tmp/"), 0o1777, 1300, "x"), ""}, {h("tmp/f"), "2", h("new/f"), "2"}, {h("tmp/g"), "3"}},
			want:   []string{"d 755 new", "- 755 new/f 2", "d 1777 tmp user.x=x @1300", "- 755 tmp/f 2", "- 755 tmp/g 3"},
		},
		"whiteouts remove files and trees of lower layers": {
			layers: [][]any{{h("a"), "1", h("d/e/f"), "1", h("k"), "1"}, {h(".wh.a"), "", h(".wh.d"), "", h(".wh.nothing"), ""}},
			want:   []string{"- 755 k 1"},
		},
		"a hidden name of the same layer stays": {
			layers: [][]any{{h("d/old"), "1"}, {h("d/new"), "2", h(".wh.d"), ""}},
			want:   []string{"d 755 d", "- 755 d/new 2"},
		},
		"opaque directories hide what is below": {
			layers: [][]any{{h("d/old"), "1", h("d/e/old"), "1"}, {h("d/e/new"), "2", h("d/.wh..wh..opq"), ""}},
			want:   []string{"d 755 d", "d 755 d/e", "- 755 d/e/new 2"},
		},
		"types change": {
			layers: [][]any{
				{h("a/x"), "1", h("b"), "1", link(tar.TypeSymlink, "c", "a"), "", h("s/x"), "1"},
				{h("a"), "2", h("b/y"), "2", h("c/z"), "2", link(tar.TypeSymlink, "s", "/etc"), ""},
			},
			want: []string{"- 755 a 2", "d 755 b", "- 755 b/y 2", "d 755 c", "- 755 c/z 2", "l 777 s -> /etc"},
		},
		"hard links stay together and leave replaced ones behind": {
			layers: [][]any{
				{h("a"), "1", link(tar.TypeLink, "d/b", "a"), "", link(tar.TypeLink, "c", "a"), ""},
				{h("c"), "2", link(tar.TypeLink, "e", "c"), ""},
			},
			want: []string{"- 755 a 1", "- 755 c 2", "d 755 d", "- 755 d/b == a", "- 755 e == c"},
		},
		"symlinks are not followed": {
			layers: [][]any{{link(tar.TypeSymlink, "s", "/"), "", link(tar.TypeSymlink, "dangling", "x"), ""}, {h("s/f"), "2", h(".wh.dangling"), ""}},
			want:   []string{"d 755 s", "- 755 s/f 2"},
		},
		"hard linked symlinks": {
			layers: [][]any{{link(tar.TypeSymlink, "s", "x"), "", link(tar.TypeLink, "t", "s"), ""}},
			want:   []string{"l 777 s -> x", "l 777 t -> x"},
		},
		"fifos": {layers: [][]any{{link(tar.TypeFifo, "p", ""), ""}}, want: []string{"p 755 p"}},
		"files without permissions, owner may still read": {
			layers: [][]any{{at(h("shadow"), 0o4000, 1500000000, ""), "1", at(h("d/"), 0o111, 1500000000, ""), "", h("d/f"), "1"}, {h("d/g"), "2"}},
			want:   []string{"d 711 d", "- 755 d/f 1", "- 755 d/g 2", "- 4400 shadow 1"},
		},
	}
	for n, tt := range tests {
		t.Run(n, func(t *testing.T) {
			var layers []string
			for _, entries := range tt.layers {
				layers = append(layers, put(t, entries...))
			}
			dst := t.TempDir()
			must(t, Merge(t.Context(), layers, dst))
			if d := cmp.Diff(tt.want, show(t, dst)); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestMergeKeepsHoles(t *testing.T) {
	src := t.TempDir()
	f, err := os.Create(filepath.Join(src, "sparse"))
	must(t, err)
	_, err = f.WriteAt([]byte("x"), 64<<20)
	must(t, errors.Join(err, f.Truncate(128<<20), f.Close()))
	dst := t.TempDir()
	must(t, Merge(t.Context(), []string{src}, dst))
	var st unix.Stat_t
	must(t, unix.Stat(filepath.Join(dst, "sparse"), &st))
	if st.Size != 128<<20 || st.Blocks*512 > 1<<20 {
		t.Errorf("size %d, takes %d", st.Size, st.Blocks*512)
	}
	out, err := os.Open(filepath.Join(dst, "sparse"))
	must(t, err)
	defer out.Close() //nolint:errcheck // read-only
	one := make([]byte, 1)
	if _, err := out.ReadAt(one, 64<<20); err != nil || one[0] != 'x' {
		t.Error("content lost", err)
	}
}

// TestMergeCopies holds that a container that writes to its merged directory
// does not write to the layer.
func TestMergeCopies(t *testing.T) {
	layer, dst := put(t, h("f"), "1"), t.TempDir()
	must(t, Merge(t.Context(), []string{layer}, dst))
	must(t, os.WriteFile(filepath.Join(dst, "f"), []byte("changed"), 0o644))
	if got := files(t, layer)["f"]; got != "1" {
		t.Errorf("layer has %q", got)
	}
}

func TestMergeFails(t *testing.T) {
	layer := put(t, h("f"), "1")
	if err := Merge(t.Context(), []string{layer, layer + "/none"}, t.TempDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing layer: %v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("why")
	cancel(why)
	if err := Merge(ctx, []string{layer}, t.TempDir()); !errors.Is(err, why) {
		t.Errorf("cancelled: %v", err)
	}
	deep := t.TempDir()
	must(t, os.MkdirAll(deep+strings.Repeat("/d", mergeDepth+1), 0o755))
	if err := Merge(t.Context(), []string{deep}, t.TempDir()); !errors.Is(err, ErrTooLarge) {
		t.Errorf("deep: %v", err)
	}
}
