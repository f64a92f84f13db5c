package mount

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/sealpod/sealpod/cdh/mount/luks"
	"github.com/sealpod/sealpod/cdh/mount/oss"
	"github.com/sealpod/sealpod/cdh/mount/zfs"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/hostrun"
	"github.com/sealpod/sealpod/podvm/tool"
)

// What callers of Mount may want to tell apart. Every error of Mount carries a
// cause, but the end of the context.
var (
	ErrOption  = tool.ErrOption // the request is malformed, or not supported
	ErrDevice  = errors.New("no such device")
	ErrBusy    = tool.ErrBusy    // device, name or mount point are in use
	ErrForeign = tool.ErrForeign // a device to be formatted carries data
	ErrKey     = tool.ErrKey     // the key does not open the volume
	ErrHeader  = luks.ErrHeader  // the LUKS2 header on the device was refused
	ErrMissing = tool.ErrMissing // a program is not installed
)

// Keys gets key bytes.
type Keys interface {
	// Key returns what source names: a sealed secret ("sealed."), a resource URI
	// or a file ("file://"). The caller wipes it.
	Key(ctx context.Context, source string) (podvm.Secret, error)
}

// Request is a SecureMount request as it arrives.
type Request struct {
	VolumeType string            // block-device or alibaba-cloud-oss
	Options    map[string]string // see the fields of blockDevice and ossVolume
	Flags      []string          // ignored, as upstream does
	MountPoint string            // absolute
}

// Config says what a Mounter works with.
type Config struct {
	Keys Keys
	Host podvm.Host
	Log  *slog.Logger // nil is slog.Default()
}

// Mounter fulfils requests. It is safe for concurrent use: requests for one
// device wait for each other, others do not.
type Mounter struct {
	keys Keys
	host podvm.Host
	log  *slog.Logger
	luks *luks.Driver
	zfs  *zfs.Driver
	oss  *oss.Driver
}

// New returns a Mounter. It touches nothing.
func New(cfg Config) (*Mounter, error) {
	if cfg.Keys == nil {
		return nil, errors.New("preparing secure mounts: no source of keys")
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	return &Mounter{
		keys: cfg.Keys, host: cfg.Host, log: cfg.Log,
		luks: luks.New(luks.Config{Host: cfg.Host, Log: cfg.Log}),
		zfs:  zfs.New(zfs.Config{Host: cfg.Host, Log: cfg.Log}),
		oss:  oss.New(oss.Config{Host: cfg.Host, Log: cfg.Log, Unseal: cfg.Keys.Key}),
	}, nil
}

// Mount fulfils req. The same request again succeeds and changes nothing, as
// long as its volume is in place. A request that fails or is cancelled is taken
// back. Options nobody reads are logged.
//
// Errors: those above, and the cause of ctx.
func (m *Mounter) Mount(ctx context.Context, req Request) error {
	point, err := mountPoint(req.MountPoint)
	if err != nil {
		return fmt.Errorf("reading the request: %w", err)
	}
	if m.host.Getenv(hostrun.Env) != "" && !strings.HasPrefix(point, "/run/") {
		return fmt.Errorf("reading the request: %w", tool.Option("mount_point: nobody but the data hub would see what is mounted outside of /run"))
	}
	o, err := newOptions(req.Options)
	if err != nil {
		return fmt.Errorf("reading the request: %w", err)
	}
	switch req.VolumeType {
	case "block-device":
		err = m.blockDevice(ctx, o, point, digest(req))
	case "alibaba-cloud-oss":
		err = m.ossVolume(ctx, o, point, digest(req))
	default:
		return tool.Option("volume type %q: want block-device or alibaba-cloud-oss", podvm.Printable(req.VolumeType, 64))
	}
	if err != nil {
		return fmt.Errorf("mounting %s: %w", point, err)
	}
	return nil
}

func (m *Mounter) blockDevice(ctx context.Context, o *options, point, digest string) error {
	b, err := parseBlockDevice(o)
	if err != nil {
		return fmt.Errorf("reading the request: %w", err)
	}
	m.unknown(o)
	device, number, err := m.device(b)
	if err != nil {
		return err
	}
	var key func(context.Context) (podvm.Secret, error)
	if b.key != "" {
		key = func(ctx context.Context) (podvm.Secret, error) { return m.keys.Key(ctx, b.key) }
	}
	point = m.host.Path(point)
	if b.zfs {
		return m.zfs.Mount(ctx, zfs.Volume{
			Device: device, Encrypted: b.encrypted, Key: key, Pool: b.pool, Dataset: b.dataset, MountPoint: point,
		})
	}
	return m.luks.Mount(ctx, luks.Volume{
		Device: device, Number: number, Encrypted: b.encrypted, Key: key, Integrity: b.integrity,
		MapperName: b.mapperName, Filesystem: b.filesystem, MkfsOptions: b.mkfsOptions, MountPoint: point, Digest: digest,
	})
}

func (m *Mounter) ossVolume(ctx context.Context, o *options, point, digest string) error {
	v, err := parseOSS(o)
	if err != nil {
		return fmt.Errorf("reading the request: %w", err)
	}
	m.unknown(o)
	v.MountPoint, v.Digest = m.host.Path(point), digest
	return m.oss.Mount(ctx, v)
}

func (m *Mounter) unknown(o *options) {
	if names := o.unread(); len(names) > 0 {
		m.log.Warn("Options nobody reads", "options", names)
	}
}
