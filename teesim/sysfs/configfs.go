package sysfs

import (
	"context"
	"slices"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// reportDir is the directory report: mkdir makes an entry and rmdir removes it
// with its attributes.
type reportDir struct {
	dir
	group *group
}

// Lookup finds an entry.
func (d *reportDir) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	e := d.group.find(name)
	if e == nil {
		return nil, syscall.ENOENT
	}
	return d.inode(ctx, e, out), 0
}

// Mkdir makes an entry; its mode is not the caller's to choose.
func (d *reportDir) Mkdir(ctx context.Context, name string, _ uint32, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	e, err := d.group.make(name)
	if err != nil {
		return nil, errnoOf(err)
	}
	return d.inode(ctx, e, out), 0
}

func (d *reportDir) inode(ctx context.Context, e *entry, out *fuse.EntryOut) *fs.Inode {
	d.owner.fill(&out.Attr, dirMode, 0)
	n := &entryDir{dir: dir{owner: d.owner}, entry: e}
	return d.NewInode(ctx, n, fs.StableAttr{Mode: syscall.S_IFDIR, Ino: e.inode(0)})
}

// Rmdir removes an entry.
func (d *reportDir) Rmdir(_ context.Context, name string) syscall.Errno {
	return errnoOf(d.group.remove(name))
}

// Readdir lists the entries.
func (d *reportDir) Readdir(context.Context) (fs.DirStream, syscall.Errno) {
	var list []fuse.DirEntry
	for _, e := range d.group.list() {
		list = append(list, fuse.DirEntry{Name: e.name, Mode: syscall.S_IFDIR, Ino: e.inode(0)})
	}
	return fs.NewListDirStream(list), 0
}

// entryDir is the directory of an entry.
type entryDir struct {
	dir
	entry *entry
}

// inode numbers the entry's directory, 0, and its attributes, from 1 on. Numbers
// of what stays as long as the mount are above 1<<63.
func (e *entry) inode(n int) uint64 { return e.number<<4 + uint64(n) }

// Lookup finds an attribute.
func (d *entryDir) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	i := slices.Index(d.entry.group.driver.attributes, name)
	if i < 0 || d.entry.removed() {
		return nil, syscall.ENOENT
	}
	f := d.entry.attribute(d.owner, name)
	f.owner.fill(&out.Attr, syscall.S_IFREG|f.perm, f.size)
	return d.NewInode(ctx, f, fs.StableAttr{Mode: syscall.S_IFREG, Ino: d.entry.inode(i + 1)}), 0
}

// Readdir lists the attributes.
func (d *entryDir) Readdir(context.Context) (fs.DirStream, syscall.Errno) {
	var list []fuse.DirEntry
	if !d.entry.removed() {
		for i, name := range d.entry.group.driver.attributes {
			list = append(list, fuse.DirEntry{Name: name, Mode: syscall.S_IFREG, Ino: d.entry.inode(i + 1)})
		}
	}
	return fs.NewListDirStream(list), 0
}

// textSize is what stat shows of a text attribute; binary ones show 0.
// Source: configfs_lookup in Linux fs/configfs/dir.c.
const textSize = 4096

// attribute returns the file of one of the driver's attributes. Source: the
// CONFIGFS_ATTR macros in Linux drivers/virt/coco/guest/report.c for what can be
// read and written.
func (e *entry) attribute(own *owner, name string) *file {
	var open func(flags uint32) fs.FileHandle
	perm, size := uint32(0o444), uint64(textSize)
	switch name {
	case "generation":
		open = func(uint32) fs.FileHandle { return text(e.generation) }
	case "provider":
		open = func(uint32) fs.FileHandle { return text(e.line(e.group.provider.Name())) }
	case "privlevel_floor":
		open = func(uint32) fs.FileHandle { return text(e.line("0")) }
	case "privlevel":
		perm, open = 0o200, func(uint32) fs.FileHandle { return textWrite{e.setPrivlevel} }
	case "inblob":
		perm, size = 0o200, 0
		open = func(flags uint32) fs.FileHandle {
			return &inblobWrite{entry: e, position: position{append: flags&syscall.O_APPEND != 0}}
		}
	case "outblob":
		size, open = 0, func(uint32) fs.FileHandle { return binary(e.outblob) }
	case "auxblob":
		size, open = 0, func(uint32) fs.FileHandle { return binary(e.auxblob) }
	}
	return &file{owner: own, perm: perm, size: size, open: func(flags uint32) (fs.FileHandle, error) {
		if e.removed() {
			return nil, syscall.ENOENT
		}
		return open(flags), nil
	}}
}

var (
	_ fs.NodeLookuper  = (*reportDir)(nil)
	_ fs.NodeReaddirer = (*reportDir)(nil)
	_ fs.NodeLookuper  = (*entryDir)(nil)
	_ fs.NodeReaddirer = (*entryDir)(nil)
)
