package vmtest

import (
	"bytes"
	"fmt"
	"maps"
	"path"
	"slices"

	"golang.org/x/sys/unix"
)

// cpio returns the tree as an archive the kernel takes for its initramfs, owned
// by root. Archives can follow each other; the last to name a path wins.
// Source: linux Documentation/driver-api/early-userspace/buffer-format.rst.
func (t tree) cpio() []byte {
	all := tree{}
	maps.Copy(all, t)
	for name := range t {
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			all[dir] = node{mode: unix.S_IFDIR | 0o755}
		}
	}
	var out bytes.Buffer
	inode := 0
	// A directory sorts before what is in it.
	for _, name := range slices.Sorted(maps.Keys(all)) {
		inode++
		cpioEntry(&out, inode, name, all[name])
	}
	cpioEntry(&out, 0, "TRAILER!!!", node{})
	pad(&out, 512)
	return out.Bytes()
}

// cpioEntry writes one entry: a header of hexadecimal numbers, the name with a
// zero byte, the content; each part ends on a multiple of four bytes.
func cpioEntry(out *bytes.Buffer, inode int, name string, n node) {
	out.WriteString("070701")
	for _, field := range []uint32{
		uint32(inode), n.mode, 0, 0, 1, 0, // uid, gid, links, time
		uint32(len(n.data)), 0, 0, n.major, n.minor, uint32(len(name) + 1), 0,
	} {
		fmt.Fprintf(out, "%08x", field)
	}
	out.WriteString(name)
	out.WriteByte(0)
	pad(out, 4)
	out.Write(n.data)
	pad(out, 4)
}

func pad(out *bytes.Buffer, to int) {
	for out.Len()%to != 0 {
		out.WriteByte(0)
	}
}
