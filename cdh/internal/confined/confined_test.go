package confined

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/sealpod/sealpod/podvm"
)

func TestRead(t *testing.T) {
	base := t.TempDir()
	dir := filepath.Join(base, "keys")
	write := func(path, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	link := func(target, name string) {
		t.Helper()
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	write(filepath.Join(dir, "a"), "inside")
	write(filepath.Join(dir, "sub/b"), "below")
	write(filepath.Join(dir, "big"), "123456789")
	write(filepath.Join(base, "outside"), "outside")
	link("a", "in")
	link("../outside", "out")
	link(filepath.Join(base, "outside"), "abs")
	link("..", "up")
	link("loop", "loop")
	if err := syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"a": "inside", "sub/b": "below", "in": "inside", "sub/../a": "inside", "./a": "inside"} {
		if got, err := Read(dir, name, 8); string(got) != want || err != nil {
			t.Errorf("%s: %q, %v, want %q", name, got, err, want)
		}
	}
	for _, name := range []string{
		"", ".", "..", "/", "../outside", "sub/../../outside", "out", "abs", "up/outside", "loop", "pipe", "sub",
		filepath.Join(base, "outside"), "absent", "a/", "a\x00", "a/../../outside",
	} {
		if got, err := Read(dir, name, 8); err == nil {
			t.Errorf("%q was read: %q", name, got)
		}
	}
	if _, err := Read(dir, "big", 8); !errors.Is(err, podvm.ErrTooLarge) {
		t.Errorf("a large file: %v", err)
	}
	if _, err := Read(filepath.Join(base, "none"), "a", 8); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
}
