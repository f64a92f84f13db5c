package volume

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/sealpod/sealpod/podvm"
)

// Clouds that number disks in a way of their own.
const (
	azure   = "azure"
	aws     = "aws"
	libvirt = "libvirt"
	generic = "generic"
)

// azureChassis is the asset tag of every machine in Azure, and of no other on
// Hyper-V.
// Source: cloud-api-adaptor
// src/cloud-api-adaptor/pkg/forwarder/interceptor/interceptor.go at fbdde756.
const azureChassis = "7783-7084-3265-9085-8269-3286-77"

const (
	byID      = "/dev/disk/by-id"
	byPath    = "/dev/disk/by-path"
	awsPrefix = "nvme-Amazon_Elastic_Block_Store_"
)

// cloud says whose machine this is, by its disks.
func (m *Manager) cloud() string {
	if _, err := os.Stat(m.host.Path("/dev/disk/azure")); err == nil {
		return azure
	}
	if tag, err := podvm.ReadFileMax(m.host.Path("/sys/class/dmi/id/chassis_asset_tag"), 4096); err == nil && strings.TrimSpace(string(tag)) == azureChassis {
		return azure
	}
	if len(m.names(byID, awsPrefix)) > 0 {
		return aws
	}
	if slices.ContainsFunc(m.names("/dev", "vd"), func(name string) bool { return len(name) == 3 && diskName.MatchString(name) }) {
		return libvirt
	}
	return generic
}

// names lists what begins with prefix in a directory, sorted; nothing if there is
// no such directory.
func (m *Manager) names(dir, prefix string) []string {
	entries, _ := os.ReadDir(m.host.Path(dir))
	var names []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) {
			names = append(names, e.Name())
		}
	}
	return names
}

// azure finds a data disk by the links of Azure's udev rules for NVMe and for
// SCSI, and else by the path on the bus; host 0 has the disks of the system.
func (m *Manager) azure(v Volume) (disk, error) {
	for _, link := range []string{fmt.Sprintf("/dev/disk/azure/data/by-lun/%d", v.LUN), fmt.Sprintf("/dev/disk/azure/scsi1/lun%d", v.LUN)} {
		if d, err := m.resolve(link); err == nil {
			return d, nil
		}
	}
	var found []disk
	for _, name := range m.names(byPath, "") {
		if !strings.Contains(name, "vmbus") || !strings.HasSuffix(name, fmt.Sprintf("-lun-%d", v.LUN)) {
			continue
		}
		if d, err := m.resolve(byPath + "/" + name); err == nil {
			if host, _, ok := m.address(d.name); !ok || host != 0 {
				found = append(found, d)
			}
		}
	}
	return one(found, "by path")
}

// aws finds a volume by its identifier, which is part of a link. Only where none
// is known its place among the links counts.
func (m *Manager) aws(v Volume) (disk, error) {
	id := strings.ReplaceAll(v.DiskID, "-", "")
	var found []disk
	for _, name := range m.names(byID, awsPrefix) {
		if strings.Contains(name, "-part") || !strings.Contains(strings.TrimPrefix(name, awsPrefix), id) {
			continue
		}
		if d, err := m.resolve(filepath.Join(byID, name)); err == nil && !slices.Contains(found, d) {
			found = append(found, d)
		}
	}
	if id != "" {
		return one(found, "by volume ID")
	}
	if v.LUN >= len(found) {
		return disk{}, fmt.Errorf("%w: %d by index", errAbsent, len(found))
	}
	return found[v.LUN], nil
}

// libvirt finds a virtio disk by its letter: LUN 0 is vdb.
func (m *Manager) libvirt(v Volume) (disk, error) {
	if v.LUN > 'z'-'b' {
		return disk{}, fmt.Errorf("%w: virtio disks have LUN 0 to 24", errAbsent)
	}
	return m.resolve("/dev/vd" + string(rune('b'+v.LUN)))
}

// one returns the only disk in found; of several none, since a wrong one may be
// overwritten.
func one(found []disk, how string) (disk, error) {
	slices.SortFunc(found, func(a, b disk) int { return strings.Compare(a.name, b.name) })
	found = slices.Compact(found)
	switch len(found) {
	case 0:
		return disk{}, fmt.Errorf("%w: none %s", errAbsent, how)
	case 1:
		return found[0], nil
	}
	names := make([]string, len(found))
	for i, d := range found {
		names[i] = d.name
	}
	return disk{}, podvm.Explain(errors.Join(ErrDevice, fmt.Errorf("%s fit %s", strings.Join(names, ", "), how)),
		"several disks fit the cloud volume, so none is taken")
}
