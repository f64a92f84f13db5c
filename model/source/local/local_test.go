package local

import (
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/sealpod/sealpod/model/source"
	"github.com/sealpod/sealpod/model/source/settings"
	"github.com/sealpod/sealpod/podvm"
)

func open(t *testing.T, address string) (*Source, error) {
	t.Helper()
	s, err := New(address, &settings.Env{Host: podvm.Host{}, Log: slog.New(slog.DiscardHandler)})
	if err == nil {
		t.Cleanup(s.Close)
	}
	return s, err
}

// volume is a folder as Kubernetes mounts a configuration: links to a hidden
// folder, and things no model has.
func volume(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := errors.Join(
		os.MkdirAll(dir+"/..2026/sub", 0o755), os.WriteFile(dir+"/..2026/model.bin", []byte("weights"), 0o600),
		os.Symlink("..2026", dir+"/..data"), os.Symlink("..data/model.bin", dir+"/model.bin"),
		os.MkdirAll(dir+"/1", 0o755), os.WriteFile(dir+"/1/.x", nil, 0o600),
		os.Symlink("/etc/passwd", dir+"/1/passwd"), os.Symlink("../../..", dir+"/1/up"), syscall.Mkfifo(dir+"/1/pipe", 0o600),
	); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestListStaysInTheFolder(t *testing.T) {
	s, err := open(t, "file://"+volume(t))
	if err != nil {
		t.Fatal(err)
	}
	objects, err := s.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, o := range objects {
		names = append(names, o.Path)
	}
	if want := []string{"1/.x", "model.bin"}; !slices.Equal(names, want) {
		t.Errorf("%q", names)
	}
	for _, o := range []source.Object{{Path: "1/passwd"}, {Path: "../x"}, {Path: "1/up/etc/passwd"}, {Path: "1/pipe"}} {
		if r, err := s.Open(t.Context(), o, 0, -1); err == nil {
			r.Close()
			t.Errorf("opened %s", o.Path)
		}
	}
}

func TestOpen(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "m")
	if err := os.WriteFile(path, []byte("weights"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := open(t, path)
	if err != nil {
		t.Fatal(err)
	}
	objects, err := s.List(t.Context())
	if err != nil || len(objects) != 1 || objects[0].Path != "m" || objects[0].Size != 7 || s.String() != "file://"+path {
		t.Fatalf("%v %v %s", objects, err, s)
	}
	for _, tt := range []struct {
		off, n int64
		want   string
	}{{0, -1, "weights"}, {2, 3, "igh"}, {5, 100, "ts"}, {7, -1, ""}, {9, -1, ""}} {
		r, err := s.Open(t.Context(), objects[0], tt.off, tt.n)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		if err != nil || string(got) != tt.want || r.Close() != nil {
			t.Errorf("%d, %d: %q %v", tt.off, tt.n, got, err)
		}
	}
	if err := os.WriteFile(path, []byte("weightS!"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Open(t.Context(), objects[0], 0, -1); !errors.Is(err, source.ErrChanged) {
		t.Error(err)
	}
}

func TestLink(t *testing.T) {
	dir, dest := volume(t), t.TempDir()
	s, err := open(t, dir)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // what is there stays
		if n, err := s.Link(dest); err != nil || n != 2 {
			t.Fatal(n, err)
		}
	}
	if b, err := os.ReadFile(dest + "/model.bin"); err != nil || string(b) != "weights" {
		t.Error(err)
	}
	if to, err := os.Readlink(dest + "/1"); err != nil || to != dir+"/1" {
		t.Error(to, err)
	}
	if empty, err := open(t, t.TempDir()); err != nil {
		t.Error(err)
	} else if _, err := empty.Link(dest); !errors.Is(err, source.ErrNotFound) {
		t.Error(err)
	}
}

func TestAddresses(t *testing.T) {
	for address, want := range map[string]error{
		"/nonexistent/x": source.ErrNotFound, "file://relative": source.ErrUsage, "": source.ErrUsage, "file:///dev/null": source.ErrUsage, "/a\x00b": source.ErrUnreachable,
	} {
		if _, err := open(t, address); !errors.Is(err, want) || strings.ContainsAny(podvm.Cause(err), "\x00\n") {
			t.Errorf("%q: %v", address, err)
		}
	}
}
