package store

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// errNotOnTop says that a mount is covered by another one, or gone.
var errNotOnTop = errors.New("something else is mounted there")

// mountAt returns the mount on target that is seen there, the topmost one, or
// nil when target is no mount point.
func mountAt(target string) (*mountinfo.Info, error) {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, target, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, unix.STATX_MNT_ID, &st)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("examining %s: %w", target, err)
	}
	if st.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return nil, nil
	}
	if st.Mask&unix.STATX_MNT_ID == 0 { // before Linux 5.8
		return nil, fmt.Errorf("examining %s: %w", target, errors.ErrUnsupported)
	}
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) { return uint64(m.ID) != st.Mnt_id, false })
	if err != nil {
		return nil, fmt.Errorf("reading the mount table: %w", err)
	}
	if len(mounts) == 0 {
		return nil, fmt.Errorf("mount %d on %s: %w", st.Mnt_id, target, errNotOnTop)
	}
	return mounts[0], nil
}

// takeOff takes off m and nothing that was mounted over it, now for new users
// and when the last user is gone for good.
func takeOff(m *mountinfo.Info) error {
	top, err := mountAt(m.Mountpoint)
	if err == nil && (top == nil || top.ID != m.ID) {
		err = errNotOnTop
	}
	if err != nil {
		return fmt.Errorf("unmounting %s: %w", m.Mountpoint, err)
	}
	return unmount(m.Mountpoint)
}

// unmount takes off what is mounted on target.
func unmount(target string) error {
	err := unix.Unmount(target, unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EBUSY) {
		err = unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	}
	if err != nil {
		return fmt.Errorf("unmounting %s: %w", target, err)
	}
	return nil
}

// unmountOwn unmounts what an earlier pull put on target, so that a retry does
// not stack a second mount. A mount of someone else is ErrRootfs, one in use is
// EBUSY.
func (s *Store) unmountOwn(target string) error {
	for {
		m, err := mountAt(target)
		if m == nil || err != nil {
			return err
		}
		if !s.owns(m) {
			return occupied("something else is mounted on it")
		}
		s.log.Warn("Replacing the rootfs of an earlier pull", "rootfs", target)
		if err := unix.Unmount(target, unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmounting the earlier rootfs: %w", err)
		}
	}
}

// owns says whether m is an overlay made by this store.
func (s *Store) owns(m *mountinfo.Info) bool {
	id := mountID(m)
	if id == "" {
		return false
	}
	_, err := os.Lstat(s.path("overlay", id))
	return err == nil
}

// mountID returns the name below overlay/ that the options of m carry.
func mountID(m *mountinfo.Info) string {
	if m.FSType != "overlay" {
		return ""
	}
	for _, o := range strings.Split(m.VFSOptions, ",") {
		if rest, ok := strings.CutPrefix(o, "upperdir=../../"); ok {
			id, ok := strings.CutSuffix(rest, "/upper")
			if ok && strings.Trim(id, "abcdefghijklmnopqrstuvwxyz0123456789") == "" {
				return id
			}
		}
	}
	return ""
}
