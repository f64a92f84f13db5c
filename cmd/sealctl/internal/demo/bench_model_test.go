package demo

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sealpod/sealpod/model/sealed"
	"github.com/sealpod/sealpod/model/sealed/seal"
	"github.com/sealpod/sealpod/podvm/testenv"
)

// What BenchmarkFetchModel is held to.
const (
	barModelBound = 0.8  // time of the slower of cipher and disk alone over that of the initializer, at least
	barOpenSSL    = 3.0  // time of curl, openssl enc -d and tar over that of the initializer, at least
	barAge        = 1.5  // time of curl and age -d over that of the initializer, at least
	barModelPeak  = 160  // peak resident set in MB, at most
	barModelDisk  = 1.02 // peak disk space over the size of the model, at most
	barAgain      = 2.0  // what is fetched again after a kill half-way, percent of the model, at most
)

// BenchmarkFetchModel has the storage initializer, a real process, fetch a sealed
// model over loopback from a server of ranges, another process, and compares it with
// other ways to get the same bytes from there. Each way ends with the files on the
// disk, synced; what is compared is measured in the same round. Figures are medians
// over the rounds, peaks their maximum. Run it with -benchtime 1x. The disk is that
// of TMPDIR, which takes six times the model.
//
//	SEALPOD_BENCH_MB     size of the model (64); the bar for a kill wants 4096
//	SEALPOD_BENCH_RUNS   rounds (3)
//	SEALPOD_BENCH_CHECK  1 makes a missed bar a failure
func BenchmarkFetchModel(b *testing.B) {
	mb, runs := number(b, "SEALPOD_BENCH_MB", 64), number(b, "SEALPOD_BENCH_RUNS", 3)
	for _, tool := range []string{"curl", "openssl", "tar", "age", "age-keygen"} {
		testenv.Tool(b, tool)
	}
	sealpod(b)
	dir, err := os.MkdirTemp("", "model-")
	must(b, err)
	b.Cleanup(func() { must(b, os.RemoveAll(dir)) })
	m := newBenchModel(b, dir, int64(mb)<<20)
	f := figures{map[string][]float64{}, map[string]string{}}
	for i := range runs {
		m.round(b, f, i == runs-1)
	}
	for b.Loop() { // The rounds are what counts.
	}
	b.Logf("%d MiB in 4 files and 2 small ones; %d rounds on %s, %d cores", mb, runs, fileSystem(dir), runtime.GOMAXPROCS(0))
	m.report(b, f)
}

// benchModel is one model, stored in each way.
type benchModel struct {
	dir, url string
	size     int64
	sums     map[string]string // of the files
}

// newBenchModel makes the model in a store below dir, in all forms, and starts the
// server.
func newBenchModel(b *testing.B, dir string, size int64) *benchModel {
	b.Helper()
	m := &benchModel{dir: dir}
	plain, store := filepath.Join(dir, "plain"), filepath.Join(dir, "store")
	must(b, errors.Join(os.Mkdir(plain, 0o755), os.Mkdir(store, 0o755)))
	random := rand.NewChaCha8([32]byte{1})
	for name, n := range map[string]int64{
		"config.json": 900, "tokenizer.json": 2 << 20,
		"model-1.safetensors": size / 4, "model-2.safetensors": size / 4, "model-3.safetensors": size / 4, "model-4.safetensors": size / 4,
	} {
		m.size += n
		f, err := os.Create(filepath.Join(plain, name))
		must(b, err)
		buf := make([]byte, 1<<20)
		for ; n > 0; n -= int64(len(buf)) {
			buf = buf[:min(n, int64(len(buf)))]
			_, _ = random.Read(buf)
			_, err := f.Write(buf)
			must(b, err)
		}
		must(b, f.Close())
	}
	m.sums = sumsOf(b, plain)

	key := seal.NewKey()
	k, err := sealed.ParseKey(key)
	must(b, err)
	_, pin, err := seal.Model(b.Context(), k, plain, filepath.Join(store, "sealed"), seal.Options{Name: "bench"})
	must(b, err)
	must(b, os.WriteFile(filepath.Join(store, "key"), k.JWK(pin), 0o600))

	must(b, os.WriteFile(filepath.Join(dir, "pass"), []byte("a passphrase\n"), 0o600))
	m.sh(b, "age-keygen -o identity 2>/dev/null && age-keygen -y identity >recipient")
	m.sh(b, "tar -cf store/m.tar -C plain . && age -R recipient -o store/m.age store/m.tar")
	m.sh(b, "openssl enc -aes-256-cbc -pbkdf2 -kfile pass -in store/m.tar -out store/m.enc && rm -r plain store/m.tar")
	m.url = startStore(b, store)
	return m
}

// sh runs a script below m.dir, with the tools of the module.
func (m *benchModel) sh(b *testing.B, script string) time.Duration {
	b.Helper()
	cmd := exec.CommandContext(b.Context(), "sh", "-ec", script)
	cmd.Dir = m.dir
	cmd.Env = append(os.Environ(), "URL="+m.url, "PATH="+filepath.Dir(testenv.Tool(b, "age"))+":"+os.Getenv("PATH"))
	start := time.Now()
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("%s: %v\n%s", script, err, out)
	}
	return time.Since(start)
}

// round measures each thing once. Before each the disk is at rest.
func (m *benchModel) round(b *testing.B, f figures, kill bool) {
	took := map[string]float64{}
	note := func(what string, d time.Duration) {
		took[what] = d.Seconds()
		f.add(what+"-s", d.Seconds())
		must(b, os.RemoveAll(filepath.Join(m.dir, "dest")))
		syscall.Sync()
	}
	syscall.Sync()
	note("cipher", m.cipher(b))
	note("disk", m.disk(b))

	r := m.start(b)
	must(b, r.wait())
	if got := sumsOf(b, m.dest()); !maps.Equal(got, m.sums) {
		b.Fatal("the files are not those of the model")
	}
	f.add("peak-MB", r.peakMB)
	f.add("disk/size", float64(r.peakDisk)/float64(m.size))
	f.add("cpu-s", (r.cmd.ProcessState.UserTime() + r.cmd.ProcessState.SystemTime()).Seconds())
	note("sealed", r.took)

	note("openssl", m.sh(b, `mkdir dest && cd dest && curl -sSf -o m.enc "$URL/m.enc" &&
		openssl enc -d -aes-256-cbc -pbkdf2 -kfile ../pass -in m.enc -out m.tar && rm m.enc && tar -xf m.tar && rm m.tar && sync -- *`))
	note("age", m.sh(b, `mkdir dest && cd dest && curl -sSf "$URL/m.age" | age -d -i ../identity -o m.tar && sync m.tar`))

	f.add("bound", max(took["cipher"], took["disk"])/took["sealed"])
	f.add("openssl/sealed", took["openssl"]/took["sealed"])
	f.add("age/sealed", took["age"]/took["sealed"])
	if kill {
		m.killed(b, f)
		note("resumed", 0)
	}
}

// cipher is how long AES-256-GCM takes for as many bytes on all cores, in memory.
func (m *benchModel) cipher(b *testing.B) time.Duration {
	b.Helper()
	block, err := aes.NewCipher(make([]byte, 32))
	must(b, err)
	gcm, err := cipher.NewGCM(block)
	must(b, err)
	var nonce [12]byte
	text := gcm.Seal(nil, nonce[:], make([]byte, sealed.SegmentSize-gcm.Overhead()), nil)
	cores := runtime.GOMAXPROCS(0)
	start := time.Now()
	var g errgroup.Group
	for range cores {
		g.Go(func() error {
			out := make([]byte, 0, len(text))
			for range m.size / sealed.SegmentSize / int64(cores) {
				if _, err := gcm.Open(out, nonce[:], text, nil); err != nil {
					return err
				}
			}
			return nil
		})
	}
	must(b, g.Wait())
	return time.Since(start)
}

// disk is how long it takes to write as many bytes to one file, and sync it.
func (m *benchModel) disk(b *testing.B) time.Duration {
	b.Helper()
	buf := bytes.Repeat([]byte{0x5a}, 1<<20)
	must(b, os.Mkdir(m.dest(), 0o755))
	start := time.Now()
	f, err := os.Create(filepath.Join(m.dest(), "file"))
	must(b, err)
	for n := m.size; n > 0; n -= int64(len(buf)) {
		_, err := f.Write(buf[:min(n, int64(len(buf)))])
		must(b, err)
	}
	must(b, errors.Join(f.Sync(), f.Close()))
	return time.Since(start)
}

func (m *benchModel) dest() string { return filepath.Join(m.dir, "dest") }

// fetching is a run of the storage initializer, watched from outside.
type fetching struct {
	*process
	began    time.Time
	took     time.Duration
	peakMB   float64
	dest     string
	peakDisk int64
	stopWhen func(disk int64) bool // kills it
	killed   bool
}

func (m *benchModel) start(b *testing.B) *fetching {
	b.Helper()
	host := strings.TrimSuffix(m.url, "/models")
	began := time.Now()
	p, err := start(sealpod(b), m.dir, "storage-initializer", []string{
		"AWS_ENDPOINT_URL=" + host, "AWS_DEFAULT_REGION=x", "awsAnonymousCredential=true",
		"CDH_ADDR=" + host, "CONFIDENTIAL_ENABLED=true", "CONFIDENTIAL_RESOURCE_ID=kbs:///a/b/c", "MODEL_STRICT=true",
	}, "s3://models/sealed", m.dest())
	must(b, err)
	return &fetching{process: p, began: began, dest: m.dest()}
}

// wait looks on until the run ends.
func (r *fetching) wait() error {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-r.done:
			r.took = time.Since(r.began)
			if r.err != nil && !r.killed {
				return fmt.Errorf("%w:\n%s", r.err, r.tail())
			}
			return nil
		case <-tick.C:
		}
		r.peakMB = max(r.peakMB, float64(r.memoryKB("VmHWM"))*1024/1e6)
		disk := diskOf(r.dest)
		r.peakDisk = max(r.peakDisk, disk)
		if r.stopWhen != nil && !r.killed && r.stopWhen(disk) {
			r.killed = true
			if err := r.cmd.Process.Kill(); err != nil {
				return err
			}
		}
	}
}

// killed kills a run half-way and lets another one end.
func (m *benchModel) killed(b *testing.B, f figures) {
	b.Helper()
	before := m.served(b)
	first := m.start(b)
	first.stopWhen = func(disk int64) bool { return disk >= m.size/2 }
	must(b, first.wait())
	if !first.killed {
		f.none["again-%"] = "the model is too small to be killed half-way"
		return
	}
	second := m.start(b)
	must(b, second.wait())
	if got := sumsOf(b, m.dest()); !maps.Equal(got, m.sums) {
		b.Error("after a kill the files are not those of the model")
	}
	f.add("again-%", 100*float64(m.served(b)-before-m.size)/float64(m.size))
}

// report prints all figures and holds the bars.
func (m *benchModel) report(b *testing.B, f figures) {
	b.Helper()
	b.ReportMetric(0, "ns/op")
	var said []string
	for _, what := range []string{"cipher", "disk", "sealed", "openssl", "age"} {
		b.ReportMetric(f.median(what+"-s"), what+"-s")
		said = append(said, fmt.Sprintf("%s %.3f s, %.0f MB/s", what, f.median(what+"-s"), float64(m.size)/1e6/f.median(what+"-s")))
	}
	b.Logf("%s; CPU of the initializer %.3f s", strings.Join(said, "; "), f.median("cpu-s"))
	check := func(name string, got float64, atLeast bool, bar float64) {
		b.ReportMetric(got, name)
		sign, met := "≤", got <= bar
		if atLeast {
			sign, met = "≥", got >= bar
		}
		said := fmt.Sprintf("%s %.2f (bar %s %v: %v)", name, got, sign, bar, map[bool]string{true: "met", false: "MISSED"}[met])
		b.Log(said)
		if !met && os.Getenv("SEALPOD_BENCH_CHECK") == "1" {
			b.Error(said)
		}
	}
	check("bound", f.median("bound"), true, barModelBound)
	check("openssl/sealed", f.median("openssl/sealed"), true, barOpenSSL)
	check("age/sealed", f.median("age/sealed"), true, barAge)
	check("peak-MB", slices.Max(f.lists["peak-MB"]), false, barModelPeak)
	check("disk/size", slices.Max(f.lists["disk/size"]), false, barModelDisk)
	if why, ok := f.none["again-%"]; ok {
		b.Logf("fetched again: not measured, %s", why)
	} else {
		check("again-%", f.median("again-%"), false, barAgain)
	}
}

// diskOf is how much space the files below dir take, 0 while there is none.
func diskOf(dir string) (n int64) {
	_ = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return nil //nolint:nilerr // files come and go meanwhile
		}
		if fi, err := e.Info(); err == nil {
			n += fi.Sys().(*syscall.Stat_t).Blocks * 512
		}
		return nil
	})
	return n
}
