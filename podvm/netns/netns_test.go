package netns

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func add(t *testing.T, dir string) (inode uint64) {
	t.Helper()
	if err := Add(dir, "podns"); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, "podns"), &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

func TestAddAndDelete(t *testing.T) {
	testenv.Root(t)
	dir := filepath.Join(t.TempDir(), "netns")
	t.Cleanup(func() { _ = Delete(dir, "podns") })
	first := add(t, dir)
	if err := inside(filepath.Join(dir, "podns"), func() error {
		ifaces, err := net.Interfaces()
		if err != nil {
			return err
		}
		if len(ifaces) != 1 || ifaces[0].Name != "lo" || ifaces[0].Flags&net.FlagUp == 0 {
			t.Errorf("interfaces %v, want lo alone, and up", ifaces)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if again := add(t, dir); again != first {
		t.Error("a second Add made another namespace")
	}
	for range 2 {
		if err := Delete(dir, "podns"); err != nil {
			t.Fatal(err)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("%v, %v", left, err)
	}
}

// A run that was killed before its last step leaves an empty file.
func TestAddAfterAKill(t *testing.T) {
	testenv.Root(t)
	dir := t.TempDir()
	t.Cleanup(func() { _ = Delete(dir, "podns") })
	if err := os.WriteFile(filepath.Join(dir, "podns"), nil, 0o400); err != nil {
		t.Fatal(err)
	}
	add(t, dir)
}

func TestWhatIsNoNamespaceStays(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "notes"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "d"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"notes", "d"} {
		if err := errors.Join(Add(dir, name), Delete(dir, name)); !errors.Is(err, ErrOther) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
}

func TestNames(t *testing.T) {
	for _, name := range []string{"", ".", "..", "a/b", "/etc/passwd", "a\x00b", strings.Repeat("x", 256)} {
		if err := Add(t.TempDir(), name); !errors.Is(err, ErrName) {
			t.Errorf("Add %q: %v", name, err)
		}
		if err := Delete(t.TempDir(), name); !errors.Is(err, ErrName) {
			t.Errorf("Delete %q: %v", name, err)
		}
	}
}
