package luks

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/tool"
)

// dataOffset is where the data of a volume begins whose header is on the
// device: what cryptsetup itself leaves, in bytes.
const dataOffset = 16 << 20

// ephemeralHeader is the size of a header with the smallest areas, see
// formatArgs: twice the metadata, and the key slots.
const ephemeralHeader = 2*minHeaderSize + 512<<10

// passphrase is how a key that may be a pass phrase is stretched: as RFC 9106, §4,
// recommends where memory is scarce, as in small pod VMs, with one pass more
// because cryptsetup wants four. Left alone it takes up to 1 GiB. The cost is
// fixed, because what cryptsetup measures on a busy machine may be weak.
var passphrase = []string{"--pbkdf", "argon2id", "--pbkdf-memory", "65536", "--pbkdf-force-iterations", "4", "--pbkdf-parallel", "4"}

// formatArgs says how volumes are made. The order is upstream's, with the
// defaults of cryptsetup spelled out, which differ between versions.
func (d *Driver) formatArgs(v *Volume, header string) []string {
	args := []string{
		"--batch-mode", "luksFormat", "--type", "luks2", "--cipher", cipher, "--key-size", "512", "--hash", "sha256",
		"--sector-size", "4096", "--luks2-metadata-size", "16k",
	}
	if v.Key == nil {
		// A derivation makes guessing expensive. Nobody guesses 4096 random bytes,
		// so the cheapest is as good as one of seconds and a gigabyte. Nor are
		// there other key slots to leave room for, in a header kept in memory.
		args = append(args, "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--luks2-keyslots-size", "512k")
	} else {
		args = append(append(args, d.derivation...), "--offset", strconv.Itoa(dataOffset/512))
	}
	if v.Integrity {
		args = append(args, "--integrity", "hmac-sha256", "--integrity-no-wipe", "--integrity-no-journal")
	}
	return append(args, "--header", header, "--key-file", "-", "--", v.Device)
}

// format makes a new volume with its header in memory, opens it, and makes its
// file system. Last of all the header of a volume that stays goes to the device.
func (d *Driver) format(ctx context.Context, v *Volume, key podvm.Secret, name string, undo *tool.Undo) error {
	if v.Key == nil {
		d.log.Info("Making an ephemeral volume on an empty device", "device", v.Device)
	} else {
		// It may not have been empty before the host made it so.
		d.log.Warn("Making a new volume on an empty device; if it held one with this key, that is lost", "device", v.Device)
	}
	header := d.headerFile(v.Device)
	f, err := d.createHeader(header)
	if err != nil {
		return err
	}
	defer func() { _ = removeFile(header) }() // not needed once the volume is open
	defer f.Close()
	size := int64(dataOffset)
	if v.Key == nil {
		size = ephemeralHeader
	}
	if err := f.Truncate(size); err != nil {
		return tool.Explain("making a header file", err, "the header of the volume cannot be kept")
	}
	if _, err := d.run.Run(ctx, key, "cryptsetup", d.formatArgs(v, header)...); err != nil {
		return explainTool("formatting the device", err, "cryptsetup could not format the device")
	}
	area, err := readArea(f)
	if err != nil {
		return fmt.Errorf("reading the new header: %w", err)
	}
	if err := d.activate(ctx, v, area, key, name, undo); err != nil {
		return err
	}
	if v.Filesystem {
		if err := d.mkfs(ctx, d.node(name), v); err != nil {
			return err
		}
	}
	if v.Key == nil {
		return nil
	}
	if err := syncDevice(d.node(name)); err != nil {
		return tool.Explain("writing the new volume", err, "the new volume cannot be written")
	}
	return tool.Explain("writing the header", commit(v.Device, area), "the header of the new volume cannot be written")
}

// openExisting opens the volume on device with a checked copy of its header.
func (d *Driver) openExisting(ctx context.Context, v *Volume, device *os.File, key podvm.Secret, name string, undo *tool.Undo) error {
	area, err := readArea(device)
	if err != nil {
		return tool.Explain("reading the header", err, "the header of the volume cannot be read")
	}
	header := d.headerFile(v.Device)
	f, err := d.createHeader(header)
	if err != nil {
		return err
	}
	defer func() { _ = removeFile(header) }()
	defer f.Close()
	if _, err := f.Write(area); err != nil {
		return tool.Explain("copying the header", err, "there is no memory for the header of the volume")
	}
	if err := d.activate(ctx, v, area, key, name, undo); err != nil {
		return err
	}
	var magic [len("LUKS\xba\xbe")]byte
	if _, err := device.ReadAt(magic[:], 0); err == nil && !hasMagic(magic[:]) {
		d.log.Warn("Completing the header of a volume that was cut off when it was made", "device", v.Device)
		return tool.Explain("writing the header", commit(v.Device, area), "the header of the volume cannot be completed")
	}
	return nil
}

// activate opens the volume whose header is in area and in memory, and checks
// what came of it.
func (d *Driver) activate(ctx context.Context, v *Volume, area []byte, key podvm.Secret, name string, undo *tool.Undo) error {
	m, err := parseArea(area)
	if err != nil {
		return err
	}
	switch {
	case m.integrity != v.Integrity && m.integrity:
		return refused("the volume has data integrity, the request has not")
	case m.integrity != v.Integrity:
		return refused("the volume has no data integrity, the request asks for it")
	case v.Key != nil && m.offset < uint64(len(area)):
		return refused("the data overlaps it")
	}
	args := []string{"--batch-mode", "open", "--type", "luks2", "--header", d.headerFile(v.Device), "--key-file", "-"}
	if v.Integrity && v.Key == nil {
		args = append(args, "--integrity-no-journal") // after a crash there is nothing to recover
	}
	// A kill in the middle can leave a mapping, so this comes first.
	undo.Add(func(ctx context.Context) error {
		rec := &record{Mapper: name}
		m, err := d.dm.status(name)
		if err != nil {
			return err
		}
		if ok, err := d.ours(m, rec, v); err != nil || !ok {
			m = nil
		}
		return d.takeBack(ctx, rec, m, false, v)
	})
	if _, err := d.run.Run(ctx, key, "cryptsetup", append(args, "--", v.Device, name)...); err != nil {
		return explainTool("opening the volume", err, "cryptsetup could not open the volume")
	}
	return d.check(name, v, wants{m.offset, m.sectorSize, m.keySize, m.integrity})
}

// createHeader makes the file cryptsetup finds a header in.
func (d *Driver) createHeader(path string) (*os.File, error) {
	err := tool.PrivateDir(filepath.Dir(path))
	if err == nil {
		var f *os.File
		if f, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); err == nil {
			return f, nil
		}
	}
	return nil, tool.Explain("making a header file", err, "the header of the volume cannot be kept")
}

// explainTool gives the statuses of cryptsetup their meaning.
// Source: cryptsetup(8), RETURN CODES.
func explainTool(doing string, err error, cause string) error {
	var exit *tool.ExitError
	if errors.As(err, &exit) {
		switch {
		case strings.Contains(exit.Output, "device-mapper"):
			cause = "the kernel has no device-mapper with dm-crypt (modules dm_mod, dm_crypt; dm_integrity for dataIntegrity)"
		case exit.Code == 2:
			err = fmt.Errorf("%w: %w", ErrKey, err)
			cause = "the key does not open the volume"
		case exit.Code == 3:
			cause = "there is not enough memory to derive the key of the volume"
		case exit.Code == 5:
			err = fmt.Errorf("%w: %w", ErrBusy, err)
			cause = "the device or the mapper name is in use"
		}
	}
	return tool.Explain(doing, err, cause)
}

// carriesLUKS tells whether a LUKS header is on the device, one whose first copy
// was not written any more included.
func carriesLUKS(device *os.File) (bool, error) {
	first := make([]byte, binarySize)
	if _, err := device.ReadAt(first, 0); err != nil {
		return false, err
	}
	if hasMagic(first) {
		return true, nil
	}
	if len(bytes.Trim(first, "\x00")) > 0 {
		return false, nil
	}
	_, err := findSecondary(device)
	return err == nil, nil
}

// commit writes a header to the device. The two blocks that make a header of it
// go last, the second copy's first, each after everything before is on the disk:
// whatever is cut off, the device carries either nothing or a whole volume.
func commit(device string, area []byte) error {
	f, err := os.OpenFile(device, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	second := int64(binary.BigEndian.Uint64(area[offHeaderSize:])) // checked by parseArea
	for _, span := range [][2]int64{{second + binarySize, int64(len(area))}, {binarySize, second}, {second, second + binarySize}, {0, binarySize}} {
		if _, err := f.WriteAt(area[span[0]:span[1]], span[0]); err != nil {
			return err
		}
		if err := f.Sync(); err != nil {
			return err
		}
	}
	return f.Close()
}

func syncDevice(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
