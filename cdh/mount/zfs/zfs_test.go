package zfs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/sealpod/sealpod/cdh/mount/internal/tool"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/testenv"
)

// The kernel module zfs is not in Debian's kernels, so zpool and zfs are this
// test binary: programs that keep state in a file, know exactly the commands
// that are sent here, and read a key as the real ones do. That the real ones
// understand these commands follows from their manuals and from upstream's use
// alone. blkid is real, the label it looks for is written by zpool create.
func TestMain(m *testing.M) {
	switch name := filepath.Base(os.Args[0]); name {
	case "zpool", "zfs":
		os.Exit(program(name, os.Args[1:]))
	}
	goleak.VerifyTestMain(m)
}

// dataset is what a pool holds, on the disk; the rest is the kernel's.
type dataset struct {
	Key, MountPoint, CanMount string
	Encryption                string
	Loaded, Mounted           bool // kernel
}

type state struct {
	Disks    map[string]map[string]map[string]*dataset // device, pool, dataset
	Imported map[string]string                         // pool to device
	Calls    []string
	Fail     map[string]bool // calls that fail, by their beginning
}

func statePath(root string) string { return filepath.Join(root, "zfs.json") }

func load(root string) *state {
	s := &state{Disks: map[string]map[string]map[string]*dataset{}, Imported: map[string]string{}, Fail: map[string]bool{}}
	if raw, err := os.ReadFile(statePath(root)); err == nil {
		if err := json.Unmarshal(raw, s); err != nil {
			panic(err)
		}
	}
	return s
}

func (s *state) save(root string) {
	raw, err := json.Marshal(s)
	if err != nil {
		panic(err)
	}
	if err := os.WriteFile(statePath(root), raw, 0o600); err != nil {
		panic(err)
	}
}

func program(name string, args []string) int {
	root := os.Getenv(podvm.HostRootEnv)
	s := load(root)
	call := name + " " + strings.Join(args, " ")
	s.Calls = append(s.Calls, call)
	defer func() { s.save(root) }()
	for f := range s.Fail {
		if strings.HasPrefix(call, f) {
			fmt.Fprintln(os.Stderr, "this fails")
			return 1
		}
	}
	var err error
	if name == "zpool" {
		err = s.zpool(args)
	} else {
		err = s.zfs(args)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func (s *state) zpool(args []string) error {
	switch {
	case slices.Equal(args, []string{"list", "-H", "-o", "name"}):
		for p := range s.Imported {
			fmt.Println(p)
		}
	case len(args) == 8 && slices.Equal(args[:7], []string{"list", "-H", "-v", "-P", "-L", "-o", "name"}):
		fmt.Printf("%s\n\t%s\t1G\t-\n", args[7], s.Imported[args[7]])
	case len(args) == 4 && args[0] == "create" && args[1] == "-f":
		if s.Imported[args[2]] != "" {
			return fmt.Errorf("cannot create '%s': pool already exists", args[2])
		}
		s.Disks[args[3]] = map[string]map[string]*dataset{args[2]: {}}
		s.Imported[args[2]] = args[3]
		return label(args[3], true)
	case len(args) == 5 && slices.Equal(args[:3], []string{"import", "-N", "-d"}):
		if s.Disks[args[3]][args[4]] == nil {
			return fmt.Errorf("cannot import '%s': no such pool available", args[4])
		}
		s.Imported[args[4]] = args[3]
	case len(args) == 2 && args[0] == "export":
		for _, d := range s.Disks[s.Imported[args[1]]][args[1]] {
			d.Loaded, d.Mounted = false, false
		}
		delete(s.Imported, args[1])
	case len(args) == 2 && args[0] == "destroy":
		device := s.Imported[args[1]]
		delete(s.Imported, args[1])
		delete(s.Disks, device)
		return label(device, false)
	default:
		return fmt.Errorf("unrecognized command: %q", args)
	}
	return nil
}

// label writes what blkid takes for a member of a pool: uberblocks.
func label(device string, on bool) error {
	f, err := os.OpenFile(device, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	var magic [8]byte
	if on {
		magic = [8]byte{0x0c, 0xb1, 0xba}
	}
	for at := int64(128 << 10); at < 256<<10; at += 1 << 10 {
		if _, err := f.WriteAt(magic[:], at); err != nil {
			return err
		}
	}
	return nil
}

func (s *state) find(name string) (*dataset, error) {
	pool, ds, _ := strings.Cut(name, "/")
	if d := s.Disks[s.Imported[pool]][pool][ds]; d != nil {
		return d, nil
	}
	return nil, fmt.Errorf("cannot open '%s': dataset does not exist", name)
}

// key reads a passphrase as zfs does from what is no terminal: the first line.
func key() (string, error) {
	raw, err := io.ReadAll(os.Stdin)
	if err != nil {
		return "", err
	}
	lines := bytes.Split(raw, []byte{'\n'})
	if len(lines) != 3 || len(lines[2]) != 0 || !bytes.Equal(lines[0], lines[1]) || len(lines[0]) < 8 || len(lines[0]) > 512 {
		return "", fmt.Errorf("key of %d bytes in %d lines", len(raw), len(lines))
	}
	return string(lines[0]), nil
}

func (s *state) zfs(args []string) error {
	name := args[len(args)-1]
	switch {
	case args[0] == "get":
		d, err := s.find(name)
		if err != nil {
			return err
		}
		if !slices.Equal(args[:6], []string{"get", "-H", "-p", "-o", "property,value", "encryption,keyformat,encryptionroot,keystatus,mounted,mountpoint"}) {
			return fmt.Errorf("unrecognized command: %q", args)
		}
		status := map[bool]string{true: "available", false: "unavailable"}[d.Loaded]
		mounted := map[bool]string{true: "yes", false: "no"}[d.Mounted]
		fmt.Printf("encryption\t%s\nkeyformat\tpassphrase\nencryptionroot\t%s\nkeystatus\t%s\nmounted\t%s\nmountpoint\t%s\n", d.Encryption, name, status, mounted, d.MountPoint)
	case len(args) == 8 && args[0] == "create" && args[2] == "encryption=aes-256-gcm" && args[4] == "keyformat=passphrase":
		k, err := key()
		if err != nil {
			return err
		}
		pool, ds, _ := strings.Cut(name, "/")
		s.Disks[s.Imported[pool]][pool][ds] = &dataset{Key: k, MountPoint: strings.TrimPrefix(args[6], "mountpoint="), Encryption: "aes-256-gcm", Loaded: true, Mounted: true}
	case len(args) == 2 && args[0] == "load-key":
		k, err := key()
		if err != nil {
			return err
		}
		d, err := s.find(name)
		if err != nil {
			return err
		}
		if d.Key != k {
			return fmt.Errorf("key load error: incorrect key provided for '%s'", name)
		}
		d.Loaded = true
	case len(args) == 2 && args[0] == "destroy":
		pool, ds, _ := strings.Cut(name, "/")
		delete(s.Disks[s.Imported[pool]][pool], ds)
	default:
		d, err := s.find(name)
		if err != nil {
			return err
		}
		switch {
		case len(args) == 2 && args[0] == "unload-key" && d.Loaded && !d.Mounted:
			d.Loaded = false
		case len(args) == 3 && args[0] == "set" && args[1] == "canmount=noauto":
			d.CanMount = "noauto"
		case len(args) == 3 && args[0] == "set" && strings.HasPrefix(args[1], "mountpoint=/"):
			d.MountPoint = args[1][len("mountpoint="):]
		case len(args) == 2 && args[0] == "mount" && d.Loaded && !d.Mounted:
			d.Mounted = true
		default:
			return fmt.Errorf("unrecognized command: %q", args)
		}
	}
	return nil
}

type machine struct {
	*testing.T
	*Driver
	root string
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	testenv.Tool(t, "blkid")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{T: t, root: t.TempDir()}
	if err := os.Mkdir(filepath.Join(m.root, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"zpool", "zfs"} {
		if err := os.Symlink(self, filepath.Join(m.root, "bin", name)); err != nil {
			t.Fatal(err)
		}
	}
	env := map[string]string{"PATH": filepath.Join(m.root, "bin") + ":" + os.Getenv("PATH"), podvm.HostRootEnv: m.root}
	m.Driver = New(Config{Host: podvm.Host{Root: m.root, LookupEnv: func(n string) (string, bool) { v, ok := env[n]; return v, ok }}})
	return m
}

func (m *machine) volume() Volume {
	m.Helper()
	disk := filepath.Join(m.root, "disk")
	if _, err := os.Stat(disk); err != nil {
		if err := errors.Join(os.WriteFile(disk, nil, 0o600), os.Truncate(disk, 64<<20)); err != nil {
			m.Fatal(err)
		}
	}
	return Volume{Device: disk, Pool: "zpool", Dataset: "zdataset", Key: keyOf("passphrase"), MountPoint: filepath.Join(m.root, "mnt/a")}
}

func keyOf(key string) func(context.Context) (podvm.Secret, error) {
	return func(context.Context) (podvm.Secret, error) { return podvm.Secret(key), nil }
}

// calls returns the commands since the last time, without those that only look.
func (m *machine) calls() []string {
	s := load(m.root)
	var out []string
	for _, c := range s.Calls {
		if !strings.HasPrefix(c, "zpool list") && !strings.HasPrefix(c, "zfs get") {
			out = append(out, strings.ReplaceAll(c, m.root, ""))
		}
	}
	s.Calls = nil
	s.save(m.root)
	return out
}

func (m *machine) expect(want ...string) {
	m.Helper()
	if got := m.calls(); !slices.Equal(got, want) {
		m.Fatalf("commands %q, want %q", got, want)
	}
}

func (m *machine) fail(call string, on bool) {
	s := load(m.root)
	delete(s.Fail, call)
	if on {
		s.Fail[call] = true
	}
	s.save(m.root)
}

const create = "zfs create -o encryption=aes-256-gcm -o keyformat=passphrase -o mountpoint=/mnt/a zpool/zdataset"

func TestMakeAndOpen(t *testing.T) {
	m := newMachine(t)
	v := m.volume()
	if err := m.Mount(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	m.expect("zpool create -f zpool /disk", create)
	again := v
	again.Key = func(context.Context) (podvm.Secret, error) { return nil, errors.New("asked for the key again") }
	if err := m.Mount(t.Context(), again); err != nil {
		t.Fatal(err)
	}
	m.expect()
	other := v
	other.MountPoint += "2"
	if err := m.Mount(t.Context(), other); !errors.Is(err, tool.ErrBusy) {
		t.Errorf("%v", err)
	}
	m.expect()

	// After a reboot, whatever the caller says of the device.
	for _, encrypted := range []bool{true, false} {
		s := load(m.root)
		if err := s.zpool([]string{"export", "zpool"}); err != nil {
			t.Fatal(err)
		}
		s.save(m.root)
		v.Encrypted = encrypted
		if err := m.Mount(t.Context(), v); err != nil {
			t.Fatal(err)
		}
		m.expect("zpool import -N -d /disk zpool", "zfs load-key zpool/zdataset", "zfs set canmount=noauto zpool/zdataset",
			"zfs set mountpoint=/mnt/a zpool/zdataset", "zfs mount zpool/zdataset")
	}
}

// A call that fails takes back what it did, and nothing else.
func TestTakenBack(t *testing.T) {
	m := newMachine(t)
	v := m.volume()
	m.fail("zfs create", true)
	if err := m.Mount(t.Context(), v); err == nil || podvm.Cause(err) == "" {
		t.Fatal(err)
	}
	m.expect("zpool create -f zpool /disk", create, "zpool destroy zpool")
	if _, err := os.Stat(filepath.Join(m.root, "mnt")); err == nil {
		t.Error("the mount point stays")
	}
	m.fail("zfs create", false)
	if err := m.Mount(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	m.calls()
	s := load(m.root)
	if err := s.zpool([]string{"export", "zpool"}); err != nil {
		t.Fatal(err)
	}
	s.save(m.root)
	m.fail("zfs mount", true)
	if err := m.Mount(t.Context(), v); err == nil {
		t.Fatal("no error")
	}
	got := m.calls()
	if want := []string{"zfs unload-key zpool/zdataset", "zpool export zpool"}; !slices.Equal(got[len(got)-2:], want) {
		t.Errorf("%q", got)
	}
	m.fail("zfs mount", false)

	wrong := v
	wrong.Key = keyOf("wrong passphrase")
	if err := m.Mount(t.Context(), wrong); !errors.Is(err, tool.ErrKey) {
		t.Errorf("%v", err)
	}
	if got := m.calls(); got[len(got)-1] != "zpool export zpool" {
		t.Errorf("%q", got)
	}
	if err := m.Mount(t.Context(), v); err != nil {
		t.Fatal(err)
	}
}

// Killed between pool and dataset, a retry goes on there.
func TestPoolWithoutDataset(t *testing.T) {
	m := newMachine(t)
	v := m.volume()
	s := load(m.root)
	if err := s.zpool([]string{"create", "-f", "zpool", v.Device}); err != nil {
		t.Fatal(err)
	}
	s.save(m.root)
	if err := m.Mount(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	m.expect(create)
}

func TestRefused(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(m *machine, v *Volume)
		want   error
	}{
		"a short key":        {func(_ *machine, v *Volume) { v.Key = keyOf("1234567") }, tool.ErrKey},
		"a long key":         {func(_ *machine, v *Volume) { v.Key = keyOf(strings.Repeat("x", 513)) }, tool.ErrKey},
		"a key of two lines": {func(_ *machine, v *Volume) { v.Key = keyOf("passphrase\n") }, tool.ErrKey},
		"no pool there":      {func(_ *machine, v *Volume) { v.Encrypted = true }, ErrPool},
		"data of others": {func(m *machine, v *Volume) {
			if err := os.WriteFile(v.Device, append([]byte("LUKS\xba\xbe\x00\x01"), make([]byte, 1<<20)...), 0o600); err != nil {
				m.Fatal(err)
			}
		}, tool.ErrForeign},
		"a pool elsewhere": {func(m *machine, v *Volume) {
			s := load(m.root)
			s.Imported["zpool"] = v.Device + "-other"
			s.save(m.root)
		}, tool.ErrBusy},
		"a dataset in clear": {func(m *machine, v *Volume) {
			if err := m.Mount(m.Context(), *v); err != nil {
				m.Fatal(err)
			}
			s := load(m.root)
			s.Disks[v.Device]["zpool"]["zdataset"].Encryption = "off"
			s.Disks[v.Device]["zpool"]["zdataset"].Mounted = false
			s.save(m.root)
		}, ErrPool},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			v := m.volume()
			tt.change(m, &v)
			m.calls()
			err := m.Mount(t.Context(), v)
			if !errors.Is(err, tt.want) || podvm.Cause(err) == "" {
				t.Errorf("%v, want %v", err, tt.want)
			}
			for _, c := range m.calls() {
				if strings.HasPrefix(c, "zfs") {
					t.Errorf("%q was run", c)
				}
			}
		})
	}
	t.Run("not installed", func(t *testing.T) {
		d := New(Config{Host: podvm.Host{Root: t.TempDir(), LookupEnv: func(string) (string, bool) { return "/nowhere", true }}})
		if err := d.Mount(t.Context(), Volume{Pool: "p", Dataset: "d"}); !errors.Is(err, tool.ErrMissing) || !strings.Contains(podvm.Cause(err), "zfsutils-linux") {
			t.Errorf("%v", err)
		}
	})
}

func TestManyAtOnce(t *testing.T) {
	m := newMachine(t)
	v := m.volume()
	var wg sync.WaitGroup
	errs := make([]error, 24)
	for i := range errs {
		wg.Go(func() {
			if i == 13 {
				errs[i] = m.Mount(t.Context(), Volume{Device: v.Device, Pool: "zpool", Dataset: "other", Encrypted: true, Key: v.Key, MountPoint: v.MountPoint})
				return
			}
			errs[i] = m.Mount(t.Context(), v)
		})
	}
	wg.Wait()
	for i, err := range errs {
		if (i == 13) != (err != nil) {
			t.Errorf("call %d: %v", i, err)
		}
	}
}
