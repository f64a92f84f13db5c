package debian

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
)

// CPIO returns the tree as an archive the kernel takes for its initramfs, owned
// by root. Archives can follow each other; the last to name a path wins.
// Source: linux Documentation/driver-api/early-userspace/buffer-format.rst.
func (t Tree) CPIO() []byte {
	all := t.withDirs()
	var out bytes.Buffer
	inode := 0
	// A directory sorts before what is in it.
	for _, name := range slices.Sorted(maps.Keys(all)) {
		inode++
		cpioEntry(&out, inode, name, all[name])
	}
	cpioEntry(&out, 0, "TRAILER!!!", Node{})
	pad(&out, 512)
	return out.Bytes()
}

// cpioEntry writes one entry: a header of hexadecimal numbers, the name with a
// zero byte, the content; each part ends on a multiple of four bytes.
func cpioEntry(out *bytes.Buffer, inode int, name string, n Node) {
	out.WriteString("070701")
	for _, field := range []uint32{
		uint32(inode), n.Mode, 0, 0, 1, 0, // uid, gid, links, time
		uint32(len(n.Data)), 0, 0, n.Major, n.Minor, uint32(len(name) + 1), 0,
	} {
		fmt.Fprintf(out, "%08x", field)
	}
	out.WriteString(name)
	out.WriteByte(0)
	pad(out, 4)
	out.Write(n.Data)
	pad(out, 4)
}

func pad(out *bytes.Buffer, to int) {
	for out.Len()%to != 0 {
		out.WriteByte(0)
	}
}
