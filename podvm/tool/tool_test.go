package tool

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// runner runs scripts called as they are named in files.
func runner(t *testing.T, files map[string]string) Runner {
	t.Helper()
	dir := t.TempDir()
	for name, script := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	env := map[string]string{"PATH": "relative:" + dir + ":" + os.Getenv("PATH"), "SECRET": "x"}
	return Runner{podvm.Host{LookupEnv: func(name string) (string, bool) { v, ok := env[name]; return v, ok }}}
}

func TestRun(t *testing.T) {
	r := runner(t, map[string]string{
		"echo-args": `echo "$@"; cat; echo noise >&2; env | grep -c SECRET`,
		"fails":     `printf 'why\033[2J it failed\n' >&2; exit 7`,
		"verbose":   `yes | head -c 2000000; exit 3`,
		"daemon":    `(sleep 0.2; echo later; echo later >&2; echo alive > "$1") & exit 0`,
	})
	ctx := t.Context()
	input := bytes.Repeat([]byte("k"), MaxInput)
	out, err := r.Run(ctx, input, "echo-args", "a b", "$HOME")
	if err == nil || !strings.HasPrefix(string(out), "a b $HOME\n"+string(input)) || !strings.HasSuffix(string(out), "0\n") {
		t.Errorf("%.40q, %v", out, err) // grep finds no SECRET, so ends with 1
	}
	if _, err := r.Run(ctx, append(input, 'x'), "echo-args"); !errors.Is(err, podvm.ErrTooLarge) {
		t.Errorf("input too large: %v", err)
	}
	var exit *ExitError
	if _, err := r.Run(ctx, nil, "fails"); !errors.As(err, &exit) || exit.Code != 7 || exit.Output != "why [2J it failed" {
		t.Errorf("%v", err)
	}
	if out, err := r.Run(ctx, nil, "verbose"); err == nil || len(out) != maxOutput {
		t.Errorf("%d bytes, %v", len(out), err)
	}
	// A file system daemon keeps its outputs: Run neither waits for it, nor kills
	// it by taking them away.
	sign := filepath.Join(t.TempDir(), "alive")
	if _, err := r.Run(ctx, nil, "daemon", sign); err != nil {
		t.Error(err)
	}
	for range 500 {
		if _, err = os.Stat(sign); err == nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error("the daemon died")
}

func TestMissingProgramNamesItsPackage(t *testing.T) {
	r := Runner{podvm.Host{LookupEnv: func(string) (string, bool) { return "/nowhere", true }}}
	for program, want := range map[string]string{"cryptsetup": "cryptsetup-bin", "zpool": "zfsutils-linux", "/usr/local/bin/no-such": "no-such"} {
		_, err := r.Run(t.Context(), nil, program)
		if !errors.Is(err, ErrMissing) || !strings.Contains(podvm.Cause(err), want) {
			t.Errorf("%s: %v", program, err)
		}
	}
}

// The end of the context kills what the program started, too.
func TestCancelKillsTheGroup(t *testing.T) {
	r := runner(t, map[string]string{"tree": `sleep 1000 & echo $! > "$1"; wait`})
	file := filepath.Join(t.TempDir(), "pid")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		_, err := r.Run(ctx, nil, "tree", file)
		done <- err
	}()
	var pid int
	for pid == 0 {
		raw, _ := os.ReadFile(file)
		pid, _ = strconv.Atoi(strings.TrimSpace(string(raw)))
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	for range 500 {
		if raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat"); err != nil || strings.Contains(string(raw), ") Z ") {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	_ = unix.Kill(pid, unix.SIGKILL)
	t.Error("the child lives on")
}

func TestUndo(t *testing.T) {
	var order []int
	var u Undo
	u.Add(func(context.Context) error { order = append(order, 1); return nil })
	u.Add(func(context.Context) error { order = append(order, 2); return errors.New("cannot") })
	u.Add(func(ctx context.Context) error { order = append(order, 3); return ctx.Err() })
	var err error
	u.OnError(t.Context(), &err)
	if len(order) != 0 {
		t.Error("undone without an error")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	first := podvm.Explain(errors.New("first"), "the first")
	err = first
	u.OnError(ctx, &err)
	if !errors.Is(err, first) || podvm.Cause(err) != "the first" || !strings.Contains(err.Error(), "cannot") || len(order) != 3 || order[0] != 3 {
		t.Errorf("%v, %v", order, err)
	}
}

func TestDirectoryFollowsNobodysExchange(t *testing.T) {
	root := t.TempDir()
	var u Undo
	path := filepath.Join(root, "a/b/c")
	dir, real, err := Directory(path, &u)
	if err != nil || real != path {
		t.Fatalf("%q, %v", real, err)
	}
	// Exchanged for a link now, the opened directory stays what it was.
	if err := errors.Join(os.Rename(path, path+".moved"), os.Symlink("/etc", path)); err != nil {
		t.Fatal(err)
	}
	if target, err := os.Readlink(dir.Name()); err != nil || target != path+".moved" {
		t.Errorf("%q, %v", target, err)
	}
	dir.Close()
	if err := errors.Join(os.Remove(path), os.Rename(path+".moved", path)); err != nil {
		t.Fatal(err)
	}
	err = errors.New("x")
	u.OnError(t.Context(), &err)
	if left, _ := os.ReadDir(root); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	if err := os.WriteFile(filepath.Join(root, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Directory(filepath.Join(root, "file"), &u); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("a file: %v", err)
	}
	if _, _, err := Directory("/proc/self/cwd", &u); !errors.Is(err, unix.ELOOP) {
		t.Errorf("a magic link: %v", err)
	}
}

func TestSignature(t *testing.T) {
	// What blkid says of a partition, whatever is on it.
	const entry = `echo DEVNAME=/dev/vda4; echo PART_ENTRY_SCHEME=gpt; echo PART_ENTRY_NAME=trusted_store; `
	for name, c := range map[string]struct{ script, want string }{
		"a blank disk":             {`exit 2`, ""},
		"a blank partition":        {entry, ""},
		"a partition with ext4":    {entry + `echo TYPE=ext4`, "ext4"},
		"two signatures":           {`exit 8`, "something that blkid cannot tell"},
		"two of a partition":       {entry + `exit 8`, "something that blkid cannot tell"},
		"something without a name": {entry + `echo USAGE=raid`, "something that blkid cannot tell"},
		"a table on a partition":   {entry + `echo PTTYPE=dos`, "dos"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := runner(t, map[string]string{"blkid": c.script}).Signature(t.Context(), "/dev/vda4")
			if err != nil || got != c.want {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
}

func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dir/lock")
	unlock, err := Lock(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := Lock(ctx, path); !errors.Is(err, context.DeadlineExceeded) || podvm.Cause(err) == "" {
		t.Errorf("%v", err)
	}
	unlock()
	if unlock, err = Lock(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	unlock()
}
