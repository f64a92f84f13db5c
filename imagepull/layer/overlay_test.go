package layer

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sealpod/sealpod/podvm/testenv"
)

// TestOverlayAndMergeAgree holds that the kernel, given layers in Overlay mode,
// shows the same tree as Merge makes of the same layers in Plain mode.
func TestOverlayAndMergeAgree(t *testing.T) {
	testenv.Root(t)
	layers := [][]any{
		{h("./"), "", h("etc/a"), "1", h("etc/b"), "1", h("usr/lib/x"), "1", h("usr/lib/sub/y"), "1", h("var/log/l"), "1",
			h("gone/f"), "1", h("file"), "1", h("dir/f"), "1", link(tar.TypeSymlink, "bin", "usr/bin"), "", link(tar.TypeLink, "hard", "etc/a"), ""},
		{h("./"), "", h("etc/.wh.b"), "", h("usr/lib/.wh..wh..opq"), "", h("usr/lib/z"), "2", h(".wh.gone"), "", h("gone/new"), "2",
			h("file/now"), "2", h("dir"), "2", h("bin/tool"), "2", h("var/.wh.nothing"), ""},
		{h("./"), "", h("etc/b"), "3", h("usr/lib/sub/w"), "3", h("gone/.wh.new"), "", h(".wh.file"), "", h("dir/again"), "3", h(".wh.bin"), "", h("bin/only"), "3"},
	}
	var plain []string
	lower := ""
	for _, entries := range layers {
		plain = append(plain, put(t, entries...))
		dir := t.TempDir()
		raw := tarFrom(t, entries...)
		s := plainLayer(oci, raw, raw)
		_, err := Apply(t.Context(), bytes.NewReader(raw), s.spec, nil, dir, Options{Mode: Overlay})
		must(t, err)
		if lower != "" {
			dir += ":"
		}
		lower = dir + lower
	}
	merged, mnt, rw := t.TempDir(), t.TempDir(), t.TempDir()
	must(t, Merge(t.Context(), plain, merged))
	must(t, os.Mkdir(filepath.Join(rw, "u"), 0o755))
	must(t, os.Mkdir(filepath.Join(rw, "w"), 0o755))
	opts := "lowerdir=" + lower + ",upperdir=" + rw + "/u,workdir=" + rw + "/w"
	mount(t, "overlay", mnt, opts)
	if d := cmp.Diff(show(t, mnt), show(t, merged)); d != "" {
		t.Errorf("overlayfs (-) and Merge (+) differ:\n%s", d)
	}
	if got := show(t, mnt); len(got) != 17 {
		t.Errorf("only %d names: %q", len(got), got)
	}
}
