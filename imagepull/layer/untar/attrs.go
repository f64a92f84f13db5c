package untar

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	maxXattrs = 64 << 20  // bytes of names and values of attributes in a layer
	maxNoted  = 128 << 20 // bytes remembered about directories
	xattrKey  = "SCHILY.xattr."
	ownPrefix = "trusted.sealpod."
)

// attrs is what an entry says about a file besides its content.
type attrs struct {
	uid, gid int
	mode     uint32 // permission, setuid, setgid and sticky bits
	mtime    unix.Timespec
	xattrs   []xattr
}

type xattr struct{ name, value string }

type kind int

const (
	kindFile kind = iota
	kindSymlink
	kindSpecial
)

// attrsOf checks and filters what hdr says. Attributes of overlayfs itself and
// of this package are dropped: a layer must not tell them to look elsewhere.
func (x *extractor) attrsOf(hdr *tar.Header) (attrs, error) {
	// 2^32-1 means "leave as it is" to chown(2).
	if uint64(hdr.Uid) >= 1<<32-1 || uint64(hdr.Gid) >= 1<<32-1 {
		return attrs{}, fmt.Errorf("%w: owner %d:%d", ErrArchive, hdr.Uid, hdr.Gid)
	}
	a := attrs{
		uid: hdr.Uid, gid: hdr.Gid, mode: uint32(hdr.Mode) & 0o7777,
		mtime: unix.Timespec{Sec: hdr.ModTime.Unix(), Nsec: int64(hdr.ModTime.Nanosecond())},
	}
	for key, value := range hdr.PAXRecords {
		name, ok := strings.CutPrefix(key, xattrKey)
		if !ok || strings.HasPrefix(name, trustedPrefix) || strings.HasPrefix(name, userPrefix) || strings.HasPrefix(name, ownPrefix) {
			continue
		}
		if name == "" || len(name) > maxName {
			return attrs{}, fmt.Errorf("%w: attribute name of %d bytes", ErrArchive, len(name))
		}
		if x.xattrs += len(name) + len(value); x.xattrs > maxXattrs {
			return attrs{}, fmt.Errorf("%w: more than %d bytes of attributes", ErrTooLarge, maxXattrs)
		}
		a.xattrs = append(a.xattrs, xattr{name, value})
	}
	return a, nil
}

// setter gives files their attributes.
type setter struct {
	mode    Mode
	skipped int // attributes not allowed by mode or file system
}

// set gives base in d, which is no file or directory, its attributes. The order
// matters: chown clears setuid and security.capability, so both come after it;
// times are last.
func (s *setter) set(d dir, base string, k kind, a attrs) error {
	if s.mode == Overlay {
		if err := unix.Fchownat(d.fd, base, a.uid, a.gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("setting the owner: %w", err)
		}
	} else {
		a.mode |= 0o400
	}
	err := s.setXattrs(k, a.xattrs, func(name string, value []byte) error {
		return unix.Lsetxattr(d.at(base), name, value, 0)
	})
	if err != nil {
		return err
	}
	if k != kindSymlink {
		// base was made a moment ago and is no symlink to follow.
		if err := unix.Fchmodat(d.fd, base, a.mode, 0); err != nil {
			return fmt.Errorf("setting the mode: %w", err)
		}
	}
	times := []unix.Timespec{a.mtime, a.mtime}
	if err := unix.UtimesNanoAt(d.fd, base, times, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("setting the times: %w", err)
	}
	return nil
}

// setOpen gives an open file or directory its attributes, in the order of set.
// Without root user.* needs the write permission that mode may take away.
func (s *setter) setOpen(fd int, a attrs) error {
	if s.mode == Overlay {
		if err := unix.Fchown(fd, a.uid, a.gid); err != nil {
			return fmt.Errorf("setting the owner: %w", err)
		}
	}
	err := s.setXattrs(kindFile, a.xattrs, func(name string, value []byte) error {
		return unix.Fsetxattr(fd, name, value, 0)
	})
	if err != nil {
		return err
	}
	if err := unix.Fchmod(fd, a.mode); err != nil {
		return fmt.Errorf("setting the mode: %w", err)
	}
	times := []unix.Timespec{a.mtime, a.mtime}
	if err := unix.UtimesNanoAt(fd, "", times, unix.AT_EMPTY_PATH); err != nil {
		return fmt.Errorf("setting the times: %w", err)
	}
	return nil
}

func (s *setter) setXattrs(k kind, list []xattr, set func(string, []byte) error) error {
	for _, a := range list {
		user := strings.HasPrefix(a.name, "user.")
		if s.mode == Plain && !user {
			s.skipped++
			continue
		}
		err := set(a.name, []byte(a.value))
		switch {
		case err == nil:
		case user && (errors.Is(err, unix.ENOTSUP) || (k != kindFile && errors.Is(err, unix.EPERM))):
			// The file system has none, or (EPERM) they exist for files
			// and directories only.
			s.skipped++
		default:
			return fmt.Errorf("setting attribute %.64q: %w", a.name, err)
		}
	}
	return nil
}

// noteDir remembers what to set on a directory when nothing more is created in
// it: a file created later changes its time, an inherited ACL its mode, and
// without root a read-only directory takes no files. The last entry wins.
func (x *extractor) noteDir(path string, a attrs) error {
	size := len(path)
	for _, xa := range a.xattrs {
		size += len(xa.name) + len(xa.value)
	}
	x.dirs[path] = a
	delete(x.implied, path)
	return x.note(size)
}

// finishDirs sets attributes of directories, in any order: no mode set here
// keeps their owner in Plain mode, or root, from opening those below.
func (x *extractor) finishDirs(ctx context.Context) error {
	for path, a := range x.dirs {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if x.files.stuck.Load() {
			return errStuck
		}
		if err := x.finishDir(path, a); err != nil {
			return failed(fmt.Sprintf("finishing directory %.256q", path), err)
		}
	}
	return x.finishImplied(ctx)
}

// notDescribed is the modification time of a directory that no entry describes.
// No tar in use carries it, and a mark in the tree needs no record beside it.
var notDescribed = unix.Timespec{Sec: 0, Nsec: 1}

// ImpliedXattr is on the root of a tree, in Overlay mode, in which directories
// other than the root are not described.
const ImpliedXattr = "trusted.sealpod.implied"

// IsDescribed reports whether st, the state of a directory Extract made, is what
// an entry of the tar says of it; otherwise it means nothing.
func IsDescribed(st unix.Stat_t) bool { return st.Mtim != notDescribed }

// finishImplied marks the directories no entry describes: what they are is for
// the layers below to say.
func (x *extractor) finishImplied(ctx context.Context) error {
	marked := false
	for path := range x.implied {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		fd, err := x.openDir(path)
		if err == nil {
			err = errors.Join(unix.UtimesNanoAt(fd, ".", []unix.Timespec{notDescribed, notDescribed}, 0), unix.Close(fd))
			marked = marked || path != ""
		} else if isGone(err) {
			err = nil
		}
		if err != nil {
			return failed(fmt.Sprintf("marking directory %.256q", path), err)
		}
	}
	if x.mode == Plain || !marked {
		return nil
	}
	if err := unix.Setxattr(fmt.Sprintf("/proc/self/fd/%d", x.root), ImpliedXattr, []byte("y"), 0); err != nil {
		return fmt.Errorf("setting %s: %w", ImpliedXattr, err)
	}
	return nil
}

// openDir opens a directory of the tree that was made earlier; isGone tells
// from its error that a later entry replaced it.
func (x *extractor) openDir(path string) (fd int, err error) {
	if path == "" {
		path = "."
	}
	return x.openat2(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC,
		unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS|unix.RESOLVE_NO_XDEV)
}

func isGone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)
}

func (x *extractor) finishDir(path string, a attrs) error {
	fd, err := x.openDir(path)
	if isGone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if x.mode == Plain {
		a.mode |= 0o700
	}
	x.files.close(piece{fd: fd, attrs: &a, name: path})
	return nil
}
