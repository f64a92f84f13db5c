package zfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/tool"
)

// Limits of a passphrase, in bytes.
// Source: OpenZFS zfs-load-key(8).
const (
	minKey = 8
	maxKey = 512
)

// ErrPool says that a pool or dataset is not what was asked for.
var ErrPool = errors.New("unexpected pool")

// Volume is what one request asks for, checked.
type Volume struct {
	Device string // of a block device or image file, as Host has it, without links
	// Encrypted says that the device must carry the pool already. Otherwise it is
	// made, unless the device carries one.
	Encrypted     bool
	Key           func(context.Context) (podvm.Secret, error)
	Pool, Dataset string // pass CheckNames
	MountPoint    string // absolute, as Host has it
}

// Config says what a Driver works with.
type Config struct {
	Host podvm.Host
	Log  *slog.Logger // nil is slog.Default()
}

// Driver makes and opens datasets. It is safe for concurrent use, by several
// processes too.
type Driver struct {
	host podvm.Host
	log  *slog.Logger
	run  tool.Runner
}

// New returns a Driver.
func New(cfg Config) *Driver {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	return &Driver{host: cfg.Host, log: cfg.Log, run: tool.Runner{Host: cfg.Host}}
}

// Mount makes the dataset of v reachable under its mount point. It looks at what
// is there and does what is missing, so that the same request again, or one
// after a crash, ends where the first would have. When Mount fails it takes back
// what it did itself.
//
// Errors, all with a cause: tool.ErrBusy, tool.ErrForeign, tool.ErrKey, ErrPool,
// those of v.Key and of programs, the cause of ctx.
func (d *Driver) Mount(ctx context.Context, v Volume) (err error) {
	// Pools are few, and their commands lock each other out anyway.
	unlock, err := tool.Lock(ctx, d.host.Path(podvm.CDHRunDir+"/volumes/zfs.lock"))
	if err != nil {
		return err
	}
	defer unlock()
	var undo tool.Undo
	defer func() { undo.OnError(ctx, &err) }()
	start := time.Now()
	if err := d.pool(ctx, &v, &undo); err != nil {
		return err
	}
	if err := d.dataset(ctx, &v, &undo); err != nil {
		return err
	}
	d.log.Info("Dataset in place", "device", v.Device, "pool", v.Pool, "dataset", v.Dataset, "mount_point", v.MountPoint, "dur", time.Since(start))
	return nil
}

// pool makes sure that the pool is there and lies on the device alone.
func (d *Driver) pool(ctx context.Context, v *Volume, undo *tool.Undo) error {
	out, err := d.run.Run(ctx, nil, "zpool", "list", "-H", "-o", "name")
	if err != nil {
		return tool.Explain("listing pools", err, "ZFS does not work in the pod VM (Debian package zfsutils-linux, kernel module zfs)")
	}
	if slices.Contains(strings.Split(string(out), "\n"), v.Pool) {
		return d.onDevice(ctx, v)
	}
	found, err := d.run.Signature(ctx, v.Device)
	if err != nil {
		return err
	}
	switch {
	case strings.HasPrefix(found, "zfs_member"): // on a whole disk with a partition table
		// -N: the host must not choose what gets mounted where.
		if _, err := d.run.Run(ctx, nil, "zpool", "import", "-N", "-d", v.Device, v.Pool); err != nil {
			return tool.Explain("importing the pool", err, "the pool cannot be imported")
		}
		undo.Add(func(ctx context.Context) error {
			_, err := d.run.Run(ctx, nil, "zpool", "export", v.Pool)
			return err
		})
		return d.onDevice(ctx, v)
	case v.Encrypted:
		return podvm.Explain(fmt.Errorf("%w: none, but %q", ErrPool, found), "there is no ZFS pool on the device")
	case found != "":
		return tool.Foreign(found)
	}
	d.log.Info("Making a pool on an empty device", "device", v.Device, "pool", v.Pool)
	if _, err := d.run.Run(ctx, nil, "zpool", "create", "-f", v.Pool, v.Device); err != nil {
		return tool.Explain("making the pool", err, "the pool cannot be made")
	}
	undo.Add(func(ctx context.Context) error {
		_, err := d.run.Run(ctx, nil, "zpool", "destroy", v.Pool)
		return err
	})
	return nil
}

// onDevice checks that the imported pool lies on the device of v. Of another
// pool of that name nothing may be touched.
func (d *Driver) onDevice(ctx context.Context, v *Volume) error {
	out, err := d.run.Run(ctx, nil, "zpool", "list", "-H", "-v", "-P", "-L", "-o", "name", v.Pool)
	if err != nil {
		return tool.Explain("looking at the pool", err, "the pool cannot be looked at")
	}
	var devices []string
	for line := range strings.Lines(string(out)) {
		name, _, _ := strings.Cut(strings.TrimSpace(line), "\t")
		if strings.HasPrefix(name, "/") {
			devices = append(devices, name)
		}
	}
	// zpool makes a partition on a whole disk and names that.
	if len(devices) != 1 || strings.TrimRight(strings.TrimPrefix(devices[0], v.Device), "p0123456789") != "" {
		return podvm.Explain(fmt.Errorf("%w: pool %s lies on %q", tool.ErrBusy, v.Pool, devices), "a pool of that name is in use on another device")
	}
	return nil
}

// dataset makes the dataset if there is none, loads its key and mounts it.
func (d *Driver) dataset(ctx context.Context, v *Volume, undo *tool.Undo) error {
	name := v.Pool + "/" + v.Dataset
	props, err := d.properties(ctx, name)
	if err != nil {
		return err
	}
	if props == nil && v.Encrypted {
		return podvm.Explain(fmt.Errorf("%w: no dataset %s", ErrPool, name), "there is no such dataset in the pool")
	}
	if props != nil {
		if !strings.HasPrefix(props["encryption"], "aes-") || props["keyformat"] != "passphrase" || props["encryptionroot"] != name {
			return podvm.Explain(fmt.Errorf("%w: %s is not encrypted", ErrPool, name), "the dataset is not encrypted with a key of its own")
		}
		if props["mounted"] == "yes" {
			if props["mountpoint"] == v.MountPoint {
				d.log.Info("Dataset is in place already", "pool", v.Pool, "dataset", v.Dataset, "mount_point", v.MountPoint)
				return nil
			}
			return podvm.Explain(fmt.Errorf("%w: %s is mounted elsewhere", tool.ErrBusy, name), "the dataset is mounted elsewhere")
		}
	}
	key, err := d.key(ctx, v)
	if err != nil {
		return err
	}
	defer key.Wipe()
	dir, _, err := tool.Directory(v.MountPoint, undo)
	if err != nil {
		return tool.Explain("preparing the mount point", err, "the mount point is not a directory, or cannot be made one")
	}
	defer dir.Close()
	if props == nil {
		return d.create(ctx, v, name, key, undo)
	}
	return d.load(ctx, v, name, props, key, undo)
}

// key gets the key, twice, each with a line end: zfs asks again where it can.
func (d *Driver) key(ctx context.Context, v *Volume) (podvm.Secret, error) {
	key, err := v.Key(ctx)
	if err != nil {
		return nil, tool.Explain("getting the key", err, "the key of the volume cannot be had")
	}
	defer key.Wipe()
	if len(key) < minKey || len(key) > maxKey || bytes.ContainsAny(key, "\n\x00") {
		return nil, podvm.Explain(fmt.Errorf("%w: %d bytes", tool.ErrKey, len(key)), "a key for ZFS is 8 to 512 bytes without line ends")
	}
	twice := make(podvm.Secret, 0, 2*len(key)+2)
	for range 2 {
		twice = append(append(twice, key...), '\n')
	}
	return twice, nil
}

func (d *Driver) create(ctx context.Context, v *Volume, name string, key podvm.Secret, undo *tool.Undo) error {
	_, err := d.run.Run(ctx, key, "zfs", "create", "-o", "encryption=aes-256-gcm", "-o", "keyformat=passphrase",
		"-o", "mountpoint="+v.MountPoint, name)
	if err != nil {
		return tool.Explain("making the dataset", err, "the encrypted dataset cannot be made")
	}
	undo.Add(func(ctx context.Context) error {
		_, err := d.run.Run(ctx, nil, "zfs", "destroy", name)
		return err
	})
	return nil
}

func (d *Driver) load(ctx context.Context, v *Volume, name string, props map[string]string, key podvm.Secret, undo *tool.Undo) error {
	if props["keystatus"] != "available" {
		if _, err := d.run.Run(ctx, key, "zfs", "load-key", name); err != nil {
			return tool.Explain("loading the key", fmt.Errorf("%w: %w", tool.ErrKey, err), "the key does not open the dataset")
		}
		undo.Add(func(ctx context.Context) error {
			_, err := d.run.Run(ctx, nil, "zfs", "unload-key", name)
			return err
		})
	}
	for _, args := range [][]string{
		{"set", "canmount=noauto", name}, {"set", "mountpoint=" + v.MountPoint, name}, {"mount", name},
	} {
		if _, err := d.run.Run(ctx, nil, "zfs", args...); err != nil {
			return tool.Explain("mounting the dataset", err, "the dataset cannot be mounted")
		}
	}
	return nil
}

// properties returns those of a dataset, nil when there is none of that name.
func (d *Driver) properties(ctx context.Context, name string) (map[string]string, error) {
	out, err := d.run.Run(ctx, nil, "zfs", "get", "-H", "-p", "-o", "property,value",
		"encryption,keyformat,encryptionroot,keystatus,mounted,mountpoint", name)
	var exit *tool.ExitError
	if errors.As(err, &exit) && strings.Contains(exit.Output, "does not exist") {
		return nil, nil
	}
	if err != nil {
		return nil, tool.Explain("looking at the dataset", err, "the dataset cannot be looked at")
	}
	props := map[string]string{}
	for line := range strings.Lines(string(out)) {
		if k, v, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "\t"); ok {
			props[k] = v
		}
	}
	return props, nil
}
