package luks

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm"
)

// mapping is an active device-mapper device with its first target. The key is
// not kept.
type mapping struct {
	number  uint64 // device number, as in st_rdev
	open    int32  // users, mounts among them
	targets uint32
	start   uint64 // sector of the first target, of 512 bytes
	kind    string // of the first target: crypt, integrity
	cipher  string // crypt
	keySize int    // crypt, in bytes
	ivOff   string // crypt
	below   string // MAJ:MIN the target lies on
	offset  string // sectors of 512 bytes on below
	tagSize string // integrity, in bytes
	options []string
}

// mappings is the device-mapper of a kernel.
type mappings interface {
	// status returns the mapping called name, nil if there is none.
	status(name string) (*mapping, error)
	// remove takes away a mapping that nobody uses.
	remove(name string) error
}

// kernel is the device-mapper of the running kernel. cryptsetup and dmsetup can
// both print a table, but the one reads the header of the device for it, which
// the host may have changed, and the other is a package more.
// Source: linux v6.12 include/uapi/linux/dm-ioctl.h.
type kernel struct{ host podvm.Host }

const (
	dmHeader   = 312 // struct dm_ioctl
	dmTarget   = 40  // struct dm_target_spec
	dmBuffer   = 16 << 10
	dmRemove   = 4
	dmStatus   = 12
	dmTable    = 1 << 4  // DM_STATUS_TABLE_FLAG
	dmFull     = 1 << 8  // DM_BUFFER_FULL_FLAG
	dmSecure   = 1 << 15 // DM_SECURE_DATA_FLAG
	maxName    = 127
	controlDev = "/dev/mapper/control"
)

func (k kernel) control(command uintptr, name string, flags uint32) ([]byte, error) {
	if name == "" || len(name) > maxName {
		return nil, fmt.Errorf("a mapper name of %d bytes", len(name))
	}
	f, err := os.OpenFile(k.host.Path(controlDev), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	buf := make([]byte, dmBuffer)
	for i, v := range []uint32{4, 0, 0, dmBuffer, dmHeader} { // version, data_size, data_start
		binary.NativeEndian.PutUint32(buf[4*i:], v)
	}
	binary.NativeEndian.PutUint32(buf[28:], flags)
	copy(buf[48:], name)
	request := uintptr(3)<<30 | dmHeader<<16 | 0xfd<<8 | command // _IOWR(DM_IOCTL, command, struct dm_ioctl)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(unsafe.Pointer(&buf[0]))); errno != 0 {
		clear(buf)
		return nil, errno
	}
	return buf, nil
}

func (k kernel) status(name string) (*mapping, error) {
	buf, err := k.control(dmStatus, name, dmTable|dmSecure)
	if errors.Is(err, unix.ENXIO) || errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("asking for the mapping %s: %w", name, err)
	}
	defer clear(buf) // the table of a mapping can hold its key
	m, err := parseStatus(buf)
	if err != nil {
		return nil, fmt.Errorf("asking for the mapping %s: %w", name, err)
	}
	return m, nil
}

func (k kernel) remove(name string) error {
	_, err := k.control(dmRemove, name, 0)
	if errors.Is(err, unix.ENXIO) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("removing the mapping %s: %w", name, err)
	}
	// With udev this is gone by then, without it nobody else removes it.
	if err := os.Remove(k.host.Path("/dev/mapper/" + name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

var errTable = errors.New("the kernel's table is not understood")

// parseStatus reads what DM_TABLE_STATUS returns.
func parseStatus(buf []byte) (*mapping, error) {
	if len(buf) < dmHeader {
		return nil, errTable
	}
	m := &mapping{
		targets: binary.NativeEndian.Uint32(buf[20:]),
		open:    int32(binary.NativeEndian.Uint32(buf[24:])),
		number:  binary.NativeEndian.Uint64(buf[40:]),
	}
	if binary.NativeEndian.Uint32(buf[28:])&dmFull != 0 {
		return nil, errTable
	}
	if m.targets == 0 {
		return m, nil // created, and not loaded yet
	}
	at := uint64(binary.NativeEndian.Uint32(buf[16:]))
	if at+dmTarget > uint64(len(buf)) {
		return nil, errTable
	}
	target := buf[at:]
	m.start = binary.NativeEndian.Uint64(target)
	kind, _, _ := bytes.Cut(target[24:dmTarget], []byte{0})
	m.kind = string(kind)
	params, _, ended := bytes.Cut(target[dmTarget:], []byte{0})
	if !ended {
		return nil, errTable
	}
	return m, m.parse(bytes.Fields(params))
}

// parse reads the parameters of the first target.
// Source: linux v6.12 Documentation/admin-guide/device-mapper/{dm-crypt,dm-integrity}.rst.
func (m *mapping) parse(f [][]byte) error {
	switch m.kind {
	case "crypt": // cipher key iv_offset device offset [n options]
		if len(f) < 5 {
			return errTable
		}
		m.cipher, m.ivOff, m.below, m.offset = string(f[0]), string(f[2]), string(f[3]), string(f[4])
		m.keySize = len(f[1]) / 2 // hexadecimal
		if rest, ok := bytes.CutPrefix(f[1], []byte(":")); ok {
			size, _, _ := bytes.Cut(rest, []byte(":"))
			m.keySize, _ = strconv.Atoi(string(size))
		}
		for _, o := range f[5:] {
			m.options = append(m.options, string(o))
		}
	case "integrity": // device reserved tag_size mode n options
		if len(f) < 4 {
			return errTable
		}
		m.below, m.offset, m.tagSize = string(f[0]), string(f[1]), string(f[2])
	default:
		if len(f) > 0 {
			m.below = string(f[0]) // linear and the like
		}
	}
	return nil
}

func (m *mapping) has(option string) bool {
	for _, o := range m.options {
		if o == option {
			return true
		}
	}
	return false
}

// majorMinor writes a device number as tables have it.
func majorMinor(number uint64) string {
	return fmt.Sprintf("%d:%d", unix.Major(number), unix.Minor(number))
}

// wants is what a mapping has to be.
type wants struct {
	offset, sectorSize, keySize uint64 // in bytes
	integrity                   bool
}

// errMapping says that cryptsetup made something else than it was told to.
var errMapping = errors.New("the mapping is not what was asked for")

// check compares the mapping called name with w and with the device it must
// lie on.
func (d *Driver) check(name string, v *Volume, w wants) error {
	m, err := d.dm.status(name)
	if err != nil {
		return err
	}
	differs := func(what, got string) error {
		return podvm.Explain(fmt.Errorf("%w: %s is %q", errMapping, what, podvm.Printable(got, 64)),
			"the opened volume is not what was asked for: "+what)
	}
	if m == nil {
		return differs("the mapping", "missing")
	}
	wantCipher, lower := cipher, m
	if w.integrity {
		wantCipher = "capi:authenc(" + integrityHMAC + ",xts(aes))-plain64"
		if lower, err = d.dm.status(name + "_dif"); err != nil {
			return err
		}
		switch {
		case lower == nil || lower.kind != "integrity" || lower.tagSize != strconv.Itoa(hmacKeySize):
			return differs("the integrity layer", "missing")
		case m.below != majorMinor(lower.number):
			return differs("the device below", m.below)
		case !m.has("integrity:32:aead"):
			return differs("the integrity option", strings.Join(m.options, " "))
		}
	}
	switch {
	case lower.offset != strconv.FormatUint(w.offset/512, 10):
		return differs("the offset", lower.offset)
	case m.targets != 1 || m.start != 0 || m.kind != "crypt":
		return differs("the table", m.kind)
	case m.cipher != wantCipher:
		return differs("the cipher", m.cipher)
	case uint64(m.keySize) != w.keySize:
		return differs("the key size", strconv.Itoa(m.keySize))
	case m.ivOff != "0":
		return differs("the IV offset", m.ivOff)
	case w.sectorSize != 512 && !m.has("sector_size:"+strconv.FormatUint(w.sectorSize, 10)):
		return differs("the sector size", strings.Join(m.options, " "))
	case !d.liesOn(lower, v):
		return differs("the device", lower.below)
	}
	return nil
}

// liesOn tells whether m lies directly on the device of v. For an image file
// that is the loop device cryptsetup made for it.
func (d *Driver) liesOn(m *mapping, v *Volume) bool {
	if v.Number != 0 {
		return m.below == majorMinor(v.Number)
	}
	if strings.Trim(m.below, "0123456789:") != "" {
		return false
	}
	b, err := podvm.ReadFileMax(d.host.Path("/sys/dev/block/"+m.below+"/loop/backing_file"), 8<<10)
	return err == nil && strings.TrimSuffix(string(b), "\n") == v.Device
}
