// Package scratch gives a pod VM room for images and containers that is not its
// memory: the partition trusted_store of its own disk, encrypted and authenticated
// under a key that nobody keeps, with an ext4 on it, mounted where images go.
//
// Data path: systemd-repart makes the partition at boot out of what the disk has
// left, scratch-storage.service runs Mount, kata-agent and the data hub find the
// room.
//
// Trust: the disk belongs to the host. It can give the label to any disk, and so
// have that one overwritten, but only where blkid finds nothing on it, or the empty
// file system that systemd-repart leaves there, or an earlier scratch volume. It
// reads and changes nothing of what is in the volume.
// Source: cloud-api-adaptor podvm/files/usr/local/bin/setup-scratch-storage at
// fbdde756.
package scratch

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/cdh/mount/luks"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/tool"
)

// Label is what the partition is called, or the file system that systemd-repart
// makes on it.
const Label = "trusted_store"

// ErrDevice says that there is not exactly one device with the label, or that it
// is no block device.
var ErrDevice = errors.New("no device for scratch storage")

const (
	findTime  = 30 * time.Second // udev may still have to read labels
	findPause = 100 * time.Millisecond
	// superblocks is how many bytes at the start of a device hold all that makes
	// it an ext4 for blkid.
	superblocks = 64 << 10
)

// Config says what Mount works with.
type Config struct {
	Host podvm.Host
	Log  *slog.Logger // nil is slog.Default()
}

type storage struct {
	Config
	run  tool.Runner
	luks *luks.Driver
	// links are the directories of udev's links by label, point is where images
	// go; tests have others.
	links []string
	point string
	find  time.Duration
}

// Mount makes the scratch volume and mounts it on podvm.ImageWorkDir. It can be
// repeated, and then changes nothing.
//
// Errors, all but the first with a cause: ErrDevice, luks.ErrBusy, luks.ErrForeign,
// those of programs, the cause of ctx.
func Mount(ctx context.Context, c Config) error { return newStorage(c).mount(ctx) }

func newStorage(c Config) *storage {
	if c.Log == nil {
		c.Log = slog.Default()
	}
	return &storage{
		Config: c, run: tool.Runner{Host: c.Host}, luks: luks.New(luks.Config{Host: c.Host, Log: c.Log}),
		links: []string{c.Host.Path("/dev/disk/by-partlabel"), c.Host.Path("/dev/disk/by-label")},
		point: c.Host.Path(filepath.Clean(podvm.ImageWorkDir)), find: findTime,
	}
}

func (s *storage) mount(ctx context.Context) error {
	device, number, err := s.device(ctx)
	if err != nil {
		return err
	}
	if err := s.clear(ctx, device, number); err != nil {
		return fmt.Errorf("preparing %s: %w", device, err)
	}
	// Nothing here outlives a crash, so there is no use for a journal.
	options, err := luks.MkfsOptions("-O ^has_journal -m 0")
	if err != nil {
		return err
	}
	if err := s.luks.Mount(ctx, luks.Volume{
		Device: device, Number: number, Integrity: true, MapperName: "scratch",
		Filesystem: true, MkfsOptions: options, MountPoint: s.point, Digest: "scratch",
	}); err != nil {
		return fmt.Errorf("mounting scratch storage from %s: %w", device, err)
	}
	return nil
}

// device waits for the one device with the label.
func (s *storage) device(ctx context.Context) (path string, number uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.find)
	defer cancel()
	tick := time.NewTicker(findPause)
	defer tick.Stop()
	for {
		found, err := s.labelled()
		switch {
		case err != nil:
			return "", 0, err
		case len(found) > 1:
			return "", 0, fmt.Errorf("%w: %d have the label %s: %q", ErrDevice, len(found), Label, found)
		case len(found) == 1:
			var st unix.Stat_t
			if err := unix.Stat(found[0], &st); err != nil {
				return "", 0, fmt.Errorf("%w: %s: %w", ErrDevice, found[0], err)
			}
			if st.Mode&unix.S_IFMT != unix.S_IFBLK {
				return "", 0, fmt.Errorf("%w: %s is not a block device", ErrDevice, found[0])
			}
			return found[0], st.Rdev, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return "", 0, fmt.Errorf("%w: none has the label %s (does the image have a partition for it?): %w", ErrDevice, Label, context.Cause(ctx))
		}
	}
}

// labelled returns the devices with the label, without links.
func (s *storage) labelled() ([]string, error) {
	var found []string
	for _, dir := range s.links {
		real, err := filepath.EvalSymlinks(filepath.Join(dir, Label))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrDevice, err)
		}
		if !slices.Contains(found, real) {
			found = append(found, real)
		}
	}
	return found, nil
}

// clear takes away the file system that systemd-repart made, which is what the
// label says, while it is empty. Package luks refuses anything else. number is the
// device's, 0 for a file.
func (s *storage) clear(ctx context.Context, device string, number uint64) (err error) {
	out, err := s.run.Run(ctx, nil, "blkid", "--probe", "--output", "export", "--", device)
	var exit *tool.ExitError
	if errors.As(err, &exit) {
		return nil // nothing on it, or nothing clear: for luks to judge
	}
	if err != nil {
		return err
	}
	if !isPlaceholder(out) {
		return nil
	}
	f, err := os.OpenFile(device, os.O_RDWR|unix.O_EXCL, 0)
	if errors.Is(err, unix.EBUSY) {
		return podvm.Explain(fmt.Errorf("%w: %w", luks.ErrBusy, err), "the device for scratch storage is in use")
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	if st.Rdev != number {
		return fmt.Errorf("%w: %s is another device by now", ErrDevice, device)
	}
	if empty, err := isEmpty(f); err != nil || !empty {
		return err
	}
	s.Log.Info("Clearing the file system that stands for scratch storage", "device", device)
	if _, err := f.WriteAt(make([]byte, superblocks), 0); err != nil {
		return err
	}
	return f.Sync()
}

// isPlaceholder tells whether blkid found an ext4 with the label and nothing else.
func isPlaceholder(out []byte) bool {
	values := map[string]string{}
	for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
		key, value, ok := bytes.Cut(lines.Bytes(), []byte("="))
		if _, twice := values[string(key)]; !ok || twice {
			return false
		}
		values[string(key)] = string(value)
	}
	_, table := values["PTTYPE"]
	return values["TYPE"] == "ext4" && values["LABEL"] == Label && !table
}

// isEmpty tells whether the ext4 in f has no files. One that was not unmounted does
// not say, and counts as one that has.
// Source: Linux Documentation/filesystems/ext4/super.rst at v6.12.
func isEmpty(f io.ReaderAt) (bool, error) {
	var super [1024]byte
	if _, err := f.ReadAt(super[:], 1024); err != nil {
		return false, err
	}
	le := binary.LittleEndian
	const magic, clean, firstInode, orphanFile, recover = 0xef53, 1, 11, 0x1000, 0x4
	made := uint32(firstInode) // reserved ones, and that of lost+found
	if le.Uint32(super[0x5c:])&orphanFile != 0 {
		made++
	}
	inodes, free := le.Uint32(super[0x0:]), le.Uint32(super[0x10:])
	return le.Uint16(super[0x38:]) == magic && le.Uint16(super[0x3a:]) == clean && le.Uint32(super[0x60:])&recover == 0 &&
		le.Uint32(super[0x54:]) == firstInode && inodes-free == made, nil
}
