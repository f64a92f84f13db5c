package volume

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"

	"github.com/sealpod/sealpod/podvm"
)

// sys is where sysfs has a disk.
func (m *Manager) sys(name string) string { return m.host.Path("/sys/block/" + name) }

// diskNames lists the disks of this machine, sorted.
func (m *Manager) diskNames() []string {
	return slices.DeleteFunc(m.names("/sys/block", ""), func(name string) bool { return !diskName.MatchString(name) })
}

// scsi finds the disk with a LUN by its address on the SCSI bus. Hosts above 0,
// where clouds attach data disks, come first; on host 0, which has the disks of the
// system, it must be one without partitions. None may be mounted.
func (m *Manager) scsi(lun int) (disk, error) {
	var data, system []disk
	for _, name := range m.diskNames() {
		host, l, ok := m.address(name)
		if !ok || l != lun {
			continue
		}
		d, err := m.named(name)
		if err != nil || m.isMounted(name) {
			continue
		}
		if host > 0 {
			data = append(data, d)
		} else if len(m.partitions(name)) == 0 {
			system = append(system, d)
		}
	}
	if len(data) > 0 {
		return one(data, "by SCSI address")
	}
	return one(system, "by SCSI address")
}

// address returns the host and the LUN of a disk's address, HOST:CHANNEL:TARGET:LUN.
// There is none but for SCSI.
func (m *Manager) address(name string) (host, lun int, ok bool) {
	real, err := filepath.EvalSymlinks(filepath.Join(m.sys(name), "device"))
	if err != nil {
		return 0, 0, false
	}
	for part := range strings.SplitSeq(real, "/") {
		f := strings.Split(part, ":")
		if len(f) != 4 {
			continue
		}
		var n [4]int
		var errs [4]error
		for i := range f {
			n[i], errs[i] = decimal(f[i], 1<<31-1)
		}
		if errors.Join(errs[:]...) == nil {
			return n[0], n[3], true
		}
	}
	return 0, 0, false
}

// number returns the device number of a disk or, as DISK/PARTITION, of a partition.
func (m *Manager) number(name string) (string, error) {
	raw, err := podvm.ReadFileMax(filepath.Join(m.sys(name), "dev"), 64)
	if err != nil {
		return "", err
	}
	number := strings.TrimSpace(string(raw))
	major, minor, ok := strings.Cut(number, ":")
	_, err1 := strconv.ParseUint(major, 10, 32)
	_, err2 := strconv.ParseUint(minor, 10, 32)
	if !ok || err1 != nil || err2 != nil {
		return "", fmt.Errorf("%s has number %q", name, podvm.Printable(number, 32))
	}
	return number, nil
}

// partitions lists those of a disk.
func (m *Manager) partitions(name string) []string { return m.names("/sys/block/"+name, name) }

// isMounted reports whether a disk or one of its partitions is mounted somewhere.
// A mount table that cannot be read has everything mounted.
func (m *Manager) isMounted(name string) bool {
	nodes, numbers := []string{m.host.Path("/dev/" + name)}, []string{}
	of := []string{name}
	for _, p := range m.partitions(name) {
		nodes, of = append(nodes, m.host.Path("/dev/"+p)), append(of, name+"/"+p)
	}
	for _, o := range of {
		if n, err := m.number(o); err == nil {
			numbers = append(numbers, n)
		}
	}
	mounts, err := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) {
		used := slices.Contains(nodes, i.Source) || slices.Contains(numbers, fmt.Sprintf("%d:%d", i.Major, i.Minor))
		return !used, used
	})
	return err != nil || len(mounts) > 0
}

// inUse says what a disk is used for, "" for nothing.
func (m *Manager) inUse(name string) string {
	holders, err := os.ReadDir(filepath.Join(m.sys(name), "holders"))
	switch {
	case m.isMounted(name):
		return "is mounted"
	case len(m.partitions(name)) > 0:
		return "has partitions"
	case len(holders) > 0:
		return "is part of " + podvm.Printable(holders[0].Name(), 64)
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return "cannot be looked up: " + err.Error()
	}
	return ""
}
