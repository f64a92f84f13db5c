package store

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/imagepull/layer/untar"
)

// TestImpliedDirectoriesAreWhatTheLayersBelowSay mounts layers, base first. An
// entry is a name and, for a directory, its mode, which is also its group and
// the time in its attributes.
func TestImpliedDirectoriesAreWhatTheLayersBelowSay(t *testing.T) {
	type entries [][2]string
	tests := map[string]struct {
		layers []entries
		want   map[string]int64 // mode of directories
	}{
		"one layer below":  {[]entries{{{"tmp/", "1777"}, {"a/", "750"}}, {{"tmp/f"}, {"a/f"}}}, map[string]int64{"tmp": 0o1777, "a": 0o750}},
		"two layers below": {[]entries{{{"tmp/", "1777"}}, {{"tmp/f"}}, {{"tmp/g"}}}, map[string]int64{"tmp": 0o1777}},
		"nested":           {[]entries{{{"./", "711"}, {"a/", "701"}, {"a/b/", "702"}, {"a/b/c/", "703"}}, {{"a/b/c/f"}}}, map[string]int64{".": 0o711, "a": 0o701, "a/b": 0o702, "a/b/c": 0o703}},
		"the topmost that says": {[]entries{{{"a/", "701"}, {"b/", "701"}}, {{"a/", "702"}, {"b/f"}}, {{"a/f"}, {"b/", "703"}}},
			map[string]int64{"a": 0o702, "b": 0o703}},
		"none says":            {[]entries{{{"a/f"}}, {{"a/g"}}}, map[string]int64{"a": 0o755}},
		"hidden by a whiteout": {[]entries{{{"a/", "701"}, {"a/b/", "702"}}, {{".wh.a"}}, {{"a/b/f"}}}, map[string]int64{"a": 0o755, "a/b": 0o755}},
		"hidden as opaque":     {[]entries{{{"a/", "701"}, {"a/b/", "702"}}, {{"a/", "711"}, {"a/.wh..wh..opq"}}, {{"a/b/f"}}}, map[string]int64{"a": 0o711, "a/b": 0o755}},
		"hidden by a file":     {[]entries{{{"a/", "701"}}, {{"a"}}, {{"a/f"}}}, map[string]int64{"a": 0o755}},
		"not shown itself":     {[]entries{{{"a/", "701"}}, {{"a/f"}}, {{".wh.a"}}}, nil},
		"replaced by a file":   {[]entries{{{"a/", "701"}}, {{"a/f"}}, {{"a"}}}, nil},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s := openOverlay(t, t.TempDir())
			l := s.Begin()
			var ids []ID
			for i, list := range tt.layers {
				var b bytes.Buffer
				w := tar.NewWriter(&b)
				for _, e := range list {
					h := &tar.Header{Name: e[0], Typeflag: tar.TypeReg, Mode: 0o644, ModTime: time.Unix(1600000000, 0)}
					if e[1] != "" {
						if _, err := fmt.Sscanf(e[1], "%o", &h.Mode); err != nil {
							t.Fatal(err)
						}
						h.Typeflag, h.Gid, h.ModTime = tar.TypeDir, int(h.Mode), time.Unix(h.Mode, 0)
						h.PAXRecords = map[string]string{"SCHILY.xattr.trusted.mode": e[1]}
					}
					if err := w.WriteHeader(h); err != nil {
						t.Fatal(err)
					}
				}
				if err := w.Close(); err != nil {
					t.Fatal(err)
				}
				id := ID{Blob: fmt.Sprint(i)}
				ids = append(ids, id)
				add(t, l, id, func(_ context.Context, dir string) error {
					_, err := untar.Extract(t.Context(), &b, dir, untar.Options{})
					return err
				})
			}
			bundle := t.TempDir()
			if err := l.Rootfs(t.Context(), bundle, ids); err != nil {
				t.Fatal(err)
			}
			defer release(t, l)
			for path, mode := range tt.want {
				p := filepath.Join(bundle, "rootfs", path)
				var st unix.Stat_t
				if err := unix.Lstat(p, &st); err != nil {
					t.Fatal(err)
				}
				value := make([]byte, 10)
				n, err := unix.Lgetxattr(p, "trusted.mode", value)
				got := []string{fmt.Sprintf("%o", st.Mode&0o7777), fmt.Sprint(st.Gid), fmt.Sprint(st.Mtim.Sec), string(value[:max(n, 0)])}
				want := []string{fmt.Sprintf("%o", mode), fmt.Sprint(mode), fmt.Sprint(mode), fmt.Sprintf("%o", mode)}
				if mode == 0o755 {
					want = []string{"755", "0", "0", ""}
				}
				if d := cmp.Diff(want, got); d != "" {
					t.Errorf("%s: %v\n%s", path, err, d)
				}
			}
			list := make([]byte, 100)
			n, err := unix.Llistxattr(filepath.Join(bundle, "rootfs"), list)
			if err != nil || bytes.Contains(list[:n], []byte("sealpod")) {
				t.Errorf("the mark shows: %q, %v", list[:n], err)
			}
		})
	}
}
