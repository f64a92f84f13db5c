package untar

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// tree is the directory being filled. It opens parent directories, confined
// to itself, and keeps the last one open: in a tar most entries share their
// parent with the one before.
type tree struct {
	root    int    // descriptor of the directory
	rootAbs string // its path as /proc shows it
	budget  int    // entries and directories that may still be made

	dirs    map[string]attrs    // by path: what to set when nothing is created below any more
	implied map[string]struct{} // paths of directories made because something is in them
	noted   int                 // bytes the two take, about

	cached     dir
	cachedName string // as in the tar, or stale
	hasCached  bool
}

// stale is no clean path, so it never matches one.
const stale = "/"

// dir is an open directory of the tree.
type dir struct {
	fd   int    // O_PATH
	path string // from the root, free of symlinks; "" is the root
}

func (d dir) close() { _ = unix.Close(d.fd) }

// at is the path of base for calls that take no descriptor. They must not
// follow base, should it be a symlink.
func (d dir) at(base string) string { return fmt.Sprintf("/proc/self/fd/%d/%s", d.fd, base) }

func openTree(name string, maxEntries int) (*tree, error) {
	fd, err := unix.Open(name, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	t := &tree{root: fd, budget: maxEntries, dirs: map[string]attrs{}, implied: map[string]struct{}{"": {}}}
	if t.rootAbs, err = os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd)); err == nil {
		err = unix.Fchmodat(fd, ".", 0o755, 0)
	}
	if err != nil {
		t.close()
		return nil, err
	}
	return t, nil
}

func (t *tree) close() {
	if t.hasCached {
		t.cached.close()
	}
	_ = unix.Close(t.root)
}

// count takes one entry off the budget.
func (t *tree) count() error {
	if t.budget--; t.budget < 0 {
		return fmt.Errorf("%w: too many entries", ErrTooLarge)
	}
	return nil
}

// parent returns the directory of a clean path, made if missing. It is valid
// until the next call; the tree closes it.
func (t *tree) parent(name string) (dir, error) {
	if t.hasCached && t.cachedName == name {
		return t.cached, nil
	}
	d, err := t.open(name, maxDepth)
	if err != nil {
		return dir{}, err
	}
	if t.hasCached {
		t.cached.close()
	}
	t.cached, t.cachedName, t.hasCached = d, name, true
	return d, nil
}

// lookup returns an existing directory; the caller closes it.
func (t *tree) lookup(name string) (dir, error) {
	what := name
	if what == "" {
		what = "."
	}
	const flags = unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC
	fd, err := t.openat2(what, flags, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS|unix.RESOLVE_NO_XDEV)
	if err == nil {
		return dir{fd, name}, nil
	}
	if !errors.Is(err, unix.ELOOP) {
		return dir{}, err
	}
	// A symlink is on the way: it means what it will mean when the layer is
	// the root of a container.
	fd, err = t.openat2(what, flags, unix.RESOLVE_IN_ROOT|unix.RESOLVE_NO_MAGICLINKS|unix.RESOLVE_NO_XDEV)
	if err != nil {
		return dir{}, err
	}
	d := dir{fd: fd}
	if d.path, err = t.pathOf(fd); err != nil {
		d.close()
		return dir{}, err
	}
	return d, nil
}

// openat2 opens name below the root. EAGAIN means that something was renamed
// on this machine while the kernel walked over "..".
func (t *tree) openat2(name string, flags, resolve uint64) (fd int, err error) {
	for range 1000 {
		fd, err = unix.Openat2(t.root, name, &unix.OpenHow{Flags: flags, Resolve: resolve})
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			break
		}
	}
	return fd, err
}

// pathOf returns the symlink-free path of an open directory. Symlinks can
// nest directories deeper than any name in the tar shows.
func (t *tree) pathOf(fd int) (string, error) {
	abs, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if errors.Is(err, unix.ENAMETOOLONG) {
		return "", fmt.Errorf("%w: path too long", ErrTooLarge)
	}
	if err != nil {
		return "", err
	}
	rel, ok := strings.CutPrefix(abs+"/", strings.TrimSuffix(t.rootAbs, "/")+"/")
	if !ok {
		return "", fmt.Errorf("%w: parent is outside the layer", ErrArchive)
	}
	return clean(rel)
}

// open is lookup that makes what is missing. hops bounds recursion over
// parents and dangling symlinks.
func (t *tree) open(name string, hops int) (dir, error) {
	d, err := t.lookup(name)
	if err == nil || name == "" || (!errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR)) {
		return d, err
	}
	if hops == 0 {
		return dir{}, fmt.Errorf("%w: parents nested too deeply", ErrTooLarge)
	}
	above, base := split(name)
	up, err := t.open(above, hops-1)
	if err != nil {
		return dir{}, err
	}
	defer up.close()
	if err := t.makeParent(up, base, hops); err != nil {
		return dir{}, err
	}
	return t.lookup(name)
}

// makeParent makes the directory base in up, mode 0755 like upstream, when an
// entry below it comes without one for it.
func (t *tree) makeParent(up dir, base string, hops int) error {
	made, err := t.mkdir(up, base)
	if err == nil && made {
		name := path.Join(up.path, base)
		delete(t.dirs, name)
		t.implied[name] = struct{}{}
		return errors.Join(t.note(len(name)), unix.Fchmodat(up.fd, base, 0o755, 0))
	}
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	target, err := readlinkat(up.fd, base)
	if err != nil {
		return fmt.Errorf("%w: parent %q is not a directory", ErrArchive, base)
	}
	if !path.IsAbs(target) {
		target = path.Join("/", up.path, target)
	}
	// path.Clean keeps ".." at the root, as a container's root does.
	name, err := clean(path.Clean(target))
	if err != nil {
		return err
	}
	d, err := t.open(name, hops-1)
	if err != nil {
		return err
	}
	d.close()
	return nil
}

// note counts bytes that are remembered about a directory.
func (t *tree) note(size int) error {
	if t.noted += size + 128; t.noted > maxNoted {
		return fmt.Errorf("%w: directories take more than %d bytes to remember", ErrTooLarge, maxNoted)
	}
	return nil
}

// mkdir makes base in d, mode 0700, and says whether it did: a directory that
// is there stays. A whiteout in its place becomes an opaque directory. Anything
// else there is EEXIST. Source of the last rule: overlayfs looks below a
// directory that is not opaque, also when this layer had hidden the name.
func (t *tree) mkdir(d dir, base string) (made bool, err error) {
	err = unix.Mkdirat(d.fd, base, 0o700)
	if err == nil {
		return true, t.count()
	}
	var st unix.Stat_t
	if !errors.Is(err, unix.EEXIST) || unix.Fstatat(d.fd, base, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
		return false, err
	}
	switch {
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		return false, nil
	case !isWhiteout(&st):
		return false, err
	}
	if err := t.remove(d, base); err != nil {
		return false, err
	}
	if err := unix.Mkdirat(d.fd, base, 0o700); err != nil {
		return false, err
	}
	return true, errors.Join(t.count(), setOpaque(d, base))
}

// remove removes base from d, with all below it.
func (t *tree) remove(d dir, base string) error {
	// Names may now mean other directories. The descriptor stays open, the
	// entry being unpacked may still use it.
	t.cachedName = stale
	err := unix.Unlinkat(d.fd, base, 0)
	if !errors.Is(err, unix.EISDIR) {
		return err
	}
	root, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", d.fd))
	if err != nil {
		return err
	}
	return errors.Join(root.RemoveAll(base), root.Close())
}

func readlinkat(fd int, base string) (string, error) {
	buf := make([]byte, maxPath)
	n, err := unix.Readlinkat(fd, base, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}
