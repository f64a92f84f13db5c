package gunzip

import (
	"archive/tar"
	"bufio"
	"bytes"
	stdgzip "compress/gzip"
	"io"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
)

// tree is the first part of a tar of a folder of the Go installation.
func tree(b *testing.B, dir string, limit int) []byte {
	b.Helper()
	out, err := exec.CommandContext(b.Context(), "go", "env", "GOROOT").Output()
	if err != nil {
		b.Fatal(err)
	}
	goroot := strings.TrimSpace(string(out))
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	err = filepath.WalkDir(filepath.Join(goroot, dir), func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && d.Name() == "cmd" {
			return filepath.SkipDir // tables that repeat too well
		}
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		if buf.Len() > limit {
			return filepath.SkipAll
		}
		raw, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		if err := w.WriteHeader(&tar.Header{Name: strings.TrimPrefix(p, goroot), Mode: 0o644, Size: int64(len(raw))}); err != nil {
			return err
		}
		_, err = w.Write(raw)
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	return buf.Bytes()[:min(buf.Len(), limit)]
}

type corpus struct {
	name  string
	plain int // bytes
	raw   []byte
}

var corpora struct {
	sync.Once
	all []corpus
}

// corpusList makes the streams to measure: sources and programs as in the layer
// of an application, as docker (level 6), careful people (9) and pigz (a flush
// each 128 KiB) pack them, and what cannot be packed.
func corpusList(b *testing.B) []corpus {
	b.Helper()
	corpora.Do(func() {
		const size = 8 << 20
		text, programs := tree(b, "src", size), tree(b, "pkg/tool", size)
		var mixed []byte
		for i := 0; i < size; i += 1 << 20 {
			mixed = append(mixed, text[i/2:i/2+1<<19]...)
			mixed = append(mixed, programs[i/2:i/2+1<<19]...)
		}
		add := func(name string, level int, plain []byte) {
			corpora.all = append(corpora.all, corpus{name, len(plain), compress(b, level, plain)})
		}
		add("sources-6", 6, text)
		add("sources-9", 9, text)
		add("programs-6", 6, programs)
		add("programs-9", 9, programs)
		add("mixed-6", 6, mixed)
		add("mixed-9", 9, mixed)
		var pigz bytes.Buffer
		w := stdgzip.NewWriter(&pigz)
		for i := 0; i < len(mixed); i += 128 << 10 {
			_, err := w.Write(mixed[i : i+128<<10])
			if err == nil {
				err = w.Flush()
			}
			if err != nil {
				b.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			b.Fatal(err)
		}
		corpora.all = append(corpora.all, corpus{"mixed-flushed", len(mixed), pigz.Bytes()})
		add("noise-6", 6, noise(size))
	})
	return corpora.all
}

// decoders open a stream as the pipeline does.
var decoders = []struct {
	name string
	open func(r io.Reader) (io.Reader, error)
}{
	{"own", func(r io.Reader) (io.Reader, error) { return NewReader(r, Options{}), nil }},
	{"klauspost", func(r io.Reader) (io.Reader, error) { return gzip.NewReader(bufio.NewReaderSize(r, 64<<10)) }},
	{"stdlib", func(r io.Reader) (io.Reader, error) { return stdgzip.NewReader(bufio.NewReaderSize(r, 64<<10)) }},
}

// unpack reads a whole stream in the pieces of the pipeline.
func unpack(b *testing.B, open func(io.Reader) (io.Reader, error), c corpus, buf []byte) {
	r, err := open(bytes.NewReader(c.raw))
	if err != nil {
		b.Fatal(err)
	}
	n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{r}, buf)
	if err != nil || n != int64(c.plain) {
		b.Fatalf("%d of %d bytes, %v", n, c.plain, err)
	}
}

// BenchmarkGunzip reports the rate of plain bytes.
func BenchmarkGunzip(b *testing.B) {
	buf := make([]byte, 256<<10)
	for _, c := range corpusList(b) {
		for _, d := range decoders {
			b.Run(c.name+"/"+d.name, func(b *testing.B) {
				b.SetBytes(int64(c.plain))
				b.ReportAllocs()
				for b.Loop() {
					unpack(b, d.open, c, buf)
				}
				b.ReportMetric(float64(c.plain)/float64(len(c.raw)), "ratio")
			})
		}
	}
}

// Bars for the geometric mean over the corpora, but for noise: that is stored,
// and copying it takes as long everywhere.
const (
	barOneCore  = 1.5
	barTwoCores = 2.0
)

// BenchmarkAgainstKlauspost measures both decoders in turns, each fifteen times
// with one core and with two, and takes the best of each: what else runs on the
// machine disturbs both alike. With SEALPOD_BENCH_CHECK set it fails below the
// bars.
func BenchmarkAgainstKlauspost(b *testing.B) {
	buf := make([]byte, 256<<10)
	own, other := decoders[0].open, decoders[1].open
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	for _, cores := range []struct {
		n   int
		bar float64
	}{{1, barOneCore}, {2, barTwoCores}} {
		b.Run(map[int]string{1: "1core", 2: "2core"}[cores.n], func(b *testing.B) {
			list := corpusList(b)
			runtime.GOMAXPROCS(cores.n)
			logs, least := 0.0, math.Inf(1)
			for b.Loop() {
				logs, least = 0, math.Inf(1)
				for _, c := range list {
					bestOwn, bestOther := time.Hour, time.Hour
					for range 15 {
						start := time.Now()
						unpack(b, own, c, buf)
						mid := time.Now()
						unpack(b, other, c, buf)
						bestOwn, bestOther = min(bestOwn, mid.Sub(start)), min(bestOther, time.Since(mid))
					}
					x := float64(bestOther) / float64(bestOwn)
					b.Logf("%-14s %5.0f MB/s, klauspost %5.0f MB/s, x%.2f", c.name,
						float64(c.plain)/1e6/bestOwn.Seconds(), float64(c.plain)/1e6/bestOther.Seconds(), x)
					if c.name != "noise-6" {
						logs, least = logs+math.Log(x)/float64(len(list)-1), min(least, x)
					}
				}
			}
			mean := math.Exp(logs)
			b.ReportMetric(mean, "x-klauspost-"+map[int]string{1: "1core", 2: "2core"}[cores.n])
			b.ReportMetric(least, "x-least")
			if os.Getenv("SEALPOD_BENCH_CHECK") != "" && mean < cores.bar {
				b.Errorf("%.2f times klauspost: the bar is %.1f", mean, cores.bar)
			}
		})
	}
}

// BenchmarkEmptyBlocks reports the rate of compressed bytes where nothing but
// codes is read and made, which is what a hostile stream can cost.
func BenchmarkEmptyBlocks(b *testing.B) {
	even := bytes.Repeat([]byte{9}, 286)
	copy(even, bytes.Repeat([]byte{8}, 226))
	for name, codes := range map[string][2][]uint8{
		"few": {ones(257, endOnly), {0}},
		"all": {even, {0}},
	} {
		var s stream
		for len(s.b) < 1<<20 {
			s.dynamic(0, codes[0], codes[1])
			s.symbol(codes[0], 256)
		}
		s.stored(1, nil)
		c := corpus{name: name, raw: member(s.b, nil)}
		for _, d := range decoders {
			b.Run(name+"/"+d.name, func(b *testing.B) {
				b.SetBytes(int64(len(c.raw)))
				for b.Loop() {
					unpack(b, d.open, c, make([]byte, 4096))
				}
			})
		}
	}
}
