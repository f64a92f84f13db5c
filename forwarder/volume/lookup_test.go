package volume

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/sealpod/sealpod/podvm"
)

// A tree has disks without anything on them: their nodes are files.
func (m *machine) files(names ...string) {
	m.Helper()
	for i, name := range names {
		m.write("", "dev/"+name)
		if _, err := os.Stat(m.path("sys/block", name)); err != nil {
			m.sysfs(name, "250:"+string(rune('0'+i)), "")
		}
	}
}

func TestLookup(t *testing.T) {
	disks := func(names ...string) func(*machine) { return func(m *machine) { m.files(names...) } }
	onAzure := func(m *machine) { m.write(azureChassis+"\n", "sys/class/dmi/id/chassis_asset_tag") }
	scsi := func(name, address string) func(*machine) {
		return func(m *machine) { m.sysfs(name, "8:0", address); m.files(name) }
	}
	link := func(target, path string) func(*machine) { return func(m *machine) { m.link(target, path) } }
	const ebs = "dev/disk/by-id/nvme-Amazon_Elastic_Block_Store_"
	for name, c := range map[string]struct {
		tree  []func(*machine)
		v     Volume
		cloud string
		want  string // the disk, or what the error says
	}{
		"azure, NVMe": {
			[]func(*machine){disks("nvme0n1", "nvme0n2"), link("../../../../nvme0n2", "dev/disk/azure/data/by-lun/3")},
			Volume{LUN: 3}, azure, "nvme0n2",
		},
		"azure, SCSI": {
			[]func(*machine){disks("sda", "sdc"), link("../../../sdc", "dev/disk/azure/scsi1/lun0")},
			Volume{}, azure, "sdc",
		},
		"azure, by path, not the disks of the system": {
			[]func(*machine){
				onAzure, scsi("sda", "0:0:0:1"), scsi("sdc", "1:0:0:1"),
				link("../../sda", "dev/disk/by-path/acpi-VMBUS:00-vmbus-1-lun-1"), link("../../sdc", "dev/disk/by-path/acpi-VMBUS:00-vmbus-2-lun-1"),
				link("../../sdc1", "dev/disk/by-path/acpi-VMBUS:00-vmbus-2-lun-1-part1"),
			},
			Volume{LUN: 1}, azure, "sdc",
		},
		"azure, no links yet": {
			[]func(*machine){onAzure, scsi("sda", "0:0:0:1"), scsi("sdd", "1:0:0:1"), scsi("sde", "1:0:0:11")},
			Volume{LUN: 1}, azure, "sdd",
		},
		"azure, a link out of /dev": {
			[]func(*machine){disks("sda"), link("../../../../etc/passwd", "dev/disk/azure/scsi1/lun0")},
			Volume{}, azure, "none by SCSI address",
		},
		"azure, a link to a partition": {
			[]func(*machine){disks("sda"), func(m *machine) { m.write("", "dev/sda1") }, link("../../../sda1", "dev/disk/azure/scsi1/lun0")},
			Volume{}, azure, "none by SCSI address",
		},
		"azure, a link to a mapping": {
			[]func(*machine){disks("dm-0"), link("../../../dm-0", "dev/disk/azure/scsi1/lun0")},
			Volume{}, azure, "none by SCSI address",
		},
		"aws, by volume": {
			[]func(*machine){
				disks("nvme0n1", "nvme1n1", "nvme2n1"), link("../../nvme0n1", ebs+"vol0aaa"), link("../../nvme1n1p1", ebs+"vol0bbb-part1"),
				link("../../nvme1n1", ebs+"vol0bbb"), link("../../nvme1n1", ebs+"vol0bbb_1"), link("../../nvme2n1", ebs+"vol0ccc"),
			},
			Volume{DiskID: "vol-0bbb"}, aws, "nvme1n1",
		},
		"aws, another volume": {
			[]func(*machine){disks("nvme0n1"), link("../../nvme0n1", ebs+"vol0aaa")},
			Volume{DiskID: "vol-0bbb"}, aws, "none by volume ID",
		},
		"aws, part of the names of several": {
			[]func(*machine){disks("nvme0n1", "nvme1n1"), link("../../nvme0n1", ebs+"vol0aaa"), link("../../nvme1n1", ebs+"vol0bbb")},
			Volume{DiskID: "vol-0"}, aws, "nvme0n1, nvme1n1 fit",
		},
		"aws, the name of the maker": {
			[]func(*machine){disks("nvme0n1"), link("../../nvme0n1", ebs+"vol0aaa")},
			Volume{DiskID: "Amazon"}, aws, "none by volume ID",
		},
		"aws, by index": {
			[]func(*machine){
				disks("nvme0n1", "nvme1n1"), link("../../nvme1n1", ebs+"vol0aaa"), link("../../nvme1n1", ebs+"vol0aaa_1"), link("../../nvme0n1", ebs+"vol0bbb"),
			},
			Volume{LUN: 1}, aws, "nvme0n1",
		},
		"aws, no such index": {
			[]func(*machine){disks("nvme0n1"), link("../../nvme0n1", ebs+"vol0aaa")},
			Volume{LUN: 1}, aws, "1 by index",
		},
		"libvirt":                       {[]func(*machine){disks("vda", "vdb", "vdc")}, Volume{LUN: 1}, libvirt, "vdc"},
		"libvirt, the last":             {[]func(*machine){disks("vda", "vdz")}, Volume{LUN: 24}, libvirt, "vdz"},
		"libvirt, beyond":               {[]func(*machine){disks("vda", "vdaa")}, Volume{LUN: 25}, libvirt, "LUN 0 to 24"},
		"libvirt, never the first":      {[]func(*machine){disks("vda")}, Volume{}, libvirt, "none by SCSI address"},
		"libvirt, a disk on a SCSI bus": {[]func(*machine){disks("vda"), scsi("sda", "2:0:0:0")}, Volume{}, libvirt, "sda"},
		"anywhere, host 0 last": {
			[]func(*machine){scsi("sda", "0:0:0:2"), scsi("sdb", "3:0:0:2")}, Volume{LUN: 2}, generic, "sdb",
		},
		"anywhere, host 0": {
			[]func(*machine){
				scsi("sda", "0:0:0:2"), scsi("sdb", "0:0:1:2"), func(m *machine) { m.write("8:1\n", "sys/block/sda/sda1/dev") },
			}, Volume{LUN: 2}, generic, "sdb",
		},
		"anywhere, several":           {[]func(*machine){scsi("sda", "1:0:0:2"), scsi("sdb", "2:0:0:2")}, Volume{LUN: 2}, generic, "sda, sdb fit"},
		"anywhere, strange addresses": {[]func(*machine){scsi("sda", "1:0:0:-2"), scsi("sdb", "1:0:0:02"), scsi("sdc", "1:0:0:2:0")}, Volume{LUN: 2}, generic, "none by SCSI address"},
		"nothing there":               {nil, Volume{}, generic, "none by SCSI address"},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			for _, f := range c.tree {
				f(m)
			}
			mgr := m.manager(nil)
			if got := mgr.cloud(); got != c.cloud {
				t.Errorf("the cloud is %s, want %s", got, c.cloud)
			}
			d, err := mgr.lookup(c.cloud, c.v)
			if err == nil && d != (disk{c.want, m.path("dev", c.want), "/dev/" + c.want}) {
				t.Errorf("%+v, want %s", d, c.want)
			}
			if err != nil && (!errors.Is(err, ErrDevice) || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("%v, want %s", err, c.want)
			}
		})
	}
}

// A disk that is mounted is nobody's data disk. The test's own disk must be there
// under a name of this machine.
func TestLookupOfAMountedDisk(t *testing.T) {
	m := newDiskMachine(t)
	m.disk("sda", "1:0:0:0", 16)
	m.disk("sdb", "2:0:0:0", 16)
	mgr := m.manager(nil)
	if _, err := mgr.scsi(0); err == nil || errors.Is(err, errAbsent) {
		t.Fatalf("two that fit: %v", err)
	}
	m.env[AttemptsEnv] = "1"
	m.link("../../../sda", "dev/disk/azure/scsi1/lun7")
	if _, err := mgr.Attach(t.Context(), Volume{Name: "a", MountPoint: "/a", LUN: 7, FSType: "ext4"}); err != nil {
		t.Fatal(err)
	}
	if d, err := mgr.scsi(0); err != nil || d.name != "sdb" {
		t.Errorf("%+v, %v", d, err)
	}
	if m.ran("udevadm", "trigger --subsystem-match=block") != 1 || m.ran("udevadm", "settle --timeout=5") != 1 {
		t.Error("udev was not asked for its links")
	}
}

func TestADiskThatComesLater(t *testing.T) {
	m := newMachine(t)
	m.env[AttemptsEnv] = "1000"
	m.files("vda")
	mgr := m.manager(nil)
	done := make(chan error, 1)
	go func() {
		d, err := mgr.find(t.Context(), Volume{LUN: 2})
		if err == nil || d.name == "vdd" {
			err = errors.New("a file was taken for a disk")
		}
		done <- err
	}()
	select {
	case err := <-done:
		t.Fatalf("not waited for: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	m.files("vdd")
	if err := <-done; !errors.Is(err, ErrDevice) || !strings.Contains(err.Error(), "is not the block device") {
		t.Error(err)
	}
}

func TestADiskThatNeverComes(t *testing.T) {
	m := newMachine(t)
	m.env[AttemptsEnv], m.env[DelayEnv] = "3", "5ms"
	_, err := m.manager(nil).Attach(t.Context(), Volume{Name: "a", LUN: 4, FSType: "ext4"})
	if !errors.Is(err, ErrDevice) || errors.Is(err, context.DeadlineExceeded) || podvm.Cause(err) != "the disk with LUN 4 is not attached to the pod VM" {
		t.Errorf("%v", err)
	}
	m.nothingMounted()

	m.env[AttemptsEnv], m.env[DelayEnv] = "1000", "1m"
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := m.manager(nil).Attach(ctx, Volume{Name: "a", FSType: "ext4"}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	m.nothingMounted()
}

func TestSettingsThatAreNotUsable(t *testing.T) {
	m := newMachine(t)
	delete(m.env, AttemptsEnv)
	for _, c := range []struct {
		attempts, delay string
		total, pause    time.Duration
		warnings        int
	}{
		{"", "", 28 * time.Second, 2 * time.Second, 0},
		{"4", "10s", 30 * time.Second, 10 * time.Second, 0},
		{"0", "-1s", 28 * time.Second, 2 * time.Second, 2},
		{"many", "2", 28 * time.Second, 2 * time.Second, 2},
		{"1001", "61s", 28 * time.Second, 2 * time.Second, 2},
	} {
		m.env[AttemptsEnv], m.env[DelayEnv] = c.attempts, c.delay
		before := strings.Count(m.log.String(), "not usable")
		total, pause := m.manager(nil).patience()
		if n := strings.Count(m.log.String(), "not usable") - before; total != c.total || pause != c.pause || n != c.warnings {
			t.Errorf("%+v: %v, %v, %d warnings", c, total, pause, n)
		}
	}
}
