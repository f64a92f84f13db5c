package luks

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/tool"
)

// Sentinels of this package and its siblings.
var (
	ErrBusy    = tool.ErrBusy    // a device, a mapper name or a mount point is in use
	ErrForeign = tool.ErrForeign // a device to be formatted carries data
	ErrKey     = tool.ErrKey     // the key does not open the volume, or is none
)

// Volume is what one request asks for, checked.
type Volume struct {
	Device string // of a block device or image file, as Host has it, without links
	Number uint64 // st_rdev of the device, 0 for an image file
	// Encrypted says that the device must carry a LUKS2 header already. Otherwise
	// a volume is made, unless Key is set and the device carries one. Where
	// anything else is found, none is made.
	Encrypted bool
	// Key gets the key of a volume that stays. It is called before the device is
	// changed, and not at all when there is nothing to do. nil is a volume that
	// ends with the boot. Mount wipes what it returns.
	Key        func(context.Context) (podvm.Secret, error)
	Integrity  bool   // dm-integrity with HMAC-SHA256
	MapperName string // below /dev/mapper; "" is a random one
	// Filesystem says to mount an ext4 on MountPoint; otherwise MountPoint
	// becomes a symbolic link to the mapping.
	Filesystem  bool
	MkfsOptions []string // from MkfsOptions
	MountPoint  string   // absolute, as Host has it
	Digest      string   // tells two requests apart
}

// Config says what a Driver works with.
type Config struct {
	Host podvm.Host
	Log  *slog.Logger // nil is slog.Default()
}

// Driver opens and makes LUKS2 volumes. It is safe for concurrent use, by
// several processes too.
type Driver struct {
	host podvm.Host
	log  *slog.Logger
	run  tool.Runner
	dm   mappings
	// derivation is the options of cryptsetup for new volumes that stay.
	derivation []string
}

// New returns a Driver.
func New(cfg Config) *Driver {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	return &Driver{host: cfg.Host, log: cfg.Log, run: tool.Runner{Host: cfg.Host}, dm: kernel{cfg.Host}, derivation: passphrase}
}

// ephemeralKeySize is upstream's, in bytes.
const ephemeralKeySize = 4096

// ephemeralTrace is what blkid finds where an ephemeral volume with data
// integrity was: the superblock of dm-integrity at offset 0. Whatever is behind
// it belongs to a key that is forgotten. Without integrity nothing is found.
const ephemeralTrace = "DM_integrity"

// Mount opens or makes the volume v and puts it where v says. The same request
// again succeeds without doing anything; after a crash it first takes back what
// was done half. When Mount fails, it leaves nothing behind but, on a device
// that was empty, unreadable bytes or a new volume under the key that was given.
//
// Errors, all with a cause: ErrBusy, ErrForeign, ErrHeader, ErrKey, those of
// v.Key and of programs, the cause of ctx.
func (d *Driver) Mount(ctx context.Context, v Volume) (err error) {
	unlock, err := tool.Lock(ctx, d.file(recordDir, v.Device, ".lock"))
	if err != nil {
		return err
	}
	defer unlock()
	if done, err := d.resume(ctx, &v); err != nil || done {
		return err
	}
	if err := d.claim(&v); err != nil {
		return err
	}
	var undo tool.Undo
	defer func() { undo.OnError(ctx, &err) }()

	name := v.MapperName
	if name == "" {
		name = uuid.NewString()
	}
	if m, err := d.dm.status(name); err != nil {
		return podvm.Explain(err, "the device-mapper does not answer")
	} else if m != nil {
		return podvm.Explain(fmt.Errorf("%w: mapper name %s", ErrBusy, name), "the mapper name is in use by another volume")
	}
	// From here on a kill leaves a trace that the next call follows.
	rec := &record{Number: v.Number, Mapper: name, MountPoint: v.MountPoint, Filesystem: v.Filesystem, Digest: v.Digest}
	if err := d.save(v.Device, rec); err != nil {
		return podvm.Explain(err, "the state of the volume cannot be kept")
	}
	undo.Add(func(context.Context) error { return d.forget(v.Device) })

	start := time.Now()
	how, err := d.open(ctx, &v, name, &undo)
	if err != nil {
		return err
	}
	if err := d.attach(ctx, &v, name, &undo); err != nil {
		return err
	}
	rec.Done = true
	if err := d.save(v.Device, rec); err != nil {
		return podvm.Explain(err, "the state of the volume cannot be kept")
	}
	d.log.Info("Volume in place", "device", v.Device, "mapper", name, "mount_point", v.MountPoint, "how", how, "dur", time.Since(start))
	return nil
}

// open makes the mapping called name, with a file system on it if a new volume
// is to have one, and says how.
func (d *Driver) open(ctx context.Context, v *Volume, name string, undo *tool.Undo) (how string, err error) {
	if v.Key == nil {
		if v.Encrypted {
			return "", podvm.Explain(fmt.Errorf("%w: none given", ErrKey), "an encrypted volume needs a key")
		}
		if found, err := d.run.Signature(ctx, v.Device); err != nil {
			return "", err
		} else if found != "" && found != ephemeralTrace {
			return "", tool.Foreign(found)
		}
		key := make(podvm.Secret, ephemeralKeySize)
		defer key.Wipe()
		if _, err := rand.Read(key); err != nil {
			return "", fmt.Errorf("making a key: %w", err)
		}
		return "ephemeral", d.format(ctx, v, key, name, undo)
	}
	device, err := os.OpenFile(v.Device, os.O_RDWR, 0)
	if err != nil {
		return "", tool.Explain("opening the device", err, "the device cannot be opened")
	}
	defer device.Close()
	present, err := carriesLUKS(device)
	if err != nil {
		return "", tool.Explain("reading the device", err, "the device cannot be read")
	}
	if v.Encrypted && !present {
		return "", refused("there is none")
	}
	if !present {
		if found, err := d.run.Signature(ctx, v.Device); err != nil {
			return "", err
		} else if found != "" {
			return "", tool.Foreign(found)
		}
	}
	key, err := v.Key(ctx)
	if err != nil {
		return "", tool.Explain("getting the key", err, "the key of the volume cannot be had")
	}
	defer key.Wipe()
	if len(key) == 0 || len(key) > tool.MaxInput {
		return "", podvm.Explain(fmt.Errorf("%w: %d bytes", ErrKey, len(key)), "the key is empty or larger than 64 KiB")
	}
	if present {
		return "opened", d.openExisting(ctx, v, device, key, name, undo)
	}
	return "made", d.format(ctx, v, key, name, undo)
}

// claim checks that nobody uses the device: no mount, no mapping, no RAID, nor
// another program that keeps its header. There is no record, so a header is not
// of this one.
func (d *Driver) claim(v *Volume) error {
	if _, err := os.Lstat(d.headerFile(v.Device)); !errors.Is(err, os.ErrNotExist) {
		return podvm.Explain(fmt.Errorf("%w: %w", ErrBusy, errors.Join(err, os.ErrExist)), "another program keeps a LUKS header for the device in "+headerDir)
	}
	busy := func(err error) error {
		return podvm.Explain(fmt.Errorf("%w: %s: %w", ErrBusy, v.Device, err), "the device is in use: it is mounted, or part of another device")
	}
	if v.Number == 0 {
		loop, err := d.loopOf(v.Device)
		if err != nil {
			return tool.Explain("looking for loop devices", err, "the loop devices cannot be listed")
		}
		if loop != "" {
			return busy(fmt.Errorf("as %s", loop))
		}
		return nil
	}
	f, err := os.OpenFile(v.Device, os.O_RDWR|unix.O_EXCL, 0)
	if errors.Is(err, unix.EBUSY) {
		return busy(err)
	}
	if err != nil {
		return tool.Explain("opening the device", err, "the device cannot be opened for writing")
	}
	return f.Close()
}
