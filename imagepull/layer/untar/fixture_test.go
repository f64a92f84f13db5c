package untar

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestUnprivileged runs all other tests again as an ordinary user.
func TestUnprivileged(t *testing.T) { testenv.RerunUnprivileged(t) }

// onceIsEnough is for slow tests to which privilege makes no difference.
func onceIsEnough(t testing.TB) {
	t.Helper()
	if testenv.Unprivileged() {
		t.Skip("has run as root")
	}
}

// mtime of all entries that do not say otherwise.
var mtime = time.Unix(1500000000, 0)

// ent is one tar entry. Type 0 is a file, or a directory if the name ends in a
// slash; mode 0 is 0644 or 0755.
type ent struct {
	name, body, link string
	typ              byte
	mode             int64
	uid, gid         int
	major, minor     int64
	xattrs           map[string]string
	mtime            time.Time
}

func archive(t testing.TB, ents ...ent) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range ents {
		h := &tar.Header{
			Name: e.name, Linkname: e.link, Typeflag: e.typ, Mode: e.mode, Uid: e.uid, Gid: e.gid,
			Devmajor: e.major, Devminor: e.minor, ModTime: e.mtime, Size: int64(len(e.body)),
		}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
			if strings.HasSuffix(e.name, "/") {
				h.Typeflag = tar.TypeDir
			}
		}
		if h.Mode == 0 {
			h.Mode = 0o644
			if h.Typeflag == tar.TypeDir {
				h.Mode = 0o755
			}
		}
		if h.ModTime.IsZero() {
			h.ModTime = mtime
		}
		for k, v := range e.xattrs {
			if h.PAXRecords == nil {
				h.PAXRecords = map[string]string{}
			}
			h.PAXRecords[xattrKey+k] = v
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatalf("%s: %v", e.name, err)
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

func extract(t testing.TB, raw []byte, mode Mode) (string, Stats, error) {
	t.Helper()
	dir := t.TempDir()
	st, err := Extract(context.Background(), bytes.NewReader(raw), dir, Options{Mode: mode})
	return dir, st, err
}

// list describes a tree, one line per file: type, permissions, path, and then
// owner (if not 0:0; Overlay only), content or target, device number,
// attributes, other names, time (if not mtime; not for the implied).
func list(t testing.TB, root string, mode Mode) []string {
	t.Helper()
	lines := []string{}
	first := map[uint64]string{}
	err := filepath.WalkDir(root, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		line := fmt.Sprintf("%c %04o %s", "?pc?d?b?-?l?s"[st.Mode>>12], st.Mode&0o7777, rel)
		if mode == Overlay && (st.Uid != 0 || st.Gid != 0) {
			line += fmt.Sprintf(" %d:%d", st.Uid, st.Gid)
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			if st.Nlink > 1 {
				if f, ok := first[st.Ino]; ok {
					lines = append(lines, line+" == "+f)
					return nil
				}
				first[st.Ino] = rel
			}
			if b, err := os.ReadFile(p); err != nil {
				return err
			} else if len(b) > 0 {
				line += fmt.Sprintf(" %.40q", b)
			}
		case unix.S_IFLNK:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			line += " -> " + target
		case unix.S_IFCHR, unix.S_IFBLK:
			line += fmt.Sprintf(" dev %d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
		}
		line += xattrsOf(t, p)
		if sec := st.Mtim.Sec; st.Mtim != notDescribed && sec != mtime.Unix() && sec < 1600000000 {
			line += fmt.Sprintf(" @%d.%d", sec, st.Mtim.Nsec)
		}
		lines = append(lines, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

func xattrsOf(t testing.TB, p string) string {
	t.Helper()
	buf := make([]byte, 4096)
	n, err := unix.Llistxattr(p, buf)
	if err != nil {
		t.Fatal(err)
	}
	names := strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00")
	slices.Sort(names)
	out := ""
	for _, name := range names {
		if name == "" || name == ImpliedXattr || strings.HasPrefix(name, "security.selinux") {
			continue
		}
		v := make([]byte, 4096)
		n, err := unix.Lgetxattr(p, name, v)
		if err != nil {
			t.Fatal(name, err)
		}
		out += fmt.Sprintf(" %s=%q", name, v[:n])
	}
	return out
}
