package seal

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"github.com/sealpod/sealpod/model/sealed"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// model makes a folder with files, and a key.
func model(t *testing.T, files map[string]int) (dir string, k *sealed.Key) {
	t.Helper()
	dir = t.TempDir()
	for name, size := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		content := make([]byte, size)
		rand.Read(content)
		if err := os.WriteFile(p, content, 0o640); err != nil {
			t.Fatal(err)
		}
	}
	k, err := sealed.ParseKey(NewKey())
	if err != nil {
		t.Fatal(err)
	}
	return dir, k
}

func read(t *testing.T, path ...string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// openFile is what a reader does with one sealed object.
func openFile(k *sealed.Key, id string, f sealed.File, object []byte) ([]byte, error) {
	h, err := sealed.ParseHeader(object)
	if err != nil {
		return nil, err
	}
	c, err := k.Content(h, id, f.Path)
	if err != nil {
		return nil, err
	}
	l := sealed.Layout{Size: f.Size}
	var plain []byte
	for i := range l.Segments() {
		at, n := l.Stored(i)
		piece, err := c.Open(i, i == l.Segments()-1, object[at:at+n])
		if err != nil {
			return nil, err
		}
		plain = append(plain, piece...)
	}
	return plain, nil
}

func TestModel(t *testing.T) {
	src, k := model(t, map[string]int{"config.yml": 40, "artifacts/model.safetensors": 5<<20 + 3, "artifacts/empty": 0, "tokenizer.json": 3 << 20, ".git/x": 4})
	if err := os.Symlink("model.safetensors", filepath.Join(src, "artifacts/link")); err != nil {
		t.Fatal(err)
	}
	dst := filepath.Join(t.TempDir(), "out")
	var done atomic.Int64
	m, pin, err := Model(t.Context(), k, src, dst, Options{
		Name:     "tiny",
		Public:   func(p string) bool { return p == "tokenizer.json" },
		Exclude:  func(p string) bool { return p == ".git" },
		Progress: func(n int64) { done.Add(n) },
		Plan:     func(m *sealed.Manifest) { done.Add(-m.Total()) },
	})
	if err != nil || done.Load() != 0 || len(m.Files) != 5 {
		t.Fatal(m, done.Load(), err)
	}
	stored := read(t, dst, sealed.ManifestObject)
	if sum := sha256.Sum256(stored); pin != "sha256:"+hex.EncodeToString(sum[:]) {
		t.Errorf("pin %s", pin)
	}
	got, err := sealed.OpenManifest(k, stored)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range got.Files {
		want, object := read(t, src, f.Path), read(t, dst, f.Object)
		if !f.Sealed {
			if sum := sha256.Sum256(object); f.SHA256 != hex.EncodeToString(sum[:]) || !bytes.Equal(object, want) {
				t.Errorf("%s: public, and not as it was", f.Path)
			}
			continue
		}
		if len(want) > 16 && bytes.Contains(object, want[:16]) {
			t.Errorf("%s can be read", f.Path)
		}
		plain, err := openFile(k, got.ID, f, object)
		if err != nil || !bytes.Equal(plain, want) || f.Mode != 0o640 {
			t.Errorf("%s: %v", f.Path, err)
		}
	}
}

func TestRefused(t *testing.T) {
	src, k := model(t, map[string]int{"a": 10})
	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Model(t.Context(), k, src, full, Options{}); !errors.Is(err, ErrNotEmpty) {
		t.Error(err)
	}
	out := filepath.Join(t.TempDir(), "out")
	if _, _, err := Model(t.Context(), k, t.TempDir(), out, Options{}); err == nil || !strings.Contains(err.Error(), "has no files") {
		t.Error(err)
	}
	if _, _, err := Model(t.Context(), k, src, out, Options{Name: strings.Repeat("x", 300)}); !errors.Is(err, sealed.ErrManifest) {
		t.Error(err)
	}
	bad, _ := model(t, map[string]int{".x.part": 1})
	if _, _, err := Model(t.Context(), k, bad, out, Options{}); !errors.Is(err, sealed.ErrManifest) {
		t.Error(err)
	}
	if err := os.Symlink(src, filepath.Join(src, "dir")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Model(t.Context(), k, src, out, Options{}); err == nil || !strings.Contains(err.Error(), "neither a file nor a link to one") {
		t.Error(err)
	}
	if _, err := os.Stat(out); !errors.Is(err, os.ErrNotExist) {
		t.Error("something was written:", err)
	}
}

// TestNoManifestUnlessAllIsSealed ends or disturbs sealing half-way.
func TestNoManifestUnlessAllIsSealed(t *testing.T) {
	for name, disturb := range map[string]func(src string, cancel func()){
		"cancelled": func(_ string, cancel func()) { cancel() },
		"cut":       func(src string, _ func()) { os.Truncate(filepath.Join(src, "b"), 5) },
		"longer":    func(src string, _ func()) { os.Truncate(filepath.Join(src, "b"), 5<<20) },
		"public":    func(src string, _ func()) { os.Truncate(filepath.Join(src, "c"), 5<<20) },
	} {
		t.Run(name, func(t *testing.T) {
			src, k := model(t, map[string]int{"a": 4 << 20, "b": 4 << 20, "c": 4 << 20})
			dst := filepath.Join(t.TempDir(), "out")
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if _, _, err := Model(ctx, k, src, dst, Options{
				Plan:   func(*sealed.Manifest) { disturb(src, cancel) },
				Public: func(p string) bool { return p == "c" },
			}); err == nil {
				t.Error("no error")
			}
			if _, err := os.Stat(filepath.Join(dst, sealed.ManifestObject)); !errors.Is(err, os.ErrNotExist) {
				t.Error("a manifest was written:", err)
			}
		})
	}
}
