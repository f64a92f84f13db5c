package untar

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Overlayfs format: what a lower directory hides, and that it hides all.
// Source: Linux Documentation/filesystems/overlayfs.rst, "whiteouts and opaque
// directories".
const (
	opaqueXattr   = "trusted.overlay.opaque"
	trustedPrefix = "trusted.overlay."
	userPrefix    = "user.overlay." // the same for mounts with userxattr
)

// isWhiteout says whether st is a character device 0:0. One that the tar
// brought as a device counts too: overlayfs could not tell it apart.
func isWhiteout(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}

// setOpaque makes the directory base in d hide the lower directories' content.
func setOpaque(d dir, base string) error {
	if err := unix.Lsetxattr(d.at(base), opaqueXattr, []byte("y"), 0); err != nil {
		return fmt.Errorf("setting %s: %w", opaqueXattr, err)
	}
	return nil
}

// mark records a whiteout. base is the marker's own name.
func (x *extractor) mark(d dir, base string, m marker, hidden string) error {
	if x.mode == Plain {
		fd := -1
		err := x.place(d, base, func() (err error) {
			fd, err = unix.Openat(d.fd, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
			return err
		})
		if err != nil {
			return err
		}
		return unix.Close(fd)
	}
	if m == opaque {
		return setOpaque(d, ".")
	}
	err := unix.Mknodat(d.fd, hidden, unix.S_IFCHR, 0)
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	// The layer has the name as well, which then stays. As a directory it
	// must not show what lower layers have below it.
	var st unix.Stat_t
	if err := unix.Fstatat(d.fd, hidden, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return setOpaque(d, hidden)
	}
	return nil
}
