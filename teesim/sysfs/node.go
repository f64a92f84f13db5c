package sysfs

import (
	"context"
	"strings"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// maxName is the length of the longest name of a file in bytes.
const maxName = 255

// node is what stays as long as the mount: a directory, file or link.
type node interface {
	fs.InodeEmbedder
	kind() uint32 // as in a mode
}

// owner is whom everything belongs to: the user who mounts.
type owner struct {
	uid, gid uint32
	since    time.Time
}

func (o *owner) fill(out *fuse.Attr, mode uint32, size uint64) {
	out.Mode, out.Size, out.Nlink = mode, size, 1
	if mode&syscall.S_IFDIR != 0 {
		out.Nlink = 2
	}
	out.Owner = fuse.Owner{Uid: o.uid, Gid: o.gid}
	out.SetTimes(&o.since, &o.since, &o.since)
}

// settable reports whether a change of attributes is one that does nothing:
// times, and the size, which O_TRUNC sets.
func settable(in *fuse.SetAttrIn) bool {
	return in.Valid&(fuse.FATTR_MODE|fuse.FATTR_UID|fuse.FATTR_GID) == 0
}

// dir is a directory in which nothing can be changed, as almost all of sysfs.
// The error numbers are those of a kernel directory without such an operation.
type dir struct {
	fs.Inode
	owner *owner
	kids  map[string]*branch // of a directory that stays
}

const dirMode = syscall.S_IFDIR | 0o755

func (*dir) kind() uint32 { return syscall.S_IFDIR }

// OnAdd adds the files and directories that stay as long as the mount.
func (d *dir) OnAdd(ctx context.Context) {
	for name, b := range d.kids {
		n := b.node
		if n == nil {
			n = &dir{owner: b.owner, kids: b.kids}
		}
		d.AddChild(name, d.NewPersistentInode(ctx, n, fs.StableAttr{Mode: n.kind()}), false)
	}
}

// Getattr fills in what stat shows.
func (d *dir) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	d.owner.fill(&out.Attr, dirMode, 0)
	return 0
}

// Setattr refuses all but times.
func (d *dir) Setattr(ctx context.Context, f fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	if !settable(in) {
		return syscall.EPERM
	}
	return d.Getattr(ctx, f, out)
}

// Mkdir refuses.
func (d *dir) Mkdir(context.Context, string, uint32, *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	return nil, syscall.EPERM
}

// Mknod refuses.
func (d *dir) Mknod(context.Context, string, uint32, uint32, *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	return nil, syscall.EPERM
}

// Create refuses.
func (d *dir) Create(context.Context, string, uint32, uint32, *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	return nil, nil, 0, syscall.EACCES
}

// Link refuses.
func (d *dir) Link(context.Context, fs.InodeEmbedder, string, *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	return nil, syscall.EPERM
}

// Symlink refuses.
func (d *dir) Symlink(context.Context, string, string, *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	return nil, syscall.EPERM
}

// Rename refuses.
func (d *dir) Rename(context.Context, string, fs.InodeEmbedder, string, uint32) syscall.Errno {
	return syscall.EPERM
}

// Unlink refuses.
func (d *dir) Unlink(context.Context, string) syscall.Errno { return syscall.EPERM }

// Rmdir refuses.
func (d *dir) Rmdir(context.Context, string) syscall.Errno { return syscall.EPERM }

// file is a regular file. What it may be opened for depends on perm alone, for
// root too, as in sysfs and configfs.
type file struct {
	fs.Inode
	owner *owner
	perm  uint32
	size  uint64 // as stat shows it
	open  func(flags uint32) (fs.FileHandle, error)
}

func (*file) kind() uint32 { return syscall.S_IFREG }

// fixedNode returns a file of fixed content. Source: Linux drivers/acpi/sysfs.c
// for the mode of ACPI's tables.
func fixedNode(own *owner, path string, b []byte) *file {
	perm := uint32(0o444)
	if strings.HasPrefix(path, "firmware/acpi/tables/") {
		perm = 0o400
	}
	return &file{owner: own, perm: perm, size: uint64(len(b)), open: func(uint32) (fs.FileHandle, error) {
		return &content{bytes: b, filled: true}, nil
	}}
}

// Getattr fills in what stat shows.
func (f *file) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	f.owner.fill(&out.Attr, syscall.S_IFREG|f.perm, f.size)
	return 0
}

// Setattr refuses all but times and the size.
func (f *file) Setattr(ctx context.Context, h fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	if !settable(in) {
		return syscall.EPERM
	}
	return f.Getattr(ctx, h, out)
}

// Open opens the file past the page cache, so that sizes do not matter.
func (f *file) Open(_ context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	access := flags & syscall.O_ACCMODE
	if access != syscall.O_WRONLY && f.perm&0o444 == 0 || access != syscall.O_RDONLY && f.perm&0o222 == 0 {
		return nil, 0, syscall.EACCES
	}
	h, err := f.open(flags)
	if err != nil {
		return nil, 0, errnoOf(err)
	}
	return h, fuse.FOPEN_DIRECT_IO, 0
}

// link is a symbolic link.
type link struct {
	fs.Inode
	owner  *owner
	target string
}

func (*link) kind() uint32 { return syscall.S_IFLNK }

// Getattr fills in what stat shows.
func (l *link) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	l.owner.fill(&out.Attr, syscall.S_IFLNK|0o777, uint64(len(l.target)))
	return 0
}

// Readlink returns the target.
func (l *link) Readlink(context.Context) ([]byte, syscall.Errno) { return []byte(l.target), 0 }
