package mount

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/sealpod/sealpod/cdh/mount/luks"
	"github.com/sealpod/sealpod/cdh/mount/zfs"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/tool"
)

// blockDevice is a block-device request, parsed.
// Source: guest-components
// confidential-data-hub/hub/src/storage/{volume_type/blockdevice,drivers} at
// 8246e5e.
type blockDevice struct {
	major, minor uint32 // deviceId
	byNumber     bool   // deviceId is given, and wins
	path         string // devicePath
	encrypted    bool   // sourceType is encrypted, not empty
	key          string // where the key comes from; "" is a random one
	zfs          bool   // encryptionType is zfs, not luks2

	filesystem  bool // targetType is fileSystem, not device
	integrity   bool
	mapperName  string
	mkfsOptions []string

	pool, dataset string
}

func parseBlockDevice(o *options) (*blockDevice, error) {
	b := &blockDevice{}
	if err := b.parseDevice(o); err != nil {
		return nil, err
	}
	source, err := o.choice("sourceType", "empty", "encrypted")
	if err != nil {
		return nil, err
	}
	b.encrypted = source == "encrypted"
	if key, ok := o.get("key"); ok {
		if key == "" {
			return nil, tool.Option("option %q is empty; leave it out for a random key", "key")
		}
		b.key = key
	}
	if b.encrypted && b.key == "" {
		return nil, tool.Option("an encrypted volume needs the option %q", "key")
	}
	kind, err := o.choice("encryptionType", "luks2", "zfs")
	if err != nil {
		return nil, err
	}
	if b.zfs = kind == "zfs"; b.zfs {
		return b, b.parseZFS(o)
	}
	return b, b.parseLUKS(o)
}

func (b *blockDevice) parseDevice(o *options) error {
	id, byNumber := o.get("deviceId")
	p, byPath := o.get("devicePath")
	switch {
	case byNumber:
		major, minor, ok := strings.Cut(id, ":")
		var err1, err2 error
		b.major, err1 = decimal(major)
		b.minor, err2 = decimal(minor)
		if !ok || err1 != nil || err2 != nil {
			return tool.Option("deviceId %q is not MAJOR:MINOR", podvm.Printable(id, 64))
		}
		b.byNumber = true
	case byPath:
		if err := absolute(p); err != nil {
			return tool.Option("devicePath: %v", err)
		}
		b.path = p
	default:
		return tool.Option("option deviceId or devicePath is missing")
	}
	return nil
}

func decimal(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err == nil && strconv.FormatUint(n, 10) != s {
		err = strconv.ErrSyntax
	}
	return uint32(n), err
}

func (b *blockDevice) parseLUKS(o *options) error {
	target, err := o.choice("targetType", "device", "fileSystem")
	if err != nil {
		return err
	}
	b.filesystem = target == "fileSystem"
	b.integrity = o.or("dataIntegrity", "") == "true"
	if name, ok := o.get("mapperName"); ok {
		if !validMapperName(name) {
			return tool.Option("mapperName %q is not one", podvm.Printable(name, 64))
		}
		b.mapperName = name
	}
	if !b.filesystem {
		return nil
	}
	if kind := o.or("filesystemType", "ext4"); kind != "ext4" {
		return tool.Option("filesystemType %q is not supported, want ext4", podvm.Printable(kind, 64))
	}
	b.mkfsOptions, err = luks.MkfsOptions(o.or("mkfsOpts", ""))
	return err
}

// validMapperName admits what device-mapper takes without escaping, less names
// that would be something else as a path or as an option of a program. Room is
// left for the suffix of an integrity layer.
func validMapperName(name string) bool {
	const maxName, suffix = 127, len("_dif")
	return name != "" && len(name) <= maxName-suffix && name[0] != '-' && name != "." && name != ".." && name != "control" &&
		strings.Trim(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789#+-.:=@_") == ""
}

func (b *blockDevice) parseZFS(o *options) error {
	if b.key == "" {
		return tool.Option("a zfs volume needs the option %q", "key")
	}
	_, _ = o.get("targetType") // upstream's callers send it
	b.pool, b.dataset = o.or("pool", "zpool"), o.or("dataset", "zdataset")
	return zfs.CheckNames(b.pool, b.dataset)
}

// device finds the block device or image file, without links, and its number,
// which is 0 for a file.
func (m *Mounter) device(b *blockDevice) (path string, number uint64, err error) {
	path = m.host.Path(b.path)
	if b.byNumber {
		if path, err = m.deviceByNumber(b.major, b.minor); err != nil {
			return "", 0, err
		}
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return "", 0, podvm.Explain(fmt.Errorf("%w: %w", ErrDevice, err), "the device does not exist")
		}
		return "", 0, podvm.Explain(fmt.Errorf("%w: %w", ErrDevice, err), "the device cannot be found")
	}
	if len(real) > 180 { // its name, encoded, is part of a file name
		return "", 0, tool.Option("the path of the device is too long")
	}
	info, err := os.Stat(real)
	if err != nil {
		return "", 0, podvm.Explain(fmt.Errorf("%w: %w", ErrDevice, err), "the device cannot be found")
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !ok || !info.Mode().IsRegular() && st.Mode&syscall.S_IFMT != syscall.S_IFBLK:
		return "", 0, podvm.Explain(fmt.Errorf("%w: %s is %s", ErrDevice, real, info.Mode().Type()), "the device is neither a block device nor an image file")
	case info.Mode().IsRegular():
		return real, 0, nil
	}
	return real, st.Rdev, nil
}

// deviceByNumber returns the node the kernel names for a device number.
func (m *Mounter) deviceByNumber(major, minor uint32) (string, error) {
	uevent := m.host.Path(fmt.Sprintf("/sys/dev/block/%d:%d/uevent", major, minor))
	raw, err := podvm.ReadFileMax(uevent, 64<<10)
	if err != nil {
		return "", podvm.Explain(fmt.Errorf("%w: %w", ErrDevice, err), fmt.Sprintf("there is no block device %d:%d", major, minor))
	}
	for line := range strings.Lines(string(raw)) {
		name, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "DEVNAME=")
		if !ok {
			continue
		}
		if absolute("/"+name) != nil || !filepath.IsLocal(name) {
			break
		}
		return m.host.Path("/dev/" + name), nil
	}
	return "", podvm.Explain(fmt.Errorf("%w: %s names none", ErrDevice, uevent), fmt.Sprintf("block device %d:%d has no name", major, minor))
}
