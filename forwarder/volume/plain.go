package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/tool"
)

// mountPlain mounts the disk on the place and says how. One that carries another
// file system for volumes than the wanted is mounted as what it is; an empty one is
// formatted first.
func (m *Manager) mountPlain(ctx context.Context, v Volume, d disk, on place) (how string, err error) {
	if err := m.claim(d); err != nil {
		return "", err
	}
	mount := func(kind string) error { return unix.Mount(d.path, on.dir.Name(), kind, mountFlags, "") }
	first := mount(v.FSType)
	if first == nil {
		return "mounted", nil
	}
	found, err := m.run.Signature(ctx, d.path)
	switch {
	case err != nil:
		return "", err
	case found == v.FSType:
		return "", podvm.Explain(fmt.Errorf("%w: mounting %s: %w", ErrForeign, d.path, first), "the disk carries "+found+" that does not mount; it was not formatted")
	case volumeFS[found]:
		m.log.Warn("The cloud volume has another file system than wanted", "volume", v.Name, "want", v.FSType, "found", found)
		if err := mount(found); err != nil {
			return "", podvm.Explain(fmt.Errorf("%w: mounting %s: %w", ErrForeign, d.path, err), "the disk carries "+found+" that does not mount; it was not formatted")
		}
		return "mounted as " + found, nil
	case found != "":
		return "", tool.Foreign(found)
	case !errors.Is(first, unix.EINVAL):
		// Not what the kernel says of a disk without a file system: ENODEV, EIO, …
		return "", podvm.Explain(fmt.Errorf("mounting %s: %w", d.path, first), "the disk cannot be mounted as "+v.FSType+"; it was not formatted")
	}
	if err := m.format(ctx, v, d); err != nil {
		return "", err
	}
	if err := mount(v.FSType); err != nil {
		return "", podvm.Explain(fmt.Errorf("mounting %s: %w", d.path, err), "the new file system does not mount")
	}
	return "formatted", nil
}

// edge is how much of the beginning and of the end of a disk must be readable, in
// bytes. All signatures are there, and blkid does not tell a disk it cannot read
// from one without.
const edge = 256 << 10

// format makes a file system on a disk that carries none.
func (m *Manager) format(ctx context.Context, v Volume, d disk) error {
	if err := readable(d.path); err != nil {
		return podvm.Explain(fmt.Errorf("reading %s: %w", d.path, err), "the disk cannot be read and was not formatted")
	}
	m.log.Info("Formatting an empty disk", "volume", v.Name, "device", d.path, "fs", v.FSType)
	start := time.Now()
	// Neither is told to overwrite what it finds itself. An ext3 is for mkfs.ext4 to
	// make, which images have anyway.
	program, args := "mkfs.ext4", []string{"-q", "-t", v.FSType, d.path}
	if v.FSType == "xfs" {
		program, args = "mkfs.xfs", []string{"-q", d.path}
	}
	var undo tool.Undo
	undo.Add(func(context.Context) error { return unformat(d.path) })
	if _, err := m.run.Run(ctx, nil, program, args...); err != nil {
		err = tool.Explain("making the file system", err, program+" failed on the disk")
		undo.OnError(ctx, &err)
		return err
	}
	m.log.Info("Formatted", "volume", v.Name, "dur", time.Since(start))
	return nil
}

// unformat takes away the signature that mkfs.xfs begins with and that the next call
// would leave the disk alone for. It must say that it is not finished: a whole file
// system may have come from another machine that has the disk too. What is left of
// mkfs.ext4 has no signature.
func unformat(path string) (err error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_EXCL, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	// Source: linux fs/xfs/libxfs/xfs_format.h, struct xfs_dsb, v6.12.
	const inProgress = 126
	b := make([]byte, 512)
	if _, err := f.ReadAt(b, 0); err != nil || string(b[:4]) != "XFSB" || b[inProgress] != 1 {
		return err
	}
	clear(b)
	_, err = f.WriteAt(b, 0)
	return errors.Join(err, f.Sync())
}

func readable(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := f.Seek(0, 2)
	if err != nil {
		return err
	}
	if size < 2*edge {
		return fmt.Errorf("%d bytes are too few for a file system", size)
	}
	b := make([]byte, edge)
	for _, at := range []int64{0, size - edge} {
		if _, err := f.ReadAt(b, at); err != nil {
			return err
		}
	}
	return nil
}

// claim checks that nobody uses the disk: no mount, no swap, no mapping, no RAID,
// of the disk or of a partition; and that it has no partitions.
func (m *Manager) claim(d disk) error {
	const cause = "the disk is in use: it is mounted, has partitions, or is part of another device"
	if why := m.inUse(d.name); why != "" {
		return podvm.Explain(fmt.Errorf("%w: %s %s", ErrBusy, d.path, why), cause)
	}
	f, err := os.OpenFile(d.path, os.O_RDWR|unix.O_EXCL, 0)
	if errors.Is(err, unix.EBUSY) {
		return podvm.Explain(fmt.Errorf("%w: %w", ErrBusy, err), cause)
	}
	if err != nil {
		return podvm.Explain(fmt.Errorf("%w: %w", ErrDevice, err), "the disk cannot be opened for writing")
	}
	return f.Close()
}
