package imagepull

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"io"
	"math/rand/v2"
	"strconv"
	"testing"

	"github.com/sealpod/sealpod/imagepull/registry/registrytest"
)

// bigLayer is a gzip layer of about size bytes, of files of 256 KiB that
// compress to half.
func bigLayer(tb testing.TB, size int) registrytest.Layer {
	tb.Helper()
	var packed, plain bytes.Buffer
	z, err := gzip.NewWriterLevel(&packed, gzip.BestSpeed)
	if err != nil {
		tb.Fatal(err)
	}
	w := tar.NewWriter(io.MultiWriter(z, &plain))
	src := rand.NewChaCha8([32]byte{1})
	file := make([]byte, 256<<10)
	for i := 0; packed.Len() < size; i++ {
		_, _ = src.Read(file[:len(file)/2])
		if err := w.WriteHeader(&tar.Header{Name: "f" + strconv.Itoa(i), Mode: 0o644, Size: int64(len(file))}); err != nil {
			tb.Fatal(err)
		}
		if _, err := w.Write(file); err != nil {
			tb.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	if err := z.Close(); err != nil {
		tb.Fatal(err)
	}
	return registrytest.Layer{Blob: packed.Bytes(), MediaType: registrytest.GzipType, DiffID: registrytest.Digest(plain.Bytes())}
}

// BenchmarkPull64MiB pulls one gzip layer of 64 MiB from loopback. Bytes per
// second are those of the blob.
func BenchmarkPull64MiB(b *testing.B) {
	m := newMachine(b)
	layer := bigLayer(b, 64<<20)
	m.Push(b, "a", "1", registrytest.NewImage(layer))
	b.SetBytes(int64(len(layer.Blob)))
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		m.deps.Config.WorkDir = m.work + strconv.Itoa(i)
		p, err := New(m.deps)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := p.Pull(b.Context(), m.ref("a:1"), m.bundle(strconv.Itoa(i))); err != nil {
			b.Fatal(err)
		}
		if err := p.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkPullCached pulls an image of 20 layers that are all there.
func BenchmarkPullCached(b *testing.B) {
	m := newMachine(b)
	var layers []registrytest.Layer
	for i := range 20 {
		layers = append(layers, registrytest.Files(b, map[string]string{strconv.Itoa(i): "x"}))
	}
	m.Push(b, "a", "1", registrytest.NewImage(layers...))
	p := m.puller(b)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if _, err := p.Pull(b.Context(), m.ref("a:1"), m.bundle(strconv.Itoa(i))); err != nil {
			b.Fatal(err)
		}
	}
}
