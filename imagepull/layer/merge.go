package layer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/imagepull/layer/untar"
)

// mergeDepth stops recursion in a tree Apply cannot have made.
const mergeDepth = 300

// Merge copies layers that Apply made in Plain mode, base first, over each
// other into dst, which exists and is empty, and applies their whiteouts.
// Modes, times, symlinks, hard links within a layer, fifos and user.*
// attributes are kept; owners are the caller's. Data is cloned or copied in
// the kernel where the file system can. On any error dst is garbage.
//
// The layers are trusted as far as Apply returned nil for them; Merge only
// reads them, so one layer may be merged several times at once.
func Merge(ctx context.Context, layers []string, dst string) error {
	for i, layer := range layers {
		m := &merger{ctx: ctx, links: map[inode]string{}}
		if err := m.layer(layer, dst); err != nil {
			return fmt.Errorf("merging layer %d of %d: %w", i+1, len(layers), err)
		}
	}
	for _, layer := range slices.Backward(layers) {
		st, described, err := RootEntry(layer)
		if err != nil {
			return err
		}
		if described { // later layers have touched the root since
			return unix.UtimesNano(dst, []unix.Timespec{st.Atim, st.Mtim})
		}
	}
	return nil
}

type inode struct{ dev, ino uint64 }

// merger copies one layer.
type merger struct {
	ctx   context.Context
	root  int              // descriptor of dst
	links map[inode]string // files with several names: path of the first below dst
}

func (m *merger) layer(layer, dst string) (err error) {
	from, err := openDir(unix.AT_FDCWD, layer)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, from.Close()) }()
	to, err := openDir(unix.AT_FDCWD, dst)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, to.Close()) }()
	m.root = int(to.Fd())
	return m.dir(from, to, "", true, mergeDepth)
}

// dir merges the directory from over to; path is to's from dst, and merged says
// that a lower layer has it too.
func (m *merger) dir(from, to *os.File, path string, merged bool, depth int) error {
	if depth == 0 {
		return fmt.Errorf("%w: %.64q is nested too deeply", ErrTooLarge, path)
	}
	var before unix.Stat_t
	if err := unix.Fstat(int(to.Fd()), &before); err != nil {
		return err
	}
	// Whiteouts speak of lower layers only, whatever order names come in.
	if err := eachName(from, func(name string) error { return m.hide(to, name) }); err != nil {
		return err
	}
	if _, err := from.Seek(0, io.SeekStart); err != nil {
		return err
	}
	err := eachName(from, func(name string) error {
		if m.ctx.Err() != nil {
			return context.Cause(m.ctx)
		}
		if strings.HasPrefix(name, untar.WhiteoutPrefix) {
			return nil
		}
		if err := m.entry(from, to, path, name, depth); err != nil {
			return fmt.Errorf("%.128q: %w", name, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(from.Fd()), &st); err != nil {
		return err
	}
	if merged && !untar.IsDescribed(st) { // this layer says nothing of it
		return unix.UtimesNanoAt(int(to.Fd()), ".", []unix.Timespec{before.Atim, before.Mtim}, 0)
	}
	if err := copyXattrs(from, to); err != nil {
		return err
	}
	if err := unix.Fchmod(int(to.Fd()), st.Mode&0o7777); err != nil {
		return err
	}
	return unix.UtimesNanoAt(int(to.Fd()), ".", []unix.Timespec{st.Atim, st.Mtim}, 0)
}

// hide applies one whiteout marker of a layer.
func (m *merger) hide(to *os.File, name string) error {
	if name == untar.OpaqueMarker {
		var names []string
		if err := eachName(to, func(n string) error { names = append(names, n); return nil }); err != nil {
			return err
		}
		for _, n := range names {
			if err := removeAt(to, n); err != nil {
				return err
			}
		}
		return nil
	}
	if hidden, ok := strings.CutPrefix(name, untar.WhiteoutPrefix); ok {
		return removeAt(to, hidden)
	}
	return nil
}

func (m *merger) entry(from, to *os.File, path, name string, depth int) error {
	var st unix.Stat_t
	if err := unix.Fstatat(int(from.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	below := name
	if path != "" {
		below = path + "/" + name
	}
	kind := st.Mode & unix.S_IFMT
	if kind == unix.S_IFDIR {
		return m.subdir(from, to, below, name, depth)
	}
	if err := removeAt(to, name); err != nil {
		return err
	}
	if st.Nlink > 1 {
		id := inode{uint64(st.Dev), st.Ino}
		if first, ok := m.links[id]; ok {
			return unix.Linkat(m.root, first, int(to.Fd()), name, 0)
		}
		m.links[id] = below
	}
	switch kind {
	case unix.S_IFREG:
		return copyFile(from, to, name, &st)
	case unix.S_IFLNK:
		target := make([]byte, st.Size+1)
		n, err := unix.Readlinkat(int(from.Fd()), name, target)
		if err != nil {
			return err
		}
		if err := unix.Symlinkat(string(target[:n]), int(to.Fd()), name); err != nil {
			return err
		}
	case unix.S_IFIFO:
		if err := unix.Mknodat(int(to.Fd()), name, unix.S_IFIFO|0o600, 0); err != nil {
			return err
		}
		if err := unix.Fchmodat(int(to.Fd()), name, st.Mode&0o7777, 0); err != nil {
			return err
		}
	default:
		return fmt.Errorf("%w: file of mode %o in a plain layer", ErrArchive, st.Mode)
	}
	return unix.UtimesNanoAt(int(to.Fd()), name, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
}

func (m *merger) subdir(from, to *os.File, path, name string, depth int) (err error) {
	merged := false
	if err := unix.Mkdirat(int(to.Fd()), name, 0o700); errors.Is(err, unix.EEXIST) {
		var old unix.Stat_t
		if err := unix.Fstatat(int(to.Fd()), name, &old, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		merged = old.Mode&unix.S_IFMT == unix.S_IFDIR
		if !merged {
			if err := errors.Join(removeAt(to, name), unix.Mkdirat(int(to.Fd()), name, 0o700)); err != nil {
				return err
			}
		}
	} else if err != nil {
		return err
	}
	src, err := openDir(int(from.Fd()), name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	dst, err := openDir(int(to.Fd()), name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	return m.dir(src, dst, path, merged, depth-1)
}
