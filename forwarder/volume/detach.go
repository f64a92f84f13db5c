package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"

	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/tool"
)

// DetachAll unmounts every volume, the last one first, and closes what was opened
// for the encrypted ones. It finds them in the mount table and among the mappings,
// whoever attached them. What is still in use goes with its last user. What fails
// is logged, and the rest is done all the same.
func (m *Manager) DetachAll(ctx context.Context) {
	paths, err := m.mounted()
	if err != nil {
		m.log.Warn("Cloud volumes cannot be found", "err", err)
	}
	for _, path := range slices.Backward(paths) {
		if err := m.detach(ctx, path); err != nil {
			m.log.Warn("A cloud volume stays", "mount_point", podvm.Printable(path, 256), "err", err)
		}
	}
	// Of a volume that was cut off between its opening and its mounting, too.
	names, err := m.mappings()
	if err != nil {
		m.log.Warn("Mappings of cloud volumes cannot be found", "err", err)
	}
	for _, name := range names {
		if err := m.close(ctx, name); err != nil {
			m.log.Warn("The mapping of a cloud volume stays", "volume", name, "err", err)
		}
	}
}

// mounted returns where something is mounted below Base, in the order of the mount
// table, which is that of mounting.
func (m *Manager) mounted() ([]string, error) {
	base := tool.Real(m.host.Path(Base))
	if base == "" {
		return nil, nil
	}
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(base))
	var paths []string
	for _, mount := range mounts {
		if strings.HasPrefix(mount.Mountpoint, base+"/") {
			paths = append(paths, mount.Mountpoint)
		}
	}
	return paths, err
}

func (m *Manager) detach(ctx context.Context, path string) error {
	name := filepath.Base(path)
	unlock, err := m.lock(ctx, "volume "+name)
	if err != nil {
		return err
	}
	defer unlock()
	if err := tool.Unmount(path); err != nil {
		return err
	}
	m.log.Info("Cloud volume unmounted", "volume", name)
	if filepath.Dir(path) != tool.Real(m.host.Path(Base)) {
		return nil // a directory of a volume
	}
	if top, err := tool.Top(path); err != nil || top != nil {
		return err // another one below, which is next
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing the mount point: %w", err)
	}
	return nil
}

// close closes the mapping of a volume; one whose device is still in use is closed
// by the kernel with its last user. One that is gone is not an error.
func (m *Manager) close(ctx context.Context, name string) error {
	unlock, err := m.lock(ctx, "volume "+name)
	if err != nil {
		return err
	}
	defer unlock()
	node := mapperPrefix + name
	if _, err := os.Lstat(m.host.Path(mapperDir + node)); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	const absent, busy = 4, 5 // cryptsetup(8), RETURN CODES
	_, err = m.run.Run(ctx, nil, "cryptsetup", "close", node)
	var exit *tool.ExitError
	if errors.As(err, &exit) && exit.Code == busy {
		m.log.Info("The mapping of a cloud volume is still in use and will go with its last user", "volume", name)
		_, err = m.run.Run(ctx, nil, "cryptsetup", "close", "--deferred", node)
	}
	if errors.As(err, &exit) && exit.Code == absent {
		return nil
	}
	return err
}
