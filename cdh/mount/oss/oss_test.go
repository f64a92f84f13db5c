package oss

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/testenv"
	"github.com/sealpod/sealpod/podvm/tool"
)

// ossfs is this test binary: it checks its arguments and its password file, and
// mounts a directory that stands for the bucket. gocryptfs is the real one.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == "ossfs" {
		if err := fakeOssfs(os.Getenv(podvm.HostRootEnv), os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			syscall.Exit(1)
		}
		syscall.Exit(0) // os.Exit takes a second under the race detector
	}
	goleak.VerifyTestMain(m)
}

func fakeOssfs(root string, args []string) error {
	if fault, err := os.ReadFile(filepath.Join(root, "fault")); err == nil {
		switch string(fault) {
		case "fail":
			return errors.New("cannot reach the object store")
		case "lie":
			return nil
		case "hang":
			if err := os.WriteFile(filepath.Join(root, "reached"), nil, 0o600); err != nil {
				return err
			}
			time.Sleep(time.Hour)
		}
	}
	if len(args) < 4 || args[0] != "bucket:/some/path" || args[2] != "-ourl=https://oss.example.com" {
		return fmt.Errorf("arguments %q", args)
	}
	file, ok := strings.CutPrefix(args[3], "-opasswd_file=")
	if !ok || strings.Join(args[4:], " ") != "-omax_stat_cache_size=0 -oallow_other" {
		return fmt.Errorf("arguments %q", args)
	}
	info, err := os.Stat(file)
	if err != nil {
		return err
	}
	if text, err := os.ReadFile(file); err != nil || string(text) != "bucket:id:unsealed" || info.Mode() != 0o600 {
		return fmt.Errorf("password file %q with mode %v, %w", text, info.Mode(), err)
	}
	if err := os.WriteFile(filepath.Join(root, "passwd"), []byte(file), 0o600); err != nil {
		return err
	}
	return unix.Mount(filepath.Join(root, "bucket"), args[1], "", unix.MS_BIND, "")
}

type machine struct {
	*testing.T
	*Driver
	root string
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	testenv.Root(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{T: t, root: root}
	for _, dir := range []string{"usr/local/bin", "bucket", "mnt"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(self, filepath.Join(root, "usr/local/bin/ossfs")); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{"PATH": os.Getenv("PATH"), podvm.HostRootEnv: root}
	m.Driver = New(Config{
		Host: podvm.Host{Root: root, LookupEnv: func(n string) (string, bool) { v, ok := env[n]; return v, ok }},
		Unseal: func(_ context.Context, sealed string) (podvm.Secret, error) {
			switch sealed {
			case "sealed.secret":
				return podvm.Secret("unsealed"), nil
			case "sealed.password":
				return podvm.Secret("the password"), nil
			case "sealed.hostile":
				return podvm.Secret("x\nbucket2:id:other"), nil
			}
			return nil, errors.New("no such secret")
		},
	})
	t.Cleanup(func() {
		points, _ := filepath.Glob(filepath.Join(root, "mnt/*"))
		below, _ := filepath.Glob(filepath.Join(root, stateDir[1:], "*/cipher"))
		for _, p := range append(points, below...) {
			_ = unix.Unmount(p, unix.MNT_DETACH)
		}
	})
	return m
}

func (m *machine) volume() Volume {
	return Volume{
		Bucket: "bucket", Path: "/some/path", URL: "https://oss.example.com", AccessKeyID: "id", SecretKey: "sealed.secret",
		Options: "-o max_stat_cache_size=0 -oallow_other", MountPoint: filepath.Join(m.root, "mnt/a"), Digest: "digest",
	}
}

func (m *machine) fault(what string) {
	m.Helper()
	path := filepath.Join(m.root, "fault")
	err := os.WriteFile(path, []byte(what), 0o600)
	if what == "" {
		err = os.Remove(path)
	}
	if err != nil {
		m.Fatal(err)
	}
}

// nothingLeft checks that neither mounts nor secrets stay.
func (m *machine) nothingLeft() {
	m.Helper()
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(table), m.root) {
		m.Errorf("mounts are left, %v", err)
	}
	for _, pattern := range []string{"mnt/*", stateDir[1:] + "/*/*"} {
		if left, _ := filepath.Glob(filepath.Join(m.root, pattern)); len(left) > 0 {
			m.Errorf("left behind: %v", left)
		}
	}
}

func holds(t *testing.T, path, text string) {
	t.Helper()
	if got, err := os.ReadFile(path); string(got) != text || err != nil {
		t.Errorf("%s holds %q, %v", path, got, err)
	}
}

func TestBucket(t *testing.T) {
	m := newMachine(t)
	v := m.volume()
	if err := os.WriteFile(filepath.Join(m.root, "bucket/file"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time it is there already
		if err := m.Mount(t.Context(), v); err != nil {
			t.Fatal(err)
		}
		holds(t, filepath.Join(v.MountPoint, "file"), "x")
	}
	passwd, err := os.ReadFile(filepath.Join(m.root, "passwd"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(string(passwd)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the password file stays: %v", err)
	}
	if err := unix.Unmount(v.MountPoint, 0); err != nil {
		t.Fatal(err)
	}
	if err := unix.Unmount(v.MountPoint, 0); err == nil {
		t.Error("it was mounted twice")
	}
	if err := m.Mount(t.Context(), v); err != nil { // unmounted since
		t.Fatal(err)
	}
	holds(t, filepath.Join(v.MountPoint, "file"), "x")
}

// The real gocryptfs, on a directory that stands for the bucket.
func TestEncryptedBucket(t *testing.T) {
	m := newMachine(t)
	gocryptfs := testenv.Tool(t, "gocryptfs")
	testenv.FUSE(t)
	init := exec.Command(gocryptfs, "-init", "-q", "-scryptn", "10", filepath.Join(m.root, "bucket"))
	init.Stdin = strings.NewReader("the password\n")
	if out, err := init.CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	v := m.volume()
	v.Encrypted, v.Password = "gocryptfs", "sealed.password"
	for range 2 {
		if err := m.Mount(t.Context(), v); err != nil {
			t.Fatal(err)
		}
	}
	const text = "what the cloud must not read"
	if err := os.WriteFile(filepath.Join(v.MountPoint, "file"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Unmount(v.MountPoint, 0); err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(filepath.Join(m.root, "bucket"))
	if err != nil || len(files) != 3 { // configuration, IV of the directory, the file
		t.Fatalf("%v, %v", files, err)
	}
	for _, f := range files {
		raw, err := os.ReadFile(filepath.Join(m.root, "bucket", f.Name()))
		if err != nil || strings.Contains(string(raw), "cloud") || f.Name() == "file" {
			t.Errorf("%s: %v", f.Name(), err)
		}
	}
	if err := m.Mount(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	holds(t, filepath.Join(v.MountPoint, "file"), text)
	if err := unix.Unmount(v.MountPoint, 0); err != nil {
		t.Fatal(err)
	}

	wrong := v
	wrong.Password, wrong.Digest, wrong.MountPoint = "wrong", "other", filepath.Join(m.root, "mnt/b")
	if err := m.Mount(t.Context(), wrong); err == nil || !strings.Contains(podvm.Cause(err), "password") {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(wrong.MountPoint); err == nil {
		t.Error("the mount point stays")
	}
	if left, _ := filepath.Glob(filepath.Join(m.root, stateDir[1:], "other/*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	// What was below the mount is still there.
	if files, err := os.ReadDir(filepath.Join(m.root, "bucket")); err != nil || len(files) != 3 {
		t.Errorf("%v, %v", files, err)
	}
}

func TestTakenBack(t *testing.T) {
	m := newMachine(t)
	v := m.volume()
	for fault, cause := range map[string]string{"fail": "ossfs", "lie": "ossfs"} {
		m.fault(fault)
		if err := m.Mount(t.Context(), v); err == nil || !strings.Contains(podvm.Cause(err), cause) {
			t.Errorf("%s: %v", fault, err)
		}
		m.nothingLeft()
	}
	m.fault("hang")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- m.Mount(ctx, v) }()
	for {
		if _, err := os.Stat(filepath.Join(m.root, "reached")); err == nil {
			break
		}
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	m.nothingLeft()
	m.fault("")

	for name, change := range map[string]func(*Volume){
		"an unknown secret": func(v *Volume) { v.SecretKey = "sealed.unknown" },
		"a hostile secret":  func(v *Volume) { v.SecretKey = "sealed.hostile" },
		"a bad option":      func(v *Volume) { v.Options = "-o passwd_file=/etc/shadow" },
	} {
		bad := v
		change(&bad)
		if err := m.Mount(t.Context(), bad); err == nil || podvm.Cause(err) == "" {
			t.Errorf("%s: %v", name, err)
		}
		m.nothingLeft()
	}
	if err := os.Remove(filepath.Join(m.root, "usr/local/bin/ossfs")); err != nil {
		t.Fatal(err)
	}
	if err := m.Mount(t.Context(), v); !errors.Is(err, tool.ErrMissing) {
		t.Errorf("%v", err)
	}
	m.nothingLeft()
}

// A call that was killed leaves a bucket mounted below; nothing in it is lost.
func TestLeftoversAreTakenAwayWithoutTouchingTheBucket(t *testing.T) {
	m := newMachine(t)
	v := m.volume()
	cipher := filepath.Join(m.root, stateDir[1:], v.Digest, "cipher")
	if err := errors.Join(os.MkdirAll(cipher, 0o700), os.WriteFile(filepath.Join(m.root, "bucket/file"), []byte("x"), 0o600),
		os.WriteFile(filepath.Join(filepath.Dir(cipher), "secret"), []byte("x"), 0o600),
		unix.Mount(filepath.Join(m.root, "bucket"), cipher, "", unix.MS_BIND, "")); err != nil {
		t.Fatal(err)
	}
	if err := m.Mount(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	holds(t, filepath.Join(m.root, "bucket/file"), "x")
	if _, err := os.Stat(cipher); err == nil {
		t.Error("it is still there")
	}
}

func TestManyAtOnce(t *testing.T) {
	m := newMachine(t)
	var wg sync.WaitGroup
	errs := make([]error, 64)
	for i := range errs {
		v := m.volume()
		v.Digest = fmt.Sprint(i % 16)
		v.MountPoint = filepath.Join(m.root, "mnt", v.Digest)
		if i%16 == 5 {
			v.SecretKey = "sealed.unknown"
		}
		wg.Go(func() { errs[i] = m.Mount(t.Context(), v) })
	}
	wg.Wait()
	for i, err := range errs {
		if (i%16 == 5) != (err != nil) {
			t.Errorf("call %d: %v", i, err)
		}
	}
}
