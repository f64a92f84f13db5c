package layer

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
)

// fuzzApply unpacks blob beside a file that must not change.
func fuzzApply(t *testing.T, mediaType string, blob []byte) {
	base := t.TempDir()
	dir := filepath.Join(base, "layer")
	must(t, os.Mkdir(dir, 0o755))
	must(t, os.WriteFile(filepath.Join(base, "guard"), []byte("guard"), 0o600))
	s := plainLayer(mediaType, blob, nil)
	s.spec.DiffID = digest.FromString("whatever").String()
	opts := Options{Mode: Plain, MaxBytes: 1 << 20, MaxEntries: 200}
	if _, err := Apply(t.Context(), bytes.NewReader(blob), s.spec, nil, dir, opts); err == nil {
		t.Error("a wrong diffID was accepted")
	}
	names, err := os.ReadDir(base)
	must(t, err)
	if got, err := os.ReadFile(filepath.Join(base, "guard")); len(names) != 2 || string(got) != "guard" || err != nil {
		t.Error("something outside the layer changed")
	}
	must(t, os.RemoveAll(dir)) // what was unpacked can be removed
}

func FuzzApplyTar(f *testing.F) {
	f.Add(tarOf(f, "a/b", "1", "/etc/x", "2", "d/.wh.x", "", "../guard", "3"))
	for _, name := range []string{"links.tar", "sparse.tar", "pax.tar"} {
		raw, err := os.ReadFile(filepath.Join("testdata", name))
		must(f, err)
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) { fuzzApply(t, oci, raw) })
}

func FuzzApplyGzip(f *testing.F) {
	f.Add(gz(f, tarOf(f, "a", "1")))
	f.Add(concat(gz(f, []byte("x")), gz(f, nil)))
	f.Fuzz(func(t *testing.T, raw []byte) { fuzzApply(t, oci+"+gzip", raw) })
}

func FuzzApplyZstd(f *testing.F) {
	f.Add(zst(f, tarOf(f, "a", "1")))
	f.Fuzz(func(t *testing.T, raw []byte) { fuzzApply(t, oci+"+zstd", raw) })
}
