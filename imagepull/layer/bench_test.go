package layer

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/imagepull/layer/untar"
	"github.com/sealpod/sealpod/podvm/testenv"
)

// benchTar is a tar of up to 96 MB from the Go installation: programs and
// source files, of sizes from nothing to 20 MB, as in an application layer.
func benchTar(b *testing.B) []byte {
	b.Helper()
	out, err := exec.CommandContext(b.Context(), "go", "env", "GOROOT").Output()
	must(b, err)
	goroot := strings.TrimSpace(string(out))
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for i, dir := range []string{"pkg/tool", "src"} {
		limit := (i + 1) * 48 << 20
		must(b, filepath.WalkDir(filepath.Join(goroot, dir), func(p string, d fs.DirEntry, err error) error {
			if err != nil || buf.Len() > limit || d.Type()&^fs.ModeDir != 0 {
				return err
			}
			fi, err := d.Info()
			must(b, err)
			h, err := tar.FileInfoHeader(fi, "")
			must(b, err)
			h.Name = strings.TrimPrefix(p, goroot)
			must(b, w.WriteHeader(h))
			if d.IsDir() {
				return nil
			}
			raw, err := os.ReadFile(p)
			must(b, err)
			_, err = w.Write(raw)
			return err
		}))
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
	var cpu time.Duration
	b.ResetTimer()
	for i := range b.N {
		dir := filepath.Join(base, fmt.Sprint(i))
		must(b, os.Mkdir(dir, 0o755))
		before := cpuTime(b)
		must(b, f(dir))
		cpu += cpuTime(b) - before
		b.StopTimer()
		must(b, os.RemoveAll(dir))
		b.StartTimer()
	}
	b.ReportMetric(float64(cpu.Microseconds())/1000/float64(b.N), "cpu-ms/op")
}

// cpuTime is what this process has used of all cores, which other load on the
// machine changes less than it does the time of a run.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	must(b, unix.Getrusage(unix.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// The rate of all these is that of the plain tar.

// smallTar is a tar of 40000 files of up to 4 kB in 2000 directories.
func smallTar(b *testing.B) []byte {
	b.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	body := []byte(noise(4096))
	for i := range 40000 {
		if i%20 == 0 {
			must(b, w.WriteHeader(&tar.Header{Name: fmt.Sprintf("d%d/e%d/", i/400, i/20), Typeflag: tar.TypeDir, Mode: 0o755}))
		}
		size := i * 7 % 4097
		must(b, w.WriteHeader(&tar.Header{Name: fmt.Sprintf("d%d/e%d/file-%d", i/400, i/20, i), Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(size)}))
		_, err := w.Write(body[:size])
		must(b, err)
	}
	must(b, w.Close())
	return buf.Bytes()
}

func BenchmarkUntar(b *testing.B) {
	for name, raw := range map[string][]byte{"mixed": benchTar(b), "small": smallTar(b), "big": tarOf(b, "f", noise(200<<20))} {
		b.Run(name, func(b *testing.B) {
			each(b, len(raw), func(dir string) error {
				mode := untar.Plain
				if os.Geteuid() == 0 {
					mode = untar.Overlay
				}
				_, err := untar.Extract(b.Context(), bytes.NewReader(raw), dir, untar.Options{Mode: mode})
				return err
			})
		})
	}
}

func BenchmarkGNUTar(b *testing.B) {
	raw := benchTar(b)
	for name, in := range map[string][]byte{"-x": raw, "-xz": gz(b, raw), "-x small": smallTar(b), "-x big": tarOf(b, "f", noise(200<<20))} {
		b.Run(name, func(b *testing.B) {
			each(b, len(raw), func(dir string) error {
				cmd := exec.CommandContext(b.Context(), testenv.Tool(b, "tar"), strings.Fields(name)[0], "-C", dir)
				cmd.Stdin = bytes.NewReader(in)
				return cmd.Run()
			})
		})
	}
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
