package luks

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

// closeTimeout bounds the wait for the last user of a mapping to let go.
const closeTimeout = 10 * time.Second

// resume looks at what an earlier call left of the device of v. done says that
// the request is fulfilled; otherwise nothing of that call is left.
func (d *Driver) resume(ctx context.Context, v *Volume) (done bool, err error) {
	rec, err := d.load(v.Device)
	if err != nil {
		return false, tool.Explain("looking for an earlier request", err, "the state of the volume cannot be read")
	}
	if rec == nil {
		return false, nil
	}
	if rec.Number != v.Number { // another disk came under the same name
		return false, d.forget(v.Device)
	}
	m, err := d.dm.status(rec.Mapper)
	if err != nil {
		return false, podvm.Explain(err, "the device-mapper does not answer")
	}
	ours, err := d.ours(m, rec, v)
	if err != nil {
		return false, podvm.Explain(err, "the device-mapper does not answer")
	}
	if !ours {
		m = nil
	}
	there, err := d.there(rec, m)
	if err != nil {
		return false, tool.Explain("looking for the mount", err, "the mounts of the pod VM cannot be read")
	}
	switch {
	case rec.Done && m != nil && rec.Digest == v.Digest:
		if there {
			d.log.Info("Volume is in place already", "device", v.Device, "mapper", rec.Mapper, "mount_point", v.MountPoint)
			return true, nil
		}
		var undo tool.Undo
		defer func() { undo.OnError(ctx, &err) }()
		return true, d.attach(ctx, v, rec.Mapper, &undo)
	case rec.Done && m != nil && (there || !rec.Filesystem || m.open > 0):
		return false, podvm.Explain(fmt.Errorf("%w: %s is open as %s for %s", ErrBusy, v.Device, rec.Mapper, rec.MountPoint),
			"the device is in use by a volume with other parameters")
	}
	// A call that was killed, or a volume that was unmounted since.
	d.log.Info("Taking back an earlier volume", "device", v.Device, "mapper", rec.Mapper, "done", rec.Done)
	return false, tool.Explain("taking back an earlier volume", d.takeBack(ctx, rec, m, there, v), "an earlier volume on the device cannot be closed")
}

// there tells whether rec's volume, of mapping m, is where it belongs.
func (d *Driver) there(rec *record, m *mapping) (bool, error) {
	if !rec.Filesystem {
		target, err := os.Readlink(rec.MountPoint)
		return err == nil && target == d.node(rec.Mapper), nil
	}
	if m == nil {
		return false, nil
	}
	return d.mountedAt(rec.MountPoint, m)
}

// mountedAt tells whether the file system of m is what path shows.
func (d *Driver) mountedAt(path string, m *mapping) (bool, error) {
	real := tool.Real(path)
	if real == "" {
		return false, nil
	}
	top, err := tool.Top(real)
	if err != nil || top == nil {
		return false, err
	}
	return majorMinor(m.number) == fmt.Sprintf("%d:%d", top.Major, top.Minor), nil
}

// ours tells whether the mapping m called rec.Mapper is that of rec: another
// program may have taken the name.
func (d *Driver) ours(m *mapping, rec *record, v *Volume) (bool, error) {
	if m == nil {
		return false, nil
	}
	lower, err := d.dm.status(rec.Mapper + "_dif")
	if err != nil {
		return false, err
	}
	if lower != nil && m.below == majorMinor(lower.number) {
		m = lower
	}
	return d.liesOn(m, v), nil
}

func (d *Driver) takeBack(ctx context.Context, rec *record, m *mapping, there bool, v *Volume) error {
	var errs []error
	if there && rec.Filesystem {
		errs = append(errs, tool.Unmount(tool.Real(rec.MountPoint)))
	} else if there {
		errs = append(errs, removeFile(rec.MountPoint))
	}
	if m != nil {
		errs = append(errs, d.close(ctx, rec.Mapper))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	// cryptsetup, killed between its two mappings, leaves the lower one.
	lower, err := d.dm.status(rec.Mapper + "_dif")
	if err == nil && lower != nil && d.liesOn(lower, v) {
		err = d.dm.remove(rec.Mapper + "_dif")
	}
	return errors.Join(err, d.forget(v.Device))
}

// close removes a mapping. One that is in use for a moment, as udev does with
// new ones, is tried again.
func (d *Driver) close(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, closeTimeout)
	defer cancel()
	const inUse = 5
	busy := func(err error) bool {
		var exit *tool.ExitError
		return errors.As(err, &exit) && exit.Code == inUse
	}
	err := tool.Retry(ctx, 200*time.Millisecond, busy, func() error {
		_, err := d.run.Run(ctx, nil, "cryptsetup", "close", name)
		return err
	})
	if err != nil {
		return fmt.Errorf("closing the mapping: %w", err)
	}
	return nil
}

// node returns the device node of the mapping called name.
func (d *Driver) node(name string) string { return d.host.Path("/dev/mapper/" + name) }

// attach mounts the mapping called name, or links to it.
func (d *Driver) attach(ctx context.Context, v *Volume, name string, undo *tool.Undo) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if !v.Filesystem {
		return d.link(v, name, undo)
	}
	dir, real, err := tool.Directory(v.MountPoint, undo)
	if err != nil {
		return tool.Explain("preparing the mount point", err, "the mount point is not a directory, or cannot be made one")
	}
	defer dir.Close()
	// No more flags than upstream's: images and programs live on such volumes.
	if err := unix.Mount(d.node(name), dir.Name(), "ext4", unix.MS_NOATIME, ""); err != nil {
		cause := "the volume cannot be mounted"
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EUCLEAN) {
			cause = "the volume was opened, but holds no intact ext4 file system"
		}
		return podvm.Explain(fmt.Errorf("mounting %s on %s: %w", d.node(name), real, err), cause)
	}
	undo.Add(func(context.Context) error { return tool.Unmount(real) })
	return nil
}

func (d *Driver) link(v *Volume, name string, undo *tool.Undo) error {
	err := os.Symlink(d.node(name), v.MountPoint)
	if errors.Is(err, os.ErrExist) {
		if target, e := os.Readlink(v.MountPoint); e == nil && target == d.node(name) {
			return nil
		}
		return podvm.Explain(fmt.Errorf("%w: %w", ErrBusy, err), "something is at the mount point already")
	}
	if err != nil {
		return tool.Explain("linking to the mapping", err, "the link to the volume cannot be made")
	}
	undo.Add(func(context.Context) error { return removeFile(v.MountPoint) })
	return nil
}
