package s3

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sealpod/sealpod/model/fetch"
	"github.com/sealpod/sealpod/model/sealed"
	"github.com/sealpod/sealpod/model/sealed/seal"
	"github.com/sealpod/sealpod/model/source"
	"github.com/sealpod/sealpod/model/source/s3/s3test"
)

// upload seals files and puts them into a bucket below model/.
func upload(t testing.TB, gw *s3test.Server, files map[string][]byte) *sealed.Key {
	t.Helper()
	src, dst := t.TempDir(), filepath.Join(t.TempDir(), "sealed")
	for name, b := range files {
		p := filepath.Join(src, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, b, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	key, err := sealed.ParseKey(seal.NewKey())
	if err != nil {
		t.Fatal(err)
	}
	public := func(p string) bool { return path.Ext(p) == ".json" }
	if _, _, err := seal.Model(t.Context(), key, src, dst, seal.Options{Public: public}); err != nil {
		t.Fatal(err)
	}
	gw.Bucket(t, "models")
	gw.PutFolder(t, "models", "model/", dst)
	return key
}

// download does what the storage initializer does with a sealed model.
func download(ctx context.Context, s source.Source, key *sealed.Key, dir string, workers int) error {
	objects, err := s.List(ctx)
	if err != nil {
		return err
	}
	listed := map[string]source.Object{}
	for _, o := range objects {
		listed[o.Path] = o
	}
	r, err := s.Open(ctx, listed[sealed.ManifestObject], 0, -1)
	if err != nil {
		return err
	}
	stored, err := io.ReadAll(r)
	if err = errors.Join(err, r.Close()); err != nil {
		return err
	}
	pin := sha256.Sum256(stored)
	m, err := sealed.OpenManifest(key, stored)
	if err != nil {
		return err
	}
	var files []fetch.File
	for _, f := range m.Files {
		file := fetch.File{Path: f.Path, Mode: fs.FileMode(f.Mode), Size: f.Size, Source: s, Object: listed[f.Object],
			ID: sha256.Sum256([]byte(string(pin[:]) + f.Path))}
		if f.Sealed {
			file.Cipher = func(h sealed.Header) (*sealed.Cipher, error) { return key.Content(h, m.ID, f.Path) }
		} else if file.SHA256, err = hex.DecodeString(f.SHA256); err != nil {
			return err
		}
		files = append(files, file)
	}
	folder, err := fetch.OpenFolder(dir)
	if err != nil {
		return err
	}
	defer folder.Close()
	return folder.Fetch(ctx, files, workers)
}

// weather is a proxy before a server. Of each range of an object, the first try
// is told to slow down, and the second is cut off after 2.5 MB.
type weather struct {
	to         string
	down       atomic.Bool // everything is told to slow down
	slow, cuts atomic.Int32

	mu   sync.Mutex
	seen map[string]int
}

func (p *weather) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	what := r.URL.String() + r.Header.Get("Range")
	p.seen[what]++
	nth := p.seen[what]
	p.mu.Unlock()
	if nth == 1 || p.down.Load() {
		p.slow.Add(1)
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = io.WriteString(w, `<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>`)
		return
	}
	out := r.Clone(r.Context())
	out.URL.Scheme, out.URL.Host, out.RequestURI = "http", p.to, ""
	resp, err := http.DefaultTransport.RoundTrip(out)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	defer resp.Body.Close()
	for k, v := range resp.Header {
		w.Header()[k] = v
	}
	w.WriteHeader(resp.StatusCode)
	const most = 2_500_000
	if n, _ := io.CopyN(w, resp.Body, most); n == most && nth == 2 {
		p.cuts.Add(1)
		panic(http.ErrAbortHandler)
	}
	_, _ = io.Copy(w, resp.Body)
}

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

func TestSealedModelFromARealServerInBadWeather(t *testing.T) {
	t.Cleanup(http.DefaultTransport.(*http.Transport).CloseIdleConnections)
	gw := s3test.Start(t)
	files := map[string][]byte{
		"config.yml": []byte("backend: tgis\n"), "artifacts/model.safetensors": random(21<<20 + 5), "artifacts/tokenizer.json": random(11 << 20),
		"artifacts/exact.bin": random(8*sealed.SegmentSize - 8*16 - 40), "artifacts/empty": nil, "artifacts/add ed+%20.bin": random(1 << 20),
	}
	key := upload(t, gw, files)
	w := &weather{to: gw.Addr, seen: map[string]int{}}
	proxy := serve(t, w.ServeHTTP)
	s := open(t, "s3://models/model", at(proxy.URL))

	dir := t.TempDir()
	w.down.Store(true)
	if err := download(t.Context(), s, key, dir, 4); !errors.Is(err, source.ErrUnreachable) {
		t.Fatalf("while it is down: %v", err)
	}
	w.down.Store(false)
	if err := download(t.Context(), s, key, dir, 4); err != nil {
		t.Fatal(err)
	}
	for name, want := range files {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, want %d: %v", name, len(got), len(want), err)
		}
	}
	t.Logf("%d times 503, %d connections cut", w.slow.Load(), w.cuts.Load())
	if w.slow.Load() < 10 || w.cuts.Load() < 4 {
		t.Errorf("fair weather: %d times 503, %d connections cut", w.slow.Load(), w.cuts.Load())
	}

	// Another version of one object is put there between listing and fetching.
	objects, err := s.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	gw.Put(t, "models", "model/artifacts/exact.bin", random(8<<20))
	for _, o := range objects {
		b, err := read(s, t, o, 0, 50)
		if changed := o.Path == "artifacts/exact.bin"; changed != errors.Is(err, source.ErrChanged) || !changed && len(b) != 50 && o.Size >= 50 {
			t.Errorf("%s: %d bytes, %v", o.Path, len(b), err)
		}
	}
	// And a bucket's owner who swaps objects is found out.
	raw, err := os.ReadFile(filepath.Join(gw.Dir, "models/model/artifacts/model.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	gw.Put(t, "models", "model/artifacts/exact.bin", raw[:8*sealed.SegmentSize])
	if err := download(t.Context(), s, key, t.TempDir(), 4); !errors.Is(err, sealed.ErrIntegrity) {
		t.Errorf("swapped: %v", err)
	}
}

// BenchmarkSource compares reading one sealed object of SEALPOD_BENCH_MB
// megabytes from versitygw: plainly, by Source in one piece and by ranges on four
// connections, and by package fetch, which decrypts and writes as well, beside
// what writing alone takes.
func BenchmarkSource(b *testing.B) {
	mb, _ := strconv.Atoi(os.Getenv("SEALPOD_BENCH_MB"))
	if mb <= 0 {
		mb = 64
	}
	gw := s3test.Start(b)
	key := upload(b, gw, map[string][]byte{"weights": random(mb << 20)})
	gwOpen := func(b *testing.B) (*Source, source.Object) {
		s := open(b, "s3://models/model", at(gw.URL))
		objects, err := s.List(b.Context())
		if err != nil || len(objects) != 2 {
			b.Fatal(objects, err)
		}
		return s, objects[1]
	}
	run := func(name string, do func(b *testing.B, s *Source, o source.Object) error) {
		b.Run(name, func(b *testing.B) {
			s, o := gwOpen(b)
			b.SetBytes(o.Size)
			b.ResetTimer()
			for b.Loop() {
				if err := do(b, s, o); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	run("plain GET", func(b *testing.B, s *Source, _ source.Object) error {
		req, err := http.NewRequestWithContext(b.Context(), http.MethodGet, gw.URL+"/models/model/weights", nil)
		if err != nil {
			return err
		}
		if err := s.request(b.Context(), s3test.Region).Sign(req); err != nil {
			return err
		}
		tr := &http.Transport{}
		defer tr.CloseIdleConnections()
		resp, err := (&http.Client{Transport: tr, Timeout: time.Minute}).Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		_, err = io.Copy(io.Discard, resp.Body)
		return err
	})
	run("one piece", func(b *testing.B, s *Source, o source.Object) error {
		return drainRange(b.Context(), s, o, 0, -1)
	})
	run("ranges on four connections", func(b *testing.B, s *Source, o source.Object) error {
		var wg sync.WaitGroup
		var next atomic.Int64
		errs := make([]error, 4)
		for i := range errs {
			wg.Go(func() {
				for {
					off := (next.Add(1) - 1) * (8 << 20)
					if off >= o.Size || errs[i] != nil {
						return
					}
					errs[i] = drainRange(b.Context(), s, o, off, 8<<20)
				}
			})
		}
		wg.Wait()
		return errors.Join(errs...)
	})
	run("nothing but written", func(b *testing.B, _ *Source, o source.Object) error {
		f, err := os.Create(filepath.Join(b.TempDir(), "weights"))
		if err != nil {
			return err
		}
		defer f.Close()
		buf := make([]byte, sealed.SegmentSize)
		for left := o.Size; left > 0; left -= int64(len(buf)) {
			if _, err := f.Write(buf); err != nil {
				return err
			}
		}
		return f.Sync()
	})
	run("fetched, decrypted, written", func(b *testing.B, s *Source, _ source.Object) error {
		return download(b.Context(), s, key, b.TempDir(), 4)
	})
}

// drainRange reads as package fetch does, a segment at a time.
func drainRange(ctx context.Context, s *Source, o source.Object, off, n int64) error {
	r, err := s.Open(ctx, o, off, n)
	if err != nil {
		return err
	}
	defer r.Close()
	buf := make([]byte, sealed.SegmentSize)
	for {
		if _, err := io.ReadFull(r, buf); errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}
