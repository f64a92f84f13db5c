package scratch

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/sealpod/sealpod/cdh/mount/luks"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/testenv"
)

// image makes a file of 16 MiB, with an ext4 called label unless that is "".
func image(t *testing.T, label string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 16<<20); err != nil {
		t.Fatal(err)
	}
	if label != "" {
		ext4(t, path, label)
	}
	return path
}

func ext4(t *testing.T, device, label string, options ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), testenv.Tool(t, "mkfs.ext4"), append(options, "-q", "-F", "-L", label, device)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

func TestOnlyThePlaceholderIsCleared(t *testing.T) {
	testenv.Tool(t, "blkid")
	for label, cleared := range map[string]bool{Label: true, "trusted_stor": false, "data": false, "": false} {
		t.Run(label, func(t *testing.T) {
			disk := image(t, label)
			before, err := os.ReadFile(disk)
			if err != nil {
				t.Fatal(err)
			}
			s := newStorage(Config{})
			if err := s.clear(t.Context(), disk, 0); err != nil {
				t.Fatal(err)
			}
			found, err := s.run.Signature(t.Context(), disk)
			if err != nil {
				t.Fatal(err)
			}
			after, err := os.ReadFile(disk)
			if err != nil {
				t.Fatal(err)
			}
			if cleared && found != "" || !cleared && !bytes.Equal(before, after) {
				t.Errorf("found %q, changed: %v", found, !bytes.Equal(before, after))
			}
		})
	}
}

// Whoever gives the label to a disk with files does not mean to lose them.
func TestOnlyAnEmptyFileSystemIsCleared(t *testing.T) {
	testenv.Tool(t, "blkid")
	files := t.TempDir()
	if err := os.WriteFile(filepath.Join(files, "letter"), []byte("dear"), 0o600); err != nil {
		t.Fatal(err)
	}
	set := func(at int64, b ...byte) func(*os.File) error {
		return func(f *os.File) error { _, err := f.WriteAt(b, 1024+at); return err }
	}
	for name, c := range map[string]struct {
		options []string
		change  func(*os.File) error
		cleared bool
	}{
		"empty":                        {cleared: true},
		"empty, with an orphan file":   {options: []string{"-O", "orphan_file"}, cleared: true},
		"empty, without a journal":     {options: []string{"-O", "^has_journal"}, cleared: true},
		"with a file":                  {options: []string{"-d", files}},
		"with a file and without more": {options: []string{"-d", files, "-O", "^has_journal"}},
		"not unmounted":                {change: set(0x3a, 0, 0), options: []string{"-O", "^metadata_csum"}},
	} {
		t.Run(name, func(t *testing.T) {
			disk := image(t, "")
			ext4(t, disk, Label, c.options...)
			f, err := os.OpenFile(disk, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if c.change != nil {
				if err := c.change(f); err != nil {
					t.Fatal(err)
				}
			}
			s := newStorage(Config{})
			if err := s.clear(t.Context(), disk, 0); err != nil {
				t.Fatal(err)
			}
			found, err := s.run.Signature(t.Context(), disk)
			if err != nil || (found == "") != c.cleared {
				t.Errorf("%q is left, %v", found, err)
			}
		})
	}
	disk := image(t, Label)
	if err := newStorage(Config{}).clear(t.Context(), disk, 1); !errors.Is(err, ErrDevice) {
		t.Errorf("another device than the one that was found: %v", err)
	}
}

func TestIsPlaceholder(t *testing.T) {
	for out, want := range map[string]bool{
		"DEVNAME=/dev/x\nLABEL=trusted_store\nUUID=1\nTYPE=ext4\nUSAGE=filesystem\n": true,
		"LABEL=trusted_store\nTYPE=xfs\n":                                            false,
		"LABEL=trusted_store\nTYPE=ext4\nPTTYPE=dos\n":                               false,
		"LABEL=trusted_store2\nTYPE=ext4\n":                                          false,
		"LABEL=data\nLABEL=trusted_store\nTYPE=ext4\n":                               false,
		"TYPE=crypto_LUKS\nLABEL=trusted_store\nno key and value\n":                  false,
		"TYPE=ext4\n": false,
		"":            false,
	} {
		if got := isPlaceholder([]byte(out)); got != want {
			t.Errorf("%q: %v", out, got)
		}
	}
}

func FuzzIsPlaceholder(f *testing.F) {
	f.Add([]byte("LABEL=trusted_store\nTYPE=ext4\n"))
	f.Add([]byte("=\n\nTYPE"))
	f.Fuzz(func(t *testing.T, out []byte) {
		if isPlaceholder(out) && !bytes.Contains(out, []byte("LABEL="+Label)) {
			t.Errorf("%q has no label", out)
		}
	})
}

// here is a storage that looks for labels in a directory of the test.
func here(t *testing.T) (s *storage, links string) {
	t.Helper()
	links = t.TempDir()
	s = newStorage(Config{})
	s.links, s.point, s.find = []string{links, filepath.Join(links, "by-label")}, filepath.Join(t.TempDir(), "image"), 50*time.Millisecond
	if err := os.Mkdir(s.links[1], 0o755); err != nil {
		t.Fatal(err)
	}
	return s, links
}

func link(t *testing.T, to, dir string) {
	t.Helper()
	if err := os.Symlink(to, filepath.Join(dir, Label)); err != nil {
		t.Fatal(err)
	}
}

func TestDevicesThatAreNotMeant(t *testing.T) {
	t.Run("none", func(t *testing.T) {
		s, _ := here(t)
		if err := s.mount(t.Context()); !errors.Is(err, ErrDevice) || !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	})
	t.Run("a dangling link", func(t *testing.T) {
		s, links := here(t)
		link(t, "/dev/no-such-disk", links)
		if err := s.mount(t.Context()); !errors.Is(err, ErrDevice) {
			t.Error(err)
		}
	})
	t.Run("a file", func(t *testing.T) {
		s, links := here(t)
		disk := image(t, Label)
		link(t, disk, links)
		if err := s.mount(t.Context()); !errors.Is(err, ErrDevice) {
			t.Error(err)
		}
		if found, err := s.run.Signature(t.Context(), disk); err != nil || found != "ext4" {
			t.Errorf("%q, %v", found, err)
		}
	})
	t.Run("two", func(t *testing.T) {
		s, links := here(t)
		link(t, "/dev/null", links)
		link(t, "/dev/zero", s.links[1])
		if err := s.mount(t.Context()); !errors.Is(err, ErrDevice) {
			t.Error(err)
		}
	})
	t.Run("one that appears later, by both of its labels", func(t *testing.T) {
		s, links := here(t)
		s.find = time.Minute
		done := make(chan error, 1)
		go func() { _, _, err := s.device(t.Context()); done <- err }()
		link(t, "/dev/null", links)
		link(t, "/dev/null", s.links[1])
		if err := <-done; !errors.Is(err, ErrDevice) || errors.Is(err, context.DeadlineExceeded) {
			t.Error(err) // it was found, and is no disk
		}
	})
}

func TestPlace(t *testing.T) {
	if s := newStorage(Config{}); s.point != "/run/kata-containers/image" || s.links[0] != "/dev/disk/by-partlabel" {
		t.Errorf("%+v", s)
	}
	if !errors.Is(podvm.Explain(luks.ErrForeign, "x"), luks.ErrForeign) {
		t.Error("sentinels survive")
	}
}
