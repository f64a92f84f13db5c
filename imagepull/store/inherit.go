package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/imagepull/layer"
)

// inherit gives directories of the mount on target what the topmost layer that
// describes them says. A tar may name a file and not the directory it is in;
// overlayfs takes the attributes of the topmost layer that has the directory all
// the same, and so /tmp would lose its sticky bit to a layer with just a file in
// it. Docker unpacks onto the layers below and has no such trouble.
func (s *Store) inherit(ctx context.Context, target string, layers []string) (err error) {
	implied, err := s.impliedBy(ctx, layers)
	if err != nil || len(implied) == 0 {
		return err
	}
	v := &view{at: map[string][]int{}}
	defer func() { err = errors.Join(err, v.close()) }()
	for _, path := range slices.Backward(layers) {
		fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		v.at[""] = append(v.at[""], len(v.layers))
		v.layers = append(v.layers, fd)
	}
	root, err := unix.Open(target, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Close(root)) }()
	// Below first: overlayfs copies up the directories above as they are.
	for _, path := range slices.Backward(slices.Sorted(maps.Keys(implied))) {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := v.describe(root, path); err != nil {
			return fmt.Errorf("%.256q: %w", path, err)
		}
	}
	return nil
}

// view finds directories in layers as overlayfs does, top first.
type view struct {
	layers []int            // descriptors
	at     map[string][]int // by path: which layers show in that directory
}

func (v *view) close() error {
	var errs []error
	for _, fd := range v.layers {
		errs = append(errs, unix.Close(fd))
	}
	return errors.Join(errs...)
}

// openBelow opens a directory below root without following symlinks or entering
// what is mounted there.
func openBelow(root int, path string, flags uint64) (fd int, err error) {
	for range 1000 { // EAGAIN: something was renamed on this machine
		fd, err = unix.Openat2(root, path, &unix.OpenHow{
			Flags:   flags | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
		})
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			break
		}
	}
	return fd, err
}

// show returns the layers that show in a directory of the mount.
func (v *view) show(path string) ([]int, error) {
	if list, ok := v.at[path]; ok {
		return list, nil
	}
	above := filepath.Dir(path)
	if above == "." {
		above = ""
	}
	candidates, err := v.show(above)
	if err != nil {
		return nil, err
	}
	var list []int
	for _, i := range candidates {
		fd, err := openBelow(v.layers[i], path, unix.O_RDONLY)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
			break // a whiteout, or something else that hides the layers below
		}
		if err != nil {
			return nil, err
		}
		list = append(list, i)
		var y [1]byte
		_, err = unix.Fgetxattr(fd, "trusted.overlay.opaque", y[:])
		if err := unix.Close(fd); err != nil {
			return nil, err
		}
		if err == nil {
			break
		}
	}
	v.at[path] = list
	return list, nil
}

// describe gives the directory path of the mount the attributes it has in the
// topmost layer that describes it, if that is not the topmost that has it.
func (v *view) describe(root int, path string) (err error) {
	list, err := v.show(path)
	if err != nil {
		return err
	}
	for n, i := range list {
		src, err := openBelow(v.layers[i], path, unix.O_RDONLY)
		if err != nil {
			return err
		}
		var st unix.Stat_t
		err = unix.Fstat(src, &st)
		if err == nil && layer.IsDescribed(st) {
			if n > 0 {
				err = copyAttributes(src, root, path, st)
			}
			return errors.Join(err, unix.Close(src))
		}
		if err = errors.Join(err, unix.Close(src)); err != nil {
			return err
		}
	}
	return nil
}

func copyAttributes(src, root int, path string, st unix.Stat_t) error {
	dst, err := openBelow(root, path, unix.O_RDONLY)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOENT) {
		return nil // hidden by a layer above
	}
	if err != nil {
		return err
	}
	return errors.Join(copyDir(procPath(src), procPath(dst), st), unix.Close(dst))
}

func procPath(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// copyDir gives the directory dst the owner, extended attributes, mode and times
// of src, whose state is st.
func copyDir(src, dst string, st unix.Stat_t) error {
	if err := unix.Chown(dst, int(st.Uid), int(st.Gid)); err != nil {
		return fmt.Errorf("setting the owner: %w", err)
	}
	names := make([]byte, 64<<10) // XATTR_LIST_MAX
	n, err := unix.Listxattr(src, names)
	if err != nil && !errors.Is(err, unix.ENOTSUP) {
		return fmt.Errorf("listing attributes: %w", err)
	}
	value := make([]byte, 64<<10) // XATTR_SIZE_MAX
	for name := range strings.SplitSeq(string(names[:max(n, 0)]), "\x00") {
		if name == "" || strings.HasPrefix(name, "trusted.overlay.") || strings.HasPrefix(name, "trusted.sealpod.") {
			continue
		}
		n, err := unix.Getxattr(src, name, value)
		if err == nil {
			err = unix.Setxattr(dst, name, value[:n], 0)
		}
		if err != nil {
			return fmt.Errorf("copying attribute %.64q: %w", name, err)
		}
	}
	if err := unix.Chmod(dst, st.Mode&0o7777); err != nil {
		return fmt.Errorf("setting the mode: %w", err)
	}
	if err := unix.UtimesNano(dst, []unix.Timespec{st.Atim, st.Mtim}); err != nil {
		return fmt.Errorf("setting the times: %w", err)
	}
	return nil
}
