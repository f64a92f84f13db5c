package sysfs

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm/testenv"
)

// An ordinary user mounts with fusermount3.
func TestUnprivileged(t *testing.T) { testenv.RerunUnprivileged(t) }

func mustMount(t *testing.T, dir string, tree Tree) *FS {
	t.Helper()
	testenv.FUSE(t)
	tree.Log = slog.New(slog.DiscardHandler)
	f, err := Mount(t.Context(), dir, tree)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestCloseLeavesAnEmptyDirectory(t *testing.T) {
	tree, _, _ := tdxTree()
	f := mustMount(t, filepath.Join(t.TempDir(), "made", "sys"), tree)
	for range 2 {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
	if left, err := os.ReadDir(f.Dir()); err != nil || len(left) != 0 {
		t.Errorf("left %v, %v", left, err)
	}
	if m, err := mounted(f.Dir()); m != nil || err != nil {
		t.Errorf("mounted %v, %v", m, err)
	}
}

// An ordinary user's mount goes with the program that made it, wherever that is:
// go-fuse looks beyond PATH.
func TestCloseWithoutAPath(t *testing.T) {
	testenv.FUSE(t)
	t.Setenv("PATH", t.TempDir())
	tree, _, _ := tdxTree()
	f, err := Mount(t.Context(), t.TempDir(), tree)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Errorf("%v; umount it by hand", err)
	}
}

func TestMountAgain(t *testing.T) {
	dir := t.TempDir()
	for range 3 {
		tree, _, _ := tdxTree()
		f := mustMount(t, dir, tree)
		read(t, dir+"/"+registerPath+"/mrconfigid")
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// Who has a file open when the file system ends gets errors, and nothing of it
// goes on in this process. An ordinary user without fusectl is told that it does.
func TestCloseOfOneInUse(t *testing.T) {
	tree, _, _ := tdxTree()
	f := mustMount(t, t.TempDir(), tree)
	if testenv.Unprivileged() {
		f.wait = time.Second
	}
	file, err := os.Open(f.Dir() + "/" + registerPath + "/mrconfigid")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	err = f.Close()
	_, rerr := file.Read(make([]byte, 1))
	switch {
	case err == nil:
		if !errors.Is(rerr, syscall.ENOTCONN) && !errors.Is(rerr, syscall.ECONNABORTED) {
			t.Errorf("reading: %v", rerr)
		}
	case !testenv.Unprivileged() || !errors.Is(err, ErrBusy) || rerr != nil:
		t.Errorf("closing: %v, reading: %v", err, rerr)
	}
	if left, err := os.ReadDir(f.Dir()); err != nil || len(left) != 0 {
		t.Errorf("left %v, %v", left, err)
	}
	file.Close()
	<-f.served
}

// A report that is being made does not hold up Close.
func TestCloseEndsReports(t *testing.T) {
	tree, p, _ := tdxTree()
	started := make(chan struct{})
	p.set(func(ctx context.Context, _ []byte, _ uint) ([]byte, error) {
		close(started)
		<-ctx.Done()
		return nil, ctx.Err()
	})
	f := mustMount(t, t.TempDir(), tree)
	e := makeEntry(t, f.Dir(), "e")
	write(t, e+"/inblob", []byte(data64))
	failed := make(chan error, 1)
	go func() {
		_, err := os.ReadFile(e + "/outblob")
		failed <- err
	}()
	<-started
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if err := <-failed; err == nil {
		t.Error("a report was made")
	}
}

// A program that is killed while it waits for a report is gone at once, and the
// next gets its own.
func TestAKilledProgramGivesUpItsReport(t *testing.T) {
	cat := testenv.Tool(t, "cat")
	tree, p, _ := tdxTree()
	started := make(chan struct{})
	p.set(func(ctx context.Context, in []byte, _ uint) ([]byte, error) {
		if in[0] != 'd' {
			return in, nil
		}
		close(started)
		<-ctx.Done()
		return nil, ctx.Err()
	})
	sys := mountTree(t, tree)
	e, next := makeEntry(t, sys, "e"), makeEntry(t, sys, "next")
	write(t, e+"/inblob", []byte(data64))
	write(t, next+"/inblob", bytes.Repeat([]byte("n"), 64))
	cmd := exec.CommandContext(t.Context(), cat, e+"/outblob")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	<-started
	cmd.Process.Kill()
	if err := cmd.Wait(); err == nil {
		t.Error("cat got a report")
	}
	read(t, next+"/outblob")
}

// A provider that panics fails its own report.
func TestAPanicIsAnError(t *testing.T) {
	tree, p, _ := tdxTree()
	p.set(func(context.Context, []byte, uint) ([]byte, error) { panic("a bug") })
	e := makeEntry(t, mountTree(t, tree), "e")
	write(t, e+"/inblob", []byte(data64))
	if _, err := os.ReadFile(e + "/outblob"); !errors.Is(err, syscall.EIO) {
		t.Errorf("got %v", err)
	}
	p.set(nil)
	if got := read(t, e+"/outblob"); got != report0 {
		t.Errorf("%q", got)
	}
}

func TestCloseOfWhatSomebodyElseUnmounted(t *testing.T) {
	testenv.Root(t)
	tree, _, _ := tdxTree()
	f := mustMount(t, t.TempDir(), tree)
	if err := unix.Unmount(f.Dir(), 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}

func TestMountOverALivingOne(t *testing.T) {
	tree, _, _ := tdxTree()
	f := mustMount(t, t.TempDir(), tree)
	if _, err := Mount(t.Context(), f.Dir(), tree); !errors.Is(err, ErrMounted) {
		t.Errorf("got %v", err)
	}
	read(t, f.Dir()+"/"+registerPath+"/mrconfigid")
}

func TestMountThroughASymbolicLink(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(dir+"/real", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("real", dir+"/link"); err != nil {
		t.Fatal(err)
	}
	tree, _, _ := tdxTree()
	f := mustMount(t, dir+"/link", tree)
	read(t, dir+"/real/"+registerPath+"/mrconfigid")
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(dir + "/real"); err != nil || len(left) != 0 {
		t.Errorf("left %v, %v", left, err)
	}
}

func TestMountStopsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Mount(ctx, t.TempDir(), Tree{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// mountEnv has the test binary mount at a directory and wait to be killed.
const mountEnv = "SEALPOD_TEST_MOUNT"

// Two processes are killed one after the other, the second having mounted over
// what the first left; a third mounts there all the same.
func TestMountOverOneWhoseProcessWasKilled(t *testing.T) {
	if dir := os.Getenv(mountEnv); dir != "" {
		tree, _, _ := tdxTree()
		if _, err := Mount(t.Context(), dir, tree); err != nil {
			t.Fatal(err)
		}
		os.Stdout.WriteString("\nmounted\n")
		select {}
	}
	testenv.FUSE(t)
	dir := filepath.Join(t.TempDir(), "sys")
	for range 2 {
		cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^"+t.Name()+"$")
		cmd.Env = append(os.Environ(), mountEnv+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ready := false
		for s := bufio.NewScanner(out); !ready && s.Scan(); {
			ready = s.Text() == "mounted"
		}
		cmd.Process.Kill()
		io.Copy(io.Discard, out)
		cmd.Wait()
		if !ready {
			t.Fatal("the process did not mount")
		}
		if err := unix.Statfs(dir, new(unix.Statfs_t)); !errors.Is(err, unix.ENOTCONN) {
			t.Fatalf("no stale mount: %v", err)
		}
	}
	tree, _, _ := tdxTree()
	f := mustMount(t, dir, tree)
	read(t, dir+"/"+registerPath+"/mrconfigid")
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}
