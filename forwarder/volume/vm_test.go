package volume

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/api/datahub"
	"github.com/sealpod/sealpod/cdh/mount"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/rpc"
)

// The tests in this file run in a virtual machine with virtio disks and a
// device-mapper, in two boots with the same disks, all zero in the beginning.

// realHub opens volumes as the data hub does; only the key comes from nowhere.
type realHub struct{ *mount.Mounter }

func (realHub) Key(context.Context, string) (podvm.Secret, error) {
	return podvm.Secret("the passphrase of the owner"), nil
}

func (h realHub) SecureMount(ctx context.Context, r *datahub.SecureMountRequest) (*datahub.SecureMountResponse, error) {
	return &datahub.SecureMountResponse{}, h.Mount(ctx, mount.Request{VolumeType: r.VolumeType, Options: r.Options, Flags: r.Flags, MountPoint: r.MountPoint})
}

func inVM(t *testing.T) *Manager {
	t.Helper()
	if os.Getenv("SEALPOD_VM") != "1" {
		t.Skip("needs a device-mapper and disks of its own: runs in a virtual machine, by make test-vm")
	}
	// Without udev, which the machine has not, cryptsetup makes its nodes itself.
	t.Setenv("DM_DISABLE_UDEV", "1")
	t.Setenv(AttemptsEnv, "1")
	var h realHub
	var err error
	if h.Mounter, err = mount.New(mount.Config{Keys: h}); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "cdh.sock")
	l, err := rpc.Listen(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = rpc.Serve(ctx, l, slog.Default(), func(s *ttrpc.Server) { datahub.RegisterSecureMountServiceService(s, h) })
	}()
	c := rpc.NewClient(path, time.Second)
	t.Cleanup(func() {
		_ = c.Close()
		stop()
		<-done
	})
	return New(Config{Hub: c})
}

// annotation has LUN 0 to 2, which are vdb to vdd.
const annotation = `{
	"plain":   {"mount_point": "/plain",   "lun": "0", "fs_group": "2000"},
	"old":     {"mount_point": "/old",     "lun": "1", "fs_type": "ext3"},
	"private": {"mount_point": "/private", "lun": "2", "encrypt_type": "luks2", "key_id": "default/volume/1"}
}`

const precious = "this must not be seen by the host, wherever it looks"

func attachAll(t *testing.T, m *Manager) {
	t.Helper()
	volumes, err := Parse(annotation)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range volumes {
		start := time.Now()
		if _, err := m.Attach(t.Context(), v); err != nil {
			t.Fatal(err)
		}
		t.Logf("FIGURE attaching the cloud volume %s: %v", v.Name, time.Since(start).Round(time.Millisecond))
	}
}

func TestVMBeforeRebootCloudVolumes(t *testing.T) {
	m := inVM(t)
	if got := m.cloud(); got != libvirt {
		t.Errorf("the cloud is %s", got)
	}
	attachAll(t, m)
	for _, name := range []string{"plain", "old", "private"} {
		if err := os.WriteFile(filepath.Join(Base, name, "file"), bytes.Repeat([]byte(precious), 100), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	attachAll(t, m) // again
	unix.Sync()
	for device, want := range map[string]bool{"/dev/vdb": true, "/dev/vdc": true, "/dev/vdd": false} {
		f, err := os.Open(device)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(io.LimitReader(f, 64<<20))
		if got := bytes.Contains(b, []byte(precious)); err != nil || got != want {
			t.Errorf("%s shows what was written: %v, %v", device, got, err)
		}
		f.Close()
	}
	// And then the power goes.
}

func TestVMAfterRebootCloudVolumes(t *testing.T) {
	m := inVM(t)
	for range 2 {
		attachAll(t, m)
		for _, name := range []string{"plain", "old", "private"} {
			if b, err := os.ReadFile(filepath.Join(Base, name, "file")); !strings.HasPrefix(string(b), precious) || err != nil {
				t.Errorf("%s: %.60q, %v", name, b, err)
			}
		}
		New(Config{}).DetachAll(t.Context()) // of a forwarder that was started again
		if left, err := os.ReadDir(Base); err != nil || len(left) > 0 {
			t.Errorf("%v, %v", left, err)
		}
		if _, err := os.Stat("/dev/mapper/caa-private"); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the mapping stays: %v", err)
		}
	}
}

// The disk of the encrypted volume, taken for a plain one, is left alone.
func TestVMAfterRebootEncryptedIsNotFormatted(t *testing.T) {
	m := inVM(t)
	v := Volume{Name: "stolen", MountPoint: "/stolen", LUN: 2, FSType: "ext4"}
	if _, err := m.Attach(t.Context(), v); !errors.Is(err, ErrForeign) {
		t.Errorf("%v", err)
	}
}
