package untar

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"golang.org/x/sys/unix"
)

// maxLink is the longest symlink target the kernel takes.
const maxLink = 4095

// entry unpacks one entry.
func (x *extractor) entry(ctx context.Context, data io.Reader, hdr *tar.Header) error {
	if hdr.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name, err := clean(hdr.Name)
	if err != nil {
		return err
	}
	dirName, base := split(name)
	mark, hidden, err := markerOf(dirName, base)
	if err != nil || mark == ignored {
		return err
	}
	a, err := x.attrsOf(hdr)
	if err != nil {
		return err
	}
	if base == "" {
		if hdr.Typeflag != tar.TypeDir {
			return fmt.Errorf("%w: no name", ErrArchive)
		}
		return x.noteDir("", a)
	}
	d, err := x.parent(dirName)
	if err != nil {
		return failed("opening the parent", err)
	}
	if mark != noMarker {
		return failed("hiding", x.mark(d, base, mark, hidden))
	}
	switch hdr.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse, tar.TypeCont:
		return failed("writing a file", x.file(ctx, d, base, data, hdr, a))
	case tar.TypeDir:
		return failed("making a directory", x.dir(d, base, a))
	case tar.TypeSymlink:
		return failed("making a symlink", x.symlink(d, base, hdr.Linkname, a))
	case tar.TypeLink:
		return failed("making a hard link", x.link(d, base, hdr.Linkname))
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		return failed("making a device", x.device(d, base, hdr, a))
	}
	return fmt.Errorf("%w: entry type %q", ErrArchive, hdr.Typeflag)
}

// place runs create, which must fail with EEXIST if base exists in d, and
// removes what is there if it does: the last entry of a name wins.
func (x *extractor) place(d dir, base string, create func() error) error {
	err := create()
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	if err := x.remove(d, base); err != nil {
		return err
	}
	return create()
}

func (x *extractor) file(ctx context.Context, d dir, base string, data io.Reader, hdr *tar.Header, a attrs) (err error) {
	if hdr.Size > x.opts.MaxBytes-x.bytes {
		return fmt.Errorf("%w: files of more than %d bytes", ErrTooLarge, x.opts.MaxBytes)
	}
	x.bytes += hdr.Size
	fd := -1
	err = x.place(d, base, func() (err error) {
		const flags = unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC
		fd, err = unix.Openat(d.fd, base, flags, 0o600)
		return err
	})
	if err != nil {
		return err
	}
	p := piece{fd: fd, entry: x.stats.Entries, name: hdr.Name}
	if isSparse(hdr) {
		err = writeSparse(ctx, fd, data, hdr.Size)
	} else {
		err = x.files.copy(p, data)
	}
	if err == nil {
		if x.mode == Plain {
			a.mode |= 0o400
		}
		p.attrs = &a
	}
	x.files.close(p)
	return err
}

func writeFull(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		if n == 0 {
			return io.ErrShortWrite // a file system gone mad; asking for ever helps nobody
		}
		b = b[max(n, 0):]
	}
	return nil
}

// isSparse says whether archive/tar expands holes of the entry.
func isSparse(hdr *tar.Header) bool {
	if hdr.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for k := range hdr.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// writeSparse writes data but leaves blocks of zeros out. It watches ctx: a hole
// of a terabyte is read without a byte of the tar.
func writeSparse(ctx context.Context, fd int, data io.Reader, size int64) error {
	var zero [4096]byte
	var at int64
	buf := make([]byte, 64<<10)
	for at < size {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := io.ReadFull(data, buf[:min(size-at, int64(len(buf)))])
		if err != nil {
			return fmt.Errorf("%w: sparse file: %w", ErrArchive, err)
		}
		for b := buf[:n]; len(b) > 0; {
			part := b[:min(len(zero), len(b))]
			b = b[len(part):]
			if !bytes.Equal(part, zero[:len(part)]) {
				if _, err := unix.Seek(fd, at, io.SeekStart); err != nil {
					return err
				}
				if err := writeFull(fd, part); err != nil {
					return err
				}
			}
			at += int64(len(part))
		}
	}
	return unix.Ftruncate(fd, size)
}

func (x *extractor) dir(d dir, base string, a attrs) error {
	_, err := x.mkdir(d, base)
	if errors.Is(err, unix.EEXIST) {
		if err := x.remove(d, base); err != nil {
			return err
		}
		_, err = x.mkdir(d, base)
	}
	if err != nil {
		return err
	}
	name := base
	if d.path != "" {
		name = d.path + "/" + base
	}
	return x.noteDir(name, a)
}

func (x *extractor) symlink(d dir, base, target string, a attrs) error {
	switch {
	case target == "":
		return fmt.Errorf("%w: empty target", ErrArchive)
	case len(target) > maxLink:
		return fmt.Errorf("%w: target of %d bytes", ErrTooLarge, len(target))
	}
	err := x.place(d, base, func() error { return unix.Symlinkat(target, d.fd, base) })
	if err != nil {
		return err
	}
	return x.set(d, base, kindSymlink, a)
}

// link makes base another name of target, which is rooted in the layer whether
// it starts with a slash or not and must have been unpacked before. A symlink is
// linked itself, never followed. Owner, mode and times stay the target's.
func (x *extractor) link(d dir, base, target string) error {
	name, err := clean(target)
	if err != nil {
		return err
	}
	dirName, from := split(name)
	mark, _, err := markerOf(dirName, from)
	if err != nil || mark != noMarker || from == "" {
		return fmt.Errorf("%w: target is not a file", ErrArchive)
	}
	src, err := x.lookup(dirName)
	if err != nil {
		return err
	}
	defer src.close()
	var st, old unix.Stat_t
	if err := unix.Fstatat(src.fd, from, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR || isWhiteout(&st) {
		return fmt.Errorf("%w: target is not a file", ErrArchive)
	}
	if unix.Fstatat(d.fd, base, &old, unix.AT_SYMLINK_NOFOLLOW) == nil && old.Ino == st.Ino && old.Dev == st.Dev {
		return nil // replacing it would lose the file
	}
	return x.place(d, base, func() error { return unix.Linkat(src.fd, from, d.fd, base, 0) })
}

func (x *extractor) device(d dir, base string, hdr *tar.Header, a attrs) error {
	kind := uint32(unix.S_IFIFO)
	switch hdr.Typeflag {
	case tar.TypeChar:
		kind = unix.S_IFCHR
	case tar.TypeBlock:
		kind = unix.S_IFBLK
	}
	if kind != unix.S_IFIFO && x.mode == Plain {
		x.stats.SkippedDevices++
		return nil
	}
	// The kernel's own dev_t has 12 and 20 bits.
	if hdr.Devmajor < 0 || hdr.Devmajor >= 1<<12 || hdr.Devminor < 0 || hdr.Devminor >= 1<<20 {
		return fmt.Errorf("%w: device %d:%d", ErrArchive, hdr.Devmajor, hdr.Devminor)
	}
	dev := 0
	if kind != unix.S_IFIFO {
		dev = int(unix.Mkdev(uint32(hdr.Devmajor), uint32(hdr.Devminor)))
	}
	err := x.place(d, base, func() error { return unix.Mknodat(d.fd, base, kind|0o600, dev) })
	if err != nil {
		return err
	}
	return x.set(d, base, kindSpecial, a)
}
