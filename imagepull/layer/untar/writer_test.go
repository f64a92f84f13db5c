package untar

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm/testenv"
)

// TestNamesChangeWhileFilesAreWritten holds that what is done to the name of a
// file follows the order of the tar, however far the writer is.
func TestNamesChangeWhileFilesAreWritten(t *testing.T) {
	var in []ent
	body := func(i int, what string) string {
		return strings.Repeat(fmt.Sprintf("%s %d\n", what, i), 1+i*977%40000)
	}
	const rounds = 60
	for i := range rounds {
		in = append(in,
			ent{name: fmt.Sprintf("linked%d", i), body: body(i, "linked"), mode: 0o604},
			ent{name: fmt.Sprintf("link%d", i), typ: tar.TypeLink, link: fmt.Sprintf("linked%d", i)},
			ent{name: fmt.Sprintf("linked%d", i), body: body(i, "after"), mode: 0o640},
			ent{name: fmt.Sprintf("file%d", i), body: body(i, "gone")},
			ent{name: fmt.Sprintf("file%d/", i), mode: 0o751},
			ent{name: fmt.Sprintf("file%d/f", i), body: body(i, "gone")},
			ent{name: fmt.Sprintf("dir%d/f", i), body: body(i, "gone")},
			ent{name: fmt.Sprintf("dir%d", i), body: body(i, "file"), mode: 0o600},
			ent{name: fmt.Sprintf("sym%d", i), body: body(i, "gone")},
			ent{name: fmt.Sprintf("sym%d", i), typ: tar.TypeSymlink, link: fmt.Sprintf("dir%d", i)},
		)
	}
	dir, st, err := extract(t, archive(t, in...), Plain)
	if err != nil || st.Entries != len(in) {
		t.Fatalf("%+v, %v", st, err)
	}
	check := func(name string, mode uint32, want string) {
		t.Helper()
		var st unix.Stat_t
		raw, err := os.ReadFile(filepath.Join(dir, name))
		if err := errors.Join(err, unix.Stat(filepath.Join(dir, name), &st)); err != nil {
			t.Fatal(err)
		}
		if string(raw) != want || st.Mode&0o7777 != mode || st.Mtim.Sec != mtime.Unix() {
			t.Errorf("%s: %d bytes, want %d; mode %o, want %o; time %d", name, len(raw), len(want), st.Mode&0o7777, mode, st.Mtim.Sec)
		}
	}
	for i := range rounds {
		check(fmt.Sprintf("link%d", i), 0o604, body(i, "linked"))
		check(fmt.Sprintf("linked%d", i), 0o640, body(i, "after"))
		check(fmt.Sprintf("file%d/f", i), 0o644, body(i, "gone"))
		check(fmt.Sprintf("dir%d", i), 0o600, body(i, "file"))
		check(fmt.Sprintf("sym%d", i), 0o600, body(i, "file"))
	}
}

// openFiles is how many descriptors this process has.
func openFiles(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// TestErrorsCloseFiles holds that no descriptor outlives Extract, wherever it
// fails, and that the error is the first in the order of the tar.
func TestErrorsCloseFiles(t *testing.T) {
	testenv.Root(t)
	full := t.TempDir()
	if err := unix.Mount("tmpfs", full, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(full, unix.MNT_DETACH) })
	var in []ent
	for i := range 200 {
		in = append(in, ent{name: fmt.Sprintf("d%d/f", i), body: strings.Repeat("x", 10000)})
	}
	raw := archive(t, in...)
	broken := errors.New("broken")
	tests := map[string]struct {
		r    io.Reader
		dir  string
		opts Options
		err  error
		text string
	}{
		"no error":        {r: bytes.NewReader(raw), dir: t.TempDir()},
		"inside a file":   {r: bytes.NewReader(raw[:500000]), dir: t.TempDir(), err: ErrArchive},
		"the reader":      {r: io.MultiReader(bytes.NewReader(raw[:500000]), iotest.ErrReader(broken)), dir: t.TempDir(), err: broken},
		"too many":        {r: bytes.NewReader(raw), dir: t.TempDir(), opts: Options{MaxEntries: 300}, err: ErrTooLarge},
		"full":            {r: bytes.NewReader(raw), dir: full, err: unix.ENOSPC, text: "writing a file"},
		"full and broken": {r: io.MultiReader(bytes.NewReader(raw[:1200000]), iotest.ErrReader(broken)), dir: full, err: unix.ENOSPC, text: "writing a file"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			dir, err := os.MkdirTemp(tt.dir, "")
			if err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(dir)
			before := openFiles(t)
			tt.opts.Mode = Plain
			_, err = Extract(context.Background(), tt.r, dir, tt.opts)
			if !errors.Is(err, tt.err) || (err != nil) != (tt.err != nil) || (err != nil && !strings.Contains(err.Error(), tt.text)) {
				t.Errorf("%v", err)
			}
			if n := openFiles(t); n != before {
				t.Errorf("%d descriptors before, %d after", before, n)
			}
		})
	}
}

// TestPanicOfTheWriter holds that it comes out where it can be contained.
func TestPanicOfTheWriter(t *testing.T) {
	w := newWriter(Plain)
	w.room().pieces = make([]piece, 1)
	w.cur.pieces[0].last, w.cur.pieces[0].fd = true, -1
	w.do(nil)
	defer func() {
		if recover() == nil {
			t.Error("nothing came out")
		}
		if err := w.finish(); !errors.Is(err, errStuck) {
			t.Errorf("%v", err)
		}
	}()
	_ = w.finish()
}
