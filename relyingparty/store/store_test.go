package store

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// each runs the test against every implementation.
func each(t *testing.T, test func(t *testing.T, s Store)) {
	t.Run("memory", func(t *testing.T) { test(t, NewMemory()) })
	t.Run("dir", func(t *testing.T) { test(t, openDir(t, filepath.Join(t.TempDir(), "store"))) })
}

func openDir(t *testing.T, path string) *Dir {
	t.Helper()
	d, err := OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestStoreKeepsListsAndForgets(t *testing.T) {
	each(t, func(t *testing.T, s Store) {
		ctx := t.Context()
		if _, err := s.Get(ctx, Repository, "a/b/c"); !errors.Is(err, ErrNotFound) {
			t.Errorf("empty store: %v", err)
		}
		must(t, s.Put(ctx, Repository, "b/b/c", []byte("two")))
		must(t, s.Put(ctx, Repository, "a/b/c", []byte("one")))
		must(t, s.Put(ctx, Repository, "a/b/c", []byte("new")))
		got, err := s.Get(ctx, Repository, "a/b/c")
		if err != nil || string(got) != "new" {
			t.Errorf("Get = %q, %v", got, err)
		}
		got[0] = 'X'
		if again, _ := s.Get(ctx, Repository, "a/b/c"); string(again) != "new" {
			t.Error("the caller's copy is the store's")
		}
		if keys, err := s.List(ctx, Repository); err != nil || !slices.Equal(keys, []string{"a/b/c", "b/b/c"}) {
			t.Errorf("List = %v, %v", keys, err)
		}
		if _, err := s.Get(ctx, KBS, "a/b/c"); !errors.Is(err, ErrNotFound) {
			t.Errorf("namespaces leak: %v", err)
		}
		must(t, s.Delete(ctx, Repository, "a/b/c"))
		if err := s.Delete(ctx, Repository, "a/b/c"); !errors.Is(err, ErrNotFound) {
			t.Errorf("second delete: %v", err)
		}
	})
}

func TestCreateHasOneWinner(t *testing.T) {
	each(t, func(t *testing.T, s Store) {
		var wg sync.WaitGroup
		errs := make([]error, 8)
		for i := range errs {
			wg.Go(func() { errs[i] = s.Create(t.Context(), RelyingParty, "key", []byte{byte(i)}) })
		}
		wg.Wait()
		winner := -1
		for i, err := range errs {
			switch {
			case err == nil && winner < 0:
				winner = i
			case !errors.Is(err, ErrExists):
				t.Errorf("create %d: %v", i, err)
			}
		}
		got, err := s.Get(t.Context(), RelyingParty, "key")
		if err != nil || winner < 0 || !bytes.Equal(got, []byte{byte(winner)}) {
			t.Errorf("winner %d, stored %v, %v", winner, got, err)
		}
	})
}

func TestKeysThatAreRefused(t *testing.T) {
	bad := map[string]string{
		"empty": "", "dot": ".", "parent": "..", "traversal": "../../etc/passwd", "inner parent": "a/../b",
		"absolute": "/etc/passwd", "double slash": "a//b", "trailing slash": "a/b/", "hidden": ".hidden",
		"hidden segment": "a/.b", "back slash": `a\x2Fb`, "nul": "a\x00b", "newline": "a\nb", "space": "a b",
		"non-ASCII": "schlüssel", "percent": "a%2Fb", "too long": strings.Repeat("a", 231),
		"too long once escaped": strings.Repeat("a/", 60) + "a",
	}
	each(t, func(t *testing.T, s Store) {
		for name, key := range bad {
			_, errGet := s.Get(t.Context(), Repository, key)
			for _, err := range []error{
				errGet, s.Put(t.Context(), Repository, key, nil), s.Create(t.Context(), Repository, key, nil),
				s.Delete(t.Context(), Repository, key),
			} {
				if !errors.Is(err, ErrKey) {
					t.Errorf("%s: %v", name, err)
				}
			}
		}
		if keys, _ := s.List(t.Context(), Repository); len(keys) != 0 {
			t.Errorf("stored %v", keys)
		}
	})
}

func TestCaps(t *testing.T) {
	each(t, func(t *testing.T, s Store) {
		if err := s.Put(t.Context(), Repository, "k", make([]byte, MaxValueBytes+1)); !errors.Is(err, ErrFull) {
			t.Errorf("large value: %v", err)
		}
		must(t, s.Put(t.Context(), Repository, "k", make([]byte, MaxValueBytes)))
	})
	m := NewMemory()
	for i := range MaxKeys {
		must(t, m.Put(t.Context(), Repository, fmt.Sprint(i), nil))
	}
	if err := m.Put(t.Context(), Repository, "one-more", nil); !errors.Is(err, ErrFull) {
		t.Errorf("one key too many: %v", err)
	}
	must(t, m.Put(t.Context(), Repository, "7", []byte("an old key can change")))
}

func TestDirLayoutIsTrustees(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store")
	d := openDir(t, path)
	must(t, d.Put(t.Context(), Repository, "default/key/1", []byte("secret")))
	file := filepath.Join(path, "repository", `default\x2Fkey\x2F1`)
	info, err := os.Stat(file)
	must(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("file mode %#o", info.Mode().Perm())
	}
	for _, dir := range []string{path, filepath.Dir(file)} {
		if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v, %v", dir, info.Mode(), err)
		}
	}
}

func TestDirSurvivesReopenAndClearsLeftovers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store")
	d, err := OpenDir(path)
	must(t, err)
	must(t, d.Put(t.Context(), Repository, "a/b/c", []byte("kept")))
	must(t, d.Close())
	left := filepath.Join(path, "repository", temporary+"x")
	must(t, os.WriteFile(left, []byte("half"), 0o600))
	must(t, os.WriteFile(filepath.Join(path, "repository", "not a key"), nil, 0o600))
	d = openDir(t, path)
	if got, err := d.Get(t.Context(), Repository, "a/b/c"); err != nil || string(got) != "kept" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := os.Stat(left); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("leftover: %v", err)
	}
	if keys, err := d.List(t.Context(), Repository); err != nil || !slices.Equal(keys, []string{"a/b/c"}) {
		t.Errorf("List = %v, %v", keys, err)
	}
}

func TestDirRefusesOpenPermissionsAndOutsideLinks(t *testing.T) {
	shared := t.TempDir()
	must(t, os.Chmod(shared, 0o755)) //nolint:gosec // the case under test
	if _, err := OpenDir(shared); err == nil || !strings.Contains(err.Error(), "chmod 700") {
		t.Errorf("world-readable store: %v", err)
	}
	outside := filepath.Join(t.TempDir(), "outside")
	must(t, os.WriteFile(outside, []byte("outside"), 0o600))
	path := filepath.Join(t.TempDir(), "store")
	d := openDir(t, path)
	must(t, os.Symlink(outside, filepath.Join(path, "repository", "link")))
	if got, err := d.Get(t.Context(), Repository, "link"); err == nil {
		t.Errorf("read %q through a link out of the store", got)
	}
}

func TestReadersSeeWholeValues(t *testing.T) {
	d := openDir(t, filepath.Join(t.TempDir(), "store"))
	values := [][]byte{bytes.Repeat([]byte("a"), 64<<10), bytes.Repeat([]byte("b"), 64<<10)}
	must(t, d.Put(t.Context(), Repository, "k", values[0]))
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range 40 {
			if err := d.Put(t.Context(), Repository, "k", values[i%2]); err != nil {
				t.Error(err)
			}
		}
	})
	for range 200 {
		got, err := d.Get(t.Context(), Repository, "k")
		if err != nil || !bytes.Equal(got, values[0]) && !bytes.Equal(got, values[1]) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
	}
	wg.Wait()
}

func FuzzCheckKey(f *testing.F) {
	for _, s := range []string{"a/b/c", "..", "a/../b", `a\x2Fb`, "resource-policy.rego"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, key string) {
		if CheckKey(key) != nil {
			return
		}
		name := fileName(key)
		if strings.ContainsAny(name, "/\x00") || name[0] == '.' || !filepath.IsLocal(name) || len(name) > 255 {
			t.Errorf("key %q becomes file %q", key, name)
		}
		if keyOf(name) != key {
			t.Errorf("key %q comes back as %q", key, keyOf(name))
		}
	})
}
