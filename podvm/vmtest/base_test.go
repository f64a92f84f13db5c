package vmtest

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// archive is an archive as mmdebstrap makes it, much smaller.
func archive(t *testing.T) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, h := range []struct {
		tar.Header
		data string
	}{
		{tar.Header{Typeflag: tar.TypeDir, Name: "./usr/sbin/", Mode: 0o755}, ""},
		{tar.Header{Typeflag: tar.TypeReg, Name: "./boot/vmlinuz-6.12", Mode: 0o644}, "kernel"},
		{tar.Header{Typeflag: tar.TypeReg, Name: "./usr/sbin/mke2fs", Mode: 0o755}, "program"},
		{tar.Header{Typeflag: tar.TypeSymlink, Name: "./usr/sbin/mkfs.ext4", Linkname: "mke2fs"}, ""},
		{tar.Header{Typeflag: tar.TypeSymlink, Name: "./usr/sbin/mkfs", Linkname: "/sbin/mkfs.ext4"}, ""},
		{tar.Header{Typeflag: tar.TypeLink, Name: "./usr/sbin/hard", Linkname: "./usr/sbin/mke2fs"}, ""},
		{tar.Header{Typeflag: tar.TypeSymlink, Name: "./usr/sbin/broken", Linkname: "nothing"}, ""},
	} {
		h.Size = int64(len(h.data))
		if err := w.WriteHeader(&h.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(h.data)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestBaseIsMadeOnceOrNotAtAll(t *testing.T) {
	bin, cache := t.TempDir(), filepath.Join(t.TempDir(), "vm")
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	if err := os.WriteFile(filepath.Join(bin, "debian.tar"), archive(t), 0o600); err != nil {
		t.Fatal(err)
	}
	program := func(script string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(bin, "mmdebstrap"), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	r := recipe{suite: "trixie", files: []string{"usr/sbin/mkfs"}}

	for name, c := range map[string]struct{ script, says string }{
		"it fails":             {"echo no such suite >&2; exit 1", "no such suite"},
		"it sends half":        {"head -c 1000 " + bin + "/debian.tar", "reading the packages' files"},
		"it sends no packages": {"tar -cT /dev/null", "looking for one boot/vmlinuz-*"},
		"it sends and fails":   {"cat " + bin + "/debian.tar; echo disk full >&2; exit 1", "disk full"},
		"it sends no archive":  {"head -c 2000 /dev/zero | tr '\\0' x; exec sleep 1000", "reading the packages' files"},
	} {
		t.Run(name, func(t *testing.T) {
			program(c.script)
			if _, err := ensureBase(t.Context(), cache, r); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want one that says %q", err, c.says)
			}
			left, err := filepath.Glob(cache + "/*")
			if err != nil || len(left) != 1 || filepath.Base(left[0]) != "lock" {
				t.Errorf("left behind: %q, %v", left, err)
			}
		})
	}

	program("echo run >>" + bin + "/runs; cat " + bin + "/debian.tar")
	results := make(chan error)
	for range 3 {
		go func() {
			b, err := ensureBase(t.Context(), cache, r)
			raw, readErr := os.ReadFile(b.kernel)
			if err == nil && string(raw) != "kernel" {
				err = errors.New("the kernel is another one")
			}
			results <- errors.Join(err, readErr)
		}()
	}
	for range 3 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	if raw, err := os.ReadFile(filepath.Join(bin, "runs")); err != nil || string(raw) != "run\n" {
		t.Errorf("mmdebstrap ran as %q, %v", raw, err)
	}
}

func TestLockWaitsNoLongerThanItsContext(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	unlock, err := lock(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := lock(ctx, path); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v while it is held", err)
	}
	unlock()
	again, err := lock(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	again()
}

func TestTailKeepsTheEnd(t *testing.T) {
	var out tail
	for i := range 100 {
		if _, err := out.Write(bytes.Repeat([]byte{byte('0' + i%10)}, tailSize/10)); err != nil {
			t.Fatal(err)
		}
	}
	got := out.String()
	if len(got) != tailSize || got[len(got)-1] != '9' || cap(out.data) > 8*tailSize {
		t.Errorf("%d bytes, the last %q, %d in memory", len(got), got[len(got)-1], cap(out.data))
	}
}

func TestReadable(t *testing.T) {
	for in, want := range map[string]string{
		"a line\n\tand one\n":      "a line\n\tand one\n",
		"\x1b[31mred\x00\xff":      "\uFFFD[31mred\uFFFD\uFFFD",
		strings.Repeat("x", 30):    strings.Repeat("x", 20),
		"0123456789ä0123456789012": "56789ä0123456789012",
	} {
		if got := readable(in, 20); got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
}
