package luks

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/testenv"
)

var cheapDerivation = []string{"--pbkdf", "argon2id", "--pbkdf-memory", "32", "--pbkdf-force-iterations", "4"}

// A machine without a device-mapper, so that what surrounds it runs for real:
// cryptsetup is this test binary, which has the real program format volumes and
// prove that keys open them, and where a mapping would be activated makes a loop
// device at the offset the header says. So what is mounted is not encrypted;
// vm_test.go has that. blkid, mkfs.ext4 and mount are real.
type machine struct {
	t    *testing.T
	root string
	host podvm.Host
	log  *bytes.Buffer
	*Driver
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	testenv.Root(t)
	for _, program := range []string{"cryptsetup", "mkfs.ext4", "blkid", "losetup"} {
		testenv.Tool(t, program)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{t: t, root: root, log: &bytes.Buffer{}}
	for _, dir := range []string{"bin", "dev/mapper", "dm", "faults", "mnt", "disks"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for link, target := range map[string]string{"bin/cryptsetup": self, "bin/mkfs.ext4": self, "sys": "/sys"} {
		if err := os.Symlink(target, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	m.host = fakeHost(root)
	m.Driver = fakeDriver(root, slog.New(slog.NewTextHandler(m.log, nil)))
	t.Cleanup(m.cleanup)
	return m
}

func fakeHost(root string) podvm.Host {
	env := map[string]string{"PATH": filepath.Join(root, "bin") + ":" + os.Getenv("PATH"), podvm.HostRootEnv: root}
	return podvm.Host{Root: root, LookupEnv: func(name string) (string, bool) { v, ok := env[name]; return v, ok }}
}

func fakeDriver(root string, log *slog.Logger) *Driver {
	d := New(Config{Host: fakeHost(root), Log: log})
	d.dm = fakeDM{root}
	d.derivation = cheapDerivation
	return d
}

func (m *machine) cleanup() {
	points, _ := filepath.Glob(filepath.Join(m.root, "mnt/*"))
	for _, p := range points {
		_ = unix.Unmount(p, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	}
	names, _ := filepath.Glob(filepath.Join(m.root, "dm/*"))
	for _, n := range names {
		_ = hide(m.root, filepath.Base(n))
		_ = exec.Command("losetup", "-d", m.loop(filepath.Base(n))).Run()
	}
}

func (m *machine) loop(mapper string) string {
	dev, err := os.Readlink(filepath.Join(m.root, "dev/mapper", mapper))
	if err != nil {
		return ""
	}
	return dev
}

// disk makes an image file, all zero.
func (m *machine) disk(name string, size int64) string {
	m.t.Helper()
	path := filepath.Join(m.root, "disks", name)
	if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, size)); err != nil {
		m.t.Fatal(err)
	}
	return path
}

func (m *machine) point(name string) string { return filepath.Join(m.root, "mnt", name) }

// fault makes a program do something else at a stage, once: fail, hang, or what
// the stage knows.
func (m *machine) fault(stage, what string) {
	m.t.Helper()
	if err := os.WriteFile(filepath.Join(m.root, "faults", stage), []byte(what), 0o600); err != nil {
		m.t.Fatal(err)
	}
}

// reached waits until a program hangs at a stage.
func (m *machine) reached(stage string) {
	m.t.Helper()
	for range 1500 {
		if _, err := os.Stat(filepath.Join(m.root, "faults", stage+".reached")); err == nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	m.t.Fatalf("%s was not reached", stage)
}

// nothingLeft checks that no call left mappings, mounts, headers or records.
func (m *machine) nothingLeft() {
	m.t.Helper()
	for _, pattern := range []string{"dm/*", "dev/mapper/*", "mnt/*", headerDir[1:] + "/*", recordDir[1:] + "/*.json*"} {
		left, err := filepath.Glob(filepath.Join(m.root, pattern))
		if err != nil || len(left) > 0 {
			m.t.Errorf("left behind: %v, %v", left, err)
		}
	}
	if out, err := exec.Command("losetup", "--noheadings", "--output", "BACK-FILE").Output(); err != nil || strings.Contains(string(out), m.root) {
		m.t.Errorf("loop devices left: %s %v", out, err)
	}
}

// unmount is what callers do on their own.
func (m *machine) unmount(point string) {
	m.t.Helper()
	if err := unix.Unmount(point, 0); err != nil {
		m.t.Fatal(err)
	}
}

// fakeDM answers for the mappings of fakeOpen.
type fakeDM struct{ root string }

type fakeMapping struct {
	Offset uint64
	Cipher string
	Loop   string
}

func (f fakeDM) status(name string) (*mapping, error) {
	raw, err := os.ReadFile(filepath.Join(f.root, "dm", name))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var fm fakeMapping
	if err := json.Unmarshal(raw, &fm); err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Stat(fm.Loop, &st); err != nil {
		return nil, err
	}
	return &mapping{
		number: st.Rdev, targets: 1, kind: "crypt", cipher: fm.Cipher, keySize: 64, ivOff: "0",
		below: majorMinor(st.Rdev), offset: fmt.Sprint(fm.Offset / 512), options: []string{"1", "sector_size:4096"},
	}, nil
}

func (f fakeDM) remove(name string) error { return os.Remove(filepath.Join(f.root, "dm", name)) }

// fakeProgram is cryptsetup or mkfs.ext4 of the machine.
func fakeProgram(name string, args []string) int {
	root := os.Getenv(podvm.HostRootEnv)
	if err := os.Setenv("PATH", os.Getenv("PATH")[len(root+"/bin:"):]); err != nil {
		return 9
	}
	var err error
	switch {
	case name == "mkfs.ext4":
		err = staged(root, "mkfs", func() error { return pass(name, args, nil) })
	case slices.Contains(args, "luksFormat"):
		err = staged(root, "format", func() error { return pass(name, args, os.Stdin) })
	case slices.Contains(args, "open"):
		err = staged(root, "open", func() error { return fakeOpen(root, args) })
	case args[0] == "close":
		err = staged(root, "close", func() error { return fakeClose(root, args[1]) })
	default:
		err = fmt.Errorf("unexpected arguments %q", args)
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// staged runs f unless there is a fault for the stage.
func staged(root, stage string, f func() error) error {
	path := filepath.Join(root, "faults", stage)
	raw, err := os.ReadFile(path)
	if err != nil {
		return f()
	}
	if err := os.Remove(path); err != nil {
		return err
	}
	switch what := string(raw); what {
	case "fail":
		return errors.New("this is what the program says about \x1b[31m it")
	case "hang before", "hang after":
		if what == "hang after" {
			if err := f(); err != nil {
				return err
			}
		}
		if err := os.WriteFile(path+".reached", nil, 0o600); err != nil {
			return err
		}
		time.Sleep(time.Hour)
	case "weak":
		if err := os.WriteFile(filepath.Join(root, "faults", "cipher"), nil, 0o600); err != nil {
			return err
		}
		return f()
	}
	return errors.New("no such fault")
}

func pass(name string, args []string, stdin io.Reader) error {
	cmd := exec.CommandContext(context.Background(), name, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, os.Stdout, os.Stderr
	return cmd.Run()
}

func fakeOpen(root string, args []string) error {
	device, name := args[len(args)-2], args[len(args)-1]
	header := args[slices.Index(args, "--header")+1]
	key, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	test := append([]string{"--test-passphrase"}, args[:len(args)-1]...)
	if err := pass("cryptsetup", test, bytes.NewReader(key)); err != nil {
		return err
	}
	record := filepath.Join(root, "dm", name)
	if _, err := os.Stat(record); err == nil {
		return fmt.Errorf("mapping %s exists", name)
	}
	area, err := os.ReadFile(header)
	if err != nil {
		return err
	}
	m, err := parseArea(area[:len(area):len(area)])
	if err != nil {
		return err
	}
	out, err := exec.CommandContext(context.Background(), "losetup", "--find", "--show", "--offset", fmt.Sprint(m.offset), device).Output()
	if err != nil {
		return fmt.Errorf("losetup: %w", err)
	}
	fm := fakeMapping{Offset: m.offset, Cipher: cipher, Loop: strings.TrimSpace(string(out))}
	if os.Remove(filepath.Join(root, "faults", "cipher")) == nil {
		fm.Cipher = "cipher_null-ecb"
	}
	raw, err := json.Marshal(fm)
	if err != nil {
		return err
	}
	return errors.Join(os.Symlink(fm.Loop, filepath.Join(root, "dev/mapper", name)), os.WriteFile(record, raw, 0o600))
}

// hide makes the file system of a mapping without a key unreadable, as if it had
// been encrypted. One with a key is where blkid does not look.
func hide(root, name string) error {
	raw, err := os.ReadFile(filepath.Join(root, "dm", name))
	if err != nil {
		return err
	}
	var fm fakeMapping
	if err := json.Unmarshal(raw, &fm); err != nil || fm.Offset > 0 {
		return err
	}
	f, err := os.OpenFile(fm.Loop, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(bytes.Repeat([]byte("?"), 4096)); err != nil {
		return err
	}
	return f.Sync()
}

func fakeClose(root, name string) error {
	node := filepath.Join(root, "dev/mapper", name)
	loop, err := os.Readlink(node)
	if err != nil {
		return err
	}
	if err := hide(root, name); err != nil {
		return err
	}
	if err := exec.CommandContext(context.Background(), "losetup", "-d", loop).Run(); err != nil {
		return err
	}
	return errors.Join(os.Remove(node), os.Remove(filepath.Join(root, "dm", name)))
}
