package demo

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// The benchmarks here measure whole processes; run them with make bench. Each
// holds a bar that does not depend on how fast the machine is today, or one so
// far off that only a real change reaches it.

// BenchmarkExecToReady reports the median time from exec to a serving socket.
// Bar: 100 ms for each daemon.
func BenchmarkExecToReady(b *testing.B) {
	times := map[string][]time.Duration{}
	for b.Loop() {
		w := newWorld(b)
		for name, d := range w.ready {
			times[name] = append(times[name], d)
		}
	}
	for name, list := range times {
		slices.Sort(list)
		median := list[len(list)/2]
		b.ReportMetric(ms(median), name+"-ms")
		if median > 100*time.Millisecond {
			b.Errorf("%s: median %v from exec to ready", name, median)
		}
	}
	b.ReportMetric(0, "ns/op")
}

// BenchmarkIdleMemory reports each daemon's resident set after it served a
// pull and a secret. Bar: 40 MB.
func BenchmarkIdleMemory(b *testing.B) {
	for b.Loop() {
		w := newWorld(b)
		s, err := w.seal(b.Context(), "idle", kekPath)
		if err != nil {
			b.Fatal(err)
		}
		bundle, _, err := w.pull(b.Context(), s.ref, "idle")
		if err != nil {
			b.Fatal(err)
		}
		if err := unmount(bundle); err != nil {
			b.Fatal(err)
		}
		if _, err := w.fetchSecret(b.Context()); err != nil {
			b.Fatal(err)
		}
		time.Sleep(3 * time.Second) // a data hub that is idle gives memory back
		for _, p := range w.procs {
			mb := float64(p.memoryKB("VmRSS")) / 1000
			b.ReportMetric(mb, p.name+"-MB")
			if mb > 40 {
				b.Errorf("%s: %.1f MB resident", p.name, mb)
			}
		}
	}
	b.ReportMetric(0, "ns/op")
}

// BenchmarkHundredSecrets fetches 100 secrets in a row over HTTP. Bar: one
// attestation for all of them.
func BenchmarkHundredSecrets(b *testing.B) {
	w := newWorld(b)
	if _, err := w.fetchSecret(b.Context()); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		for range 100 {
			if _, err := w.fetchSecret(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(float64(w.rp.Attestations()), "attestations")
	if n := w.rp.Attestations(); n != 1 {
		b.Errorf("%d attestations", n)
	}
}

// BenchmarkPull500MB pulls an image of one 500 MB (compressed) gzip layer and
// reports the data hub's peak resident set and how long the pull took in
// relation to tar -xz of the same layer in the same run. Bar: 200 MB.
func BenchmarkPull500MB(b *testing.B) {
	const size = 500_000_000
	w := newWorld(b)
	quickRegistry(b, w)
	ref, tarBytes := pushBig(b, w, size)
	hub := w.procs[1]
	for i := 0; b.Loop(); i++ {
		// A new work directory each time would need a new data hub; the layer
		// is cold in the first round only, so one round is what counts.
		began := time.Now()
		bundle, _, err := w.pull(b.Context(), ref, fmt.Sprintf("big%d", i))
		if err != nil {
			b.Fatal(err)
		}
		pulled := time.Since(began)
		if err := unmount(bundle); err != nil {
			b.Fatal(err)
		}
		if i > 0 {
			b.Fatal("run with -benchtime 1x")
		}
		b.ReportMetric(pulled.Seconds()/gnuTar(b, w, "-xzf", filepath.Join(w.dir, bigLayer)).Seconds(), "pull/tar")
	}
	peak := float64(hub.memoryKB("VmHWM")) / 1000
	b.SetBytes(tarBytes)
	b.ReportMetric(peak, "peak-MB")
	if peak > 200 {
		b.Errorf("peak resident set %.1f MB", peak)
	}
}

// bigLayer is the file in a world's directory that pushBig makes.
const bigLayer = "big.tar.gz"

// pushBig pushes a signed image whose one layer is about size bytes of gzip,
// half text and half noise, and returns it with the size of the plain layer.
func pushBig(b *testing.B, w *world, size int64) (ref string, tarBytes int64) {
	b.Helper()
	path := filepath.Join(w.dir, bigLayer)
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	zw, err := gzip.NewWriterLevel(f, gzip.BestSpeed)
	if err != nil {
		b.Fatal(err)
	}
	counted := &counter{w: zw}
	tw := tar.NewWriter(counted)
	rng := rand.NewChaCha8([32]byte{1})
	text := bytes.Repeat([]byte("confidential computing, one line at a time\n"), 25_000)[:1<<20]
	noise := make([]byte, 1<<20)
	for i := 0; ; i++ {
		if st, err := f.Stat(); err != nil || st.Size() >= size {
			break
		}
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("data/%05d", i), Mode: 0o644, Size: 2 << 20}); err != nil {
			b.Fatal(err)
		}
		_, _ = rng.Read(noise)
		for _, part := range [][]byte{text, noise} {
			if _, err := tw.Write(part); err != nil {
				b.Fatal(err)
			}
		}
	}
	for _, c := range []io.Closer{tw, zw} {
		if err := c.Close(); err != nil {
			b.Fatal(err)
		}
	}
	layer, err := tarball.LayerFromFile(path, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		b.Fatal(err)
	}
	return push(b, w, "big", imageOf(b, layer)), counted.n
}

// imageOf returns an image for this machine with those layers.
func imageOf(b *testing.B, layers ...v1.Layer) v1.Image {
	b.Helper()
	img, err := mutate.AppendLayers(mutate.MediaType(mutate.ConfigMediaType(empty.Image, types.OCIConfigJSON), types.OCIManifestSchema1), layers...)
	if err != nil {
		b.Fatal(err)
	}
	cf, err := img.ConfigFile()
	if err != nil {
		b.Fatal(err)
	}
	cf = cf.DeepCopy()
	cf.OS, cf.Architecture = "linux", runtime.GOARCH
	if img, err = mutate.ConfigFile(img, cf); err != nil {
		b.Fatal(err)
	}
	return img
}

// push pushes the image as repo, without the blobs the registry has already,
// and signs it.
func push(b *testing.B, w *world, repo string, img v1.Image) string {
	b.Helper()
	ref := w.ref(repo, "1")
	r, err := name.ParseReference(ref)
	if err != nil {
		b.Fatal(err)
	}
	if err := remote.Write(r, img, remote.WithContext(b.Context())); err != nil {
		b.Fatal(err)
	}
	if err := w.sign(b.Context(), ref); err != nil {
		b.Fatal(err)
	}
	return ref
}

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}
