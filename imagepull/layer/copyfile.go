package layer

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// openDir opens a directory below the descriptor at, not through a symlink.
func openDir(at int, name string) (*os.File, error) {
	fd, err := unix.Openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening directory %.256q: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// eachName calls f with every name in d, from where d stands.
func eachName(d *os.File, f func(string) error) error {
	for {
		names, err := d.Readdirnames(512)
		for _, name := range names {
			if err := f(name); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// removeAt removes name from d, with all below it, if it is there.
func removeAt(d *os.File, name string) error {
	err := unix.Unlinkat(int(d.Fd()), name, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if !errors.Is(err, unix.EISDIR) {
		return fmt.Errorf("removing %.128q: %w", name, err)
	}
	root, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", d.Fd()))
	if err != nil {
		return err
	}
	return errors.Join(root.RemoveAll(name), root.Close())
}

// copyFile copies the regular file name, which to does not have.
func copyFile(from, to *os.File, name string, st *unix.Stat_t) (err error) {
	in, err := unix.Openat(int(from.Fd()), name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening: %w", err)
	}
	src := os.NewFile(uintptr(in), name)
	defer func() { err = errors.Join(err, src.Close()) }()
	out, err := unix.Openat(int(to.Fd()), name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("creating: %w", err)
	}
	dst := os.NewFile(uintptr(out), name)
	defer func() { err = errors.Join(err, dst.Close()) }()
	if unix.IoctlFileClone(out, in) != nil {
		if err := copyData(dst, src, st.Size); err != nil {
			return fmt.Errorf("copying: %w", err)
		}
	}
	// Before the mode, which may take away the write permission it needs.
	if err := copyXattrs(src, dst); err != nil {
		return err
	}
	if err := unix.Fchmod(out, st.Mode&0o7777); err != nil {
		return err
	}
	return unix.UtimesNanoAt(int(to.Fd()), name, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
}

// copyData copies what is not a hole. io.Copy between files is
// copy_file_range(2) where the kernel has it.
func copyData(dst, src *os.File, size int64) error {
	for at := int64(0); at < size; {
		data, err := unix.Seek(int(src.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // only a hole is left
		}
		if err != nil {
			return err
		}
		hole, err := unix.Seek(int(src.Fd()), data, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		if _, err := src.Seek(data, io.SeekStart); err != nil {
			return err
		}
		if _, err := dst.Seek(data, io.SeekStart); err != nil {
			return err
		}
		if _, err := io.CopyN(dst, src, hole-data); err != nil {
			return err
		}
		at = hole
	}
	return dst.Truncate(size)
}

// copyXattrs makes the user.* attributes of dst those of src.
func copyXattrs(src, dst *os.File) error {
	old, err := userXattrs(dst)
	if err != nil {
		return err
	}
	names, err := userXattrs(src)
	if err != nil {
		return err
	}
	for _, name := range old {
		if err := unix.Fremovexattr(int(dst.Fd()), name); err != nil {
			return fmt.Errorf("removing attribute %.64q: %w", name, err)
		}
	}
	var value [64 << 10]byte // XATTR_SIZE_MAX
	for _, name := range names {
		n, err := unix.Fgetxattr(int(src.Fd()), name, value[:])
		if err == nil {
			err = unix.Fsetxattr(int(dst.Fd()), name, value[:n], 0)
		}
		if err != nil {
			return fmt.Errorf("copying attribute %.64q: %w", name, err)
		}
	}
	return nil
}

func userXattrs(f *os.File) ([]string, error) {
	n, err := unix.Flistxattr(int(f.Fd()), nil)
	if errors.Is(err, unix.ENOTSUP) || (err == nil && n == 0) {
		return nil, nil
	}
	list := make([]byte, max(n, 0))
	if err == nil {
		n, err = unix.Flistxattr(int(f.Fd()), list)
	}
	if err != nil {
		return nil, fmt.Errorf("listing attributes: %w", err)
	}
	var names []string
	for name := range strings.SplitSeq(string(list[:n]), "\x00") {
		if strings.HasPrefix(name, "user.") {
			names = append(names, name)
		}
	}
	return names, nil
}
