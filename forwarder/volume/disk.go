package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/tool"
)

// The environment variables of upstream that say how long a disk is looked for:
// attempts times the delay between them, a Go duration. Here it is looked for more
// often at first.
const (
	AttemptsEnv = "CAA_DISK_DETECT_MAX_ATTEMPTS" // 1 to 1000; 15 unless set
	DelayEnv    = "CAA_DISK_DETECT_RETRY_DELAY"  // up to 1m; 2s unless set
)

// nodeTime is how long the node of a disk that was found is waited for.
const nodeTime = time.Minute

var (
	errAbsent = fmt.Errorf("%w yet", ErrDevice) // one that may appear
	errGaveUp = errors.New("waited long enough")
)

// disk is a whole disk.
type disk struct {
	name    string // as in sysfs, such as sdc
	path    string // of the node, as Host has it
	inGuest string // of the node, as the guest has it
}

// diskName is what disks of clouds are called by the kernel. What is not among
// them, such as loop devices, mappings and memory, is no disk of the host's.
var diskName = regexp.MustCompile(`^(sd[a-z]{1,4}|xvd[a-z]{1,2}|vd[a-z]{1,3}|nvme[0-9]{1,4}n[0-9]{1,4})$`)

// find waits for the disk of v, and for its node.
func (m *Manager) find(ctx context.Context, v Volume) (disk, error) {
	cloud := m.cloud()
	if cloud == azure {
		m.rescan(ctx)
	}
	patience, pause := m.patience()
	var d disk
	err := m.wait(ctx, patience, pause, func() (err error) {
		d, err = m.lookup(cloud, v)
		return err
	})
	if err != nil {
		m.log.Warn("Disks of this machine", "names", m.diskNames())
		return disk{}, tool.Explain(fmt.Sprintf("looking for LUN %d (cloud %s)", v.LUN, cloud), err,
			fmt.Sprintf("the disk with LUN %d is not attached to the pod VM", v.LUN))
	}
	if err := m.wait(ctx, nodeTime, pause, func() error { return m.node(d) }); err != nil {
		return disk{}, tool.Explain("waiting for "+d.path, err, fmt.Sprintf("the disk with LUN %d has no device node", v.LUN))
	}
	return d, nil
}

// wait calls f until it finds something, for as long as that may take.
func (m *Manager) wait(ctx context.Context, patience, pause time.Duration, f func() error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, errGaveUp)
	defer cancel()
	return tool.Retry(ctx, pause, func(err error) bool { return errors.Is(err, errAbsent) }, f)
}

// patience is how long a disk is looked for, and the longest pause.
func (m *Manager) patience() (total, pause time.Duration) {
	attempts, pause := 15, 2*time.Second
	if s := m.host.Getenv(AttemptsEnv); s != "" {
		if n, err := strconv.Atoi(s); err == nil && n > 0 && n <= 1000 {
			attempts = n
		} else {
			m.log.Warn("A setting is not usable", "name", AttemptsEnv, "value", podvm.Printable(s, 64))
		}
	}
	if s := m.host.Getenv(DelayEnv); s != "" {
		if d, err := time.ParseDuration(s); err == nil && d > 0 && d <= time.Minute {
			pause = d
		} else {
			m.log.Warn("A setting is not usable", "name", DelayEnv, "value", podvm.Printable(s, 64))
		}
	}
	return time.Duration(attempts-1) * pause, pause
}

// lookup finds the disk of v as the cloud has it, and else by its address on the
// SCSI bus.
func (m *Manager) lookup(cloud string, v Volume) (disk, error) {
	var absent error
	if by := map[string]func(Volume) (disk, error){azure: m.azure, aws: m.aws, libvirt: m.libvirt}[cloud]; by != nil {
		d, err := by(v)
		if err == nil || !errors.Is(err, errAbsent) {
			return d, err
		}
		absent = err
	}
	d, err := m.scsi(v.LUN)
	if err != nil {
		err = errors.Join(absent, err)
	}
	return d, err
}

// resolve returns the disk a link in /dev leads to. One that leads nowhere, or to
// something that is not a whole disk, is errAbsent.
func (m *Manager) resolve(link string) (disk, error) {
	real, err := filepath.EvalSymlinks(m.host.Path(link))
	if err != nil {
		return disk{}, fmt.Errorf("%w: %w", errAbsent, err)
	}
	if filepath.Dir(real) != tool.Real(m.host.Path("/dev")) {
		return disk{}, fmt.Errorf("%w: %s leads to %s", errAbsent, podvm.Printable(link, 256), podvm.Printable(real, 256))
	}
	return m.named(filepath.Base(real))
}

// named returns the disk with this name of the kernel.
func (m *Manager) named(name string) (disk, error) {
	if !diskName.MatchString(name) {
		return disk{}, fmt.Errorf("%w: %q is not the name of a disk", errAbsent, podvm.Printable(name, 64))
	}
	if _, err := os.Stat(m.sys(name)); err != nil { // partitions are not there
		return disk{}, fmt.Errorf("%w: %w", errAbsent, err)
	}
	return disk{name, m.host.Path("/dev/" + name), "/dev/" + name}, nil
}

// node checks that the node of d is that of the disk in sysfs.
func (m *Manager) node(d disk) error {
	var st unix.Stat_t
	if err := unix.Lstat(d.path, &st); err != nil {
		return fmt.Errorf("%w: %s: %w", errAbsent, d.path, err)
	}
	number, err := m.number(d.name)
	if err != nil {
		return fmt.Errorf("%w: %w", errAbsent, err)
	}
	if got := fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev)); st.Mode&unix.S_IFMT != unix.S_IFBLK || got != number {
		return fmt.Errorf("%w: %s is not the block device %s", ErrDevice, d.path, number)
	}
	return nil
}

// rescan has udev make its links. Without udev there is only what is there.
func (m *Manager) rescan(ctx context.Context) {
	_, err := m.run.Run(ctx, nil, "udevadm", "trigger", "--subsystem-match=block")
	if err == nil {
		_, err = m.run.Run(ctx, nil, "udevadm", "settle", "--timeout=5")
	}
	if err != nil {
		m.log.Warn("The disks were not scanned again", "err", err)
	}
}
