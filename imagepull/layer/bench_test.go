package layer

import (
	"archive/tar"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sealpod/sealpod/imagepull/layer/untar"
)

// benchTar resembles an application layer: 1500 files in 150 directories,
// from 100 bytes to 1 MiB, 64 MB in all, text that gzip shrinks to about a third.
func benchTar(b *testing.B) []byte {
	b.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	random := noise(4 << 20)
	var words strings.Builder
	for i := 0; words.Len() < 8<<20; i++ {
		fmt.Fprintf(&words, "%x func return %s\n", random[i*7%len(random)&^7:][:6], "if err != nil")
	}
	text := words.String()
	sizes := []int{100, 700, 2500, 6000, 9000, 14000, 20000, 30000, 45000, 300000}
	for i := range 1500 {
		if i%10 == 0 {
			must(b, w.WriteHeader(&tar.Header{Name: fmt.Sprintf("usr/lib/dir%d/", i/10), Typeflag: tar.TypeDir, Mode: 0o755}))
		}
		n := sizes[i%len(sizes)]
		if i%100 == 99 {
			n = 1 << 20
		}
		at := i * 4099 % (len(text) - n)
		must(b, w.WriteHeader(&tar.Header{Name: fmt.Sprintf("usr/lib/dir%d/file%d", i/10, i), Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(n)}))
		_, err := w.Write([]byte(text[at : at+n]))
		must(b, err)
	}
	must(b, w.Close())
	return buf.Bytes()
}

// benchDir is a fresh directory on tmpfs, if there is one, so that the disk is
// not what is measured. Removing trees is not timed.
func benchDir(b *testing.B) string {
	b.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "layer")
	if err != nil {
		dir = b.TempDir()
	}
	b.Cleanup(func() { must(b, os.RemoveAll(dir)) })
	return dir
}

// each runs f with an empty directory b.N times.
func each(b *testing.B, bytes int, f func(dir string) error) {
	base := benchDir(b)
	b.ReportAllocs()
	b.SetBytes(int64(bytes))
	b.ResetTimer()
	for i := range b.N {
		dir := filepath.Join(base, fmt.Sprint(i))
		must(b, os.Mkdir(dir, 0o755))
		must(b, f(dir))
		b.StopTimer()
		must(b, os.RemoveAll(dir))
		b.StartTimer()
	}
}

// The rate of all these is that of the plain tar.

func BenchmarkUntar(b *testing.B) {
	raw := benchTar(b)
	each(b, len(raw), func(dir string) error {
		_, err := untar.Extract(b.Context(), bytes.NewReader(raw), dir, untar.Options{Mode: untar.Plain})
		return err
	})
}

func BenchmarkGNUTar(b *testing.B) {
	raw := benchTar(b)
	each(b, len(raw), func(dir string) error {
		cmd := exec.CommandContext(b.Context(), "tar", "-x", "-C", dir)
		cmd.Stdin = bytes.NewReader(raw)
		return cmd.Run()
	})
}

func BenchmarkApply(b *testing.B) {
	raw := benchTar(b)
	for _, c := range []struct {
		name   string
		sample sample
	}{
		{"tar", plainLayer(oci, raw, raw)},
		{"gzip", plainLayer(oci+"+gzip", gz(b, raw), raw)},
		{"zstd", plainLayer(oci+"+zstd", zst(b, raw), raw)},
	} {
		sealed, _ := seal(b, c.sample)
		for name, s := range map[string]sample{c.name: c.sample, c.name + "+encrypted": sealed} {
			b.Run(name, func(b *testing.B) {
				each(b, len(raw), func(dir string) error {
					_, err := Apply(b.Context(), bytes.NewReader(s.blob), s.spec, s.key, dir, Options{Mode: Plain})
					return err
				})
				b.ReportMetric(float64(len(raw))/float64(len(s.blob)), "ratio")
			})
		}
	}
}

func BenchmarkMerge(b *testing.B) {
	raw := benchTar(b)
	s := plainLayer(oci, raw, raw)
	src := benchDir(b)
	_, err := Apply(b.Context(), bytes.NewReader(s.blob), s.spec, nil, src, Options{Mode: Plain})
	must(b, err)
	each(b, len(raw), func(dir string) error { return Merge(b.Context(), []string{src}, dir) })
}
