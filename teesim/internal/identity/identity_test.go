package identity

import (
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/sealpod/sealpod/podvm"
)

func secret() ([]byte, error) { return []byte(rand.Text()), nil }

func mode(t *testing.T, path string) fs.FileMode {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Mode().Perm()
}

func TestTheFirstIdentityStays(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	first, err := Load(dir, "k", secret)
	if err != nil || len(first) == 0 {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, "keys"), 0o755); err != nil {
		t.Fatal(err)
	}
	again, err := Load(dir, "k", func() ([]byte, error) { t.Error("made anew"); return nil, nil })
	if err != nil || string(again) != string(first) {
		t.Errorf("%q, then %q: %v", first, again, err)
	}
	if got := []fs.FileMode{mode(t, filepath.Join(dir, "keys")), mode(t, filepath.Join(dir, "keys", "k"))}; got[0] != 0o700 || got[1] != 0o600 {
		t.Errorf("modes %o", got)
	}
	if left, err := os.ReadDir(filepath.Join(dir, "keys")); err != nil || len(left) != 1 {
		t.Errorf("%v, %v", left, err)
	}
}

func TestManyAtOnceGetOneIdentity(t *testing.T) {
	dir := t.TempDir()
	var mu sync.Mutex
	seen := map[string]bool{}
	var group sync.WaitGroup
	for range 16 {
		group.Go(func() {
			content, err := Load(dir, "k", secret)
			mu.Lock()
			defer mu.Unlock()
			if seen[string(content)] = true; err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if len(seen) != 1 {
		t.Errorf("%d identities", len(seen))
	}
}

func TestPublish(t *testing.T) {
	dir := t.TempDir()
	for _, text := range []string{"one", "two"} {
		if err := Publish(dir, "c.pem", []byte(text)); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, "trust", "c.pem")
		if got, err := os.ReadFile(path); err != nil || string(got) != text || mode(t, path) != 0o644 {
			t.Errorf("%q with mode %o, %v", got, mode(t, path), err)
		}
	}
	if left, err := os.ReadDir(filepath.Join(dir, "trust")); err != nil || len(left) != 1 || mode(t, filepath.Join(dir, "trust")) != 0o755 {
		t.Errorf("%v, %v", left, err)
	}
}

func TestInMemory(t *testing.T) {
	t.Chdir(t.TempDir())
	if got, err := Load("", "k", secret); err != nil || len(got) == 0 {
		t.Error(err)
	}
	if err := Publish("", "c", nil); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir("."); err != nil || len(left) != 0 {
		t.Errorf("%v, %v", left, err)
	}
}

func TestFailures(t *testing.T) {
	dir, cause := t.TempDir(), errors.New("no entropy")
	if _, err := Load(dir, "k", func() ([]byte, error) { return nil, cause }); !errors.Is(err, cause) {
		t.Errorf("generator: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "keys", "huge"), make([]byte, maxFile+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(dir, "huge", secret); !errors.Is(err, podvm.ErrTooLarge) {
		t.Errorf("huge file: %v", err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(file, "k", secret); err == nil {
		t.Error("a file as the directory")
	}
	if err := Publish(file, "k", nil); err == nil {
		t.Error("a file as the directory")
	}
}

// In a directory of somebody else's, keys or trust could lead anywhere.
func TestLinksAreNotFollowed(t *testing.T) {
	for name, call := range map[string]func(dir string) error{
		"keys": func(dir string) error {
			_, err := Load(dir, "x.pem", func() ([]byte, error) { return []byte("x"), nil })
			return err
		},
		"trust": func(dir string) error { return Publish(dir, "x.pem", []byte("x")) },
	} {
		dir, other := t.TempDir(), t.TempDir()
		if err := errors.Join(os.Chmod(other, 0o750), os.Symlink(other, filepath.Join(dir, name))); err != nil { //nolint:gosec // a mode that is none of ours
			t.Fatal(err)
		}
		if err := call(dir); !errors.Is(err, syscall.ENOTDIR) {
			t.Errorf("%s: %v", name, err)
		}
		left, err := os.ReadDir(other)
		if info, serr := os.Stat(other); err != nil || serr != nil || len(left) != 0 || info.Mode().Perm() != 0o750 {
			t.Errorf("%s: left %v, %v, %v", name, left, info.Mode(), errors.Join(err, serr))
		}
	}
}
