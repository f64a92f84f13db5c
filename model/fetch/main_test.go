package fetch

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"github.com/sealpod/sealpod/model/sealed"
	"github.com/sealpod/sealpod/model/sealed/seal"
	"github.com/sealpod/sealpod/model/source"
)

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		os.Exit(child())
	}
	goleak.VerifyTestMain(m)
}

// store is a source in memory, or in the folder dir, that can be told to
// misbehave.
type store struct {
	objects  map[string][]byte
	noRanges bool
	sent     atomic.Int64
	mu       sync.Mutex
	fault    func(o source.Object, off, n int64) (body []byte, err error) // nil body: none
}

func (s *store) String() string { return "memory" }

func (s *store) List(context.Context) (out []source.Object, err error) {
	for _, name := range slices.Sorted(maps.Keys(s.objects)) {
		out = append(out, source.Object{Path: name, Size: int64(len(s.objects[name])), Version: "1"})
	}
	return out, nil
}

func (s *store) Open(ctx context.Context, o source.Object, off, n int64) (io.ReadCloser, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	b, ok := s.objects[o.Path]
	if !ok {
		return nil, source.ErrNotFound
	}
	if s.fault != nil {
		s.mu.Lock()
		body, err := s.fault(o, off, n)
		s.mu.Unlock()
		if err != nil {
			return nil, err
		}
		if body != nil {
			return io.NopCloser(bytes.NewReader(body)), nil
		}
	}
	end := int64(len(b))
	if n >= 0 {
		end = min(end, off+n)
	}
	if s.noRanges && (off > 0 || end < int64(len(b))) {
		return nil, source.ErrNoRanges
	}
	b = b[min(off, end):end]
	s.sent.Add(int64(len(b)))
	return io.NopCloser(bytes.NewReader(b)), nil
}

// random is n bytes.
func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

// sealedModel seals files and returns the store, the key and the plan to fetch
// them.
func sealedModel(t testing.TB, files map[string][]byte, public ...string) (*store, []File) {
	t.Helper()
	src, dst := t.TempDir(), filepath.Join(t.TempDir(), "sealed")
	for name, b := range files {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(src, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(src, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	key, err := sealed.ParseKey(seal.NewKey())
	if err != nil {
		t.Fatal(err)
	}
	m, pin, err := seal.Model(t.Context(), key, src, dst, seal.Options{Public: func(p string) bool { return slices.Contains(public, p) }})
	if err != nil {
		t.Fatal(err)
	}
	s := &store{objects: map[string][]byte{}}
	for _, f := range m.Files {
		b, err := os.ReadFile(filepath.Join(dst, f.Object))
		if err != nil {
			t.Fatal(err)
		}
		s.objects[f.Object] = b
	}
	return s, planSealed(key, m, pin, s)
}

// planSealed is what the storage initializer makes of a manifest.
func planSealed(key *sealed.Key, m *sealed.Manifest, pin string, s *store) (out []File) {
	for _, f := range m.Files {
		file := File{Path: f.Path, Mode: 0o600, Size: f.Size, Source: s, ID: sha256.Sum256([]byte(pin + f.Path)),
			Object: source.Object{Path: f.Object, Size: int64(len(s.objects[f.Object])), Version: "1"}}
		if f.Sealed {
			file.Cipher = func(h sealed.Header) (*sealed.Cipher, error) { return key.Content(h, m.ID, f.Path) }
		} else {
			sum := sha256.Sum256(s.objects[f.Object])
			file.SHA256 = sum[:]
		}
		out = append(out, file)
	}
	return out
}

// plainModel is the plan for files that are not sealed.
func plainModel(files map[string][]byte) (*store, []File) {
	s := &store{objects: files}
	var out []File
	for _, name := range slices.Sorted(maps.Keys(files)) {
		out = append(out, File{Path: name, Mode: 0o644, Size: int64(len(files[name])), Source: s,
			ID: sha256.Sum256([]byte(name)), Object: source.Object{Path: name, Size: int64(len(files[name])), Version: "1"}})
	}
	return s, out
}

func openFolder(t testing.TB, dir string) *Folder {
	t.Helper()
	f, err := OpenFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// holds checks that dir has exactly these files and no others.
func holds(t testing.TB, dir string, want map[string][]byte) {
	t.Helper()
	got := map[string]bool{}
	err := filepath.WalkDir(dir, func(p string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			got[strings.TrimPrefix(p, dir+"/")] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range want {
		have, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(name)))
		if err != nil || !bytes.Equal(have, b) {
			t.Errorf("%s: %d bytes, want %d: %v", name, len(have), len(b), err)
		}
		delete(got, name)
	}
	for name := range got {
		t.Errorf("%s is left", name)
	}
}

// nothingNamed checks that dir has no file but those in progress.
func nothingNamed(t testing.TB, dir string) {
	t.Helper()
	if err := filepath.WalkDir(dir, func(_ string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() && !sealed.InProgress(e.Name()) {
			err = errors.New(e.Name() + " has its name")
		}
		return err
	}); err != nil {
		t.Error(err)
	}
}
