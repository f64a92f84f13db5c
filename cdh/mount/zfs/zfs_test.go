package zfs

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/testenv"
	"github.com/sealpod/sealpod/podvm/tool"
)

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
