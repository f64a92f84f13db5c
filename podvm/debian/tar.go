package debian

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Tar returns the tree as an archive, owned by root, at the start of time. A
// directory comes before what is in it.
func (t Tree) Tar() (io.Reader, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	all := t.withDirs()
	for _, name := range slices.Sorted(maps.Keys(all)) {
		n := all[name]
		h := &tar.Header{
			Name: name, Mode: int64(n.Mode & 0o7777), ModTime: time.Unix(0, 0), Format: tar.FormatGNU,
			Devmajor: int64(n.Major), Devminor: int64(n.Minor),
		}
		switch n.Kind() {
		case unix.S_IFREG:
			h.Typeflag, h.Size = tar.TypeReg, int64(len(n.Data))
		case unix.S_IFDIR:
			h.Typeflag, h.Name = tar.TypeDir, name+"/"
		case unix.S_IFLNK:
			h.Typeflag, h.Linkname = tar.TypeSymlink, string(n.Data)
		case unix.S_IFCHR:
			h.Typeflag = tar.TypeChar
		default:
			return nil, fmt.Errorf("%s is of a kind that archives cannot have: %o", name, n.Mode)
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("archiving %s: %w", name, err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := w.Write(n.Data); err != nil {
				return nil, fmt.Errorf("archiving %s: %w", name, err)
			}
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return &out, nil
}
