package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm/image/internal/bootspec"
)

// The kernel's device-mapper.
// Source: linux v6.12 include/uapi/linux/dm-ioctl.h.
const (
	dmHeader   = 312 // struct dm_ioctl
	dmTarget   = 40  // struct dm_target_spec
	dmCreate   = 3
	dmResume   = 6 // DM_DEV_SUSPEND without its flag
	dmLoad     = 9
	dmReadOnly = 1 << 0
	dmName     = "root"
)

// openVerity makes the device that has the verified content of data. A block
// that is not as it was built panics the kernel.
// Source: linux v6.12 Documentation/admin-guide/device-mapper/verity.rst.
func openVerity(spec *bootspec.Spec, data, hashes string) (device string, err error) {
	control, err := os.OpenFile("/dev/mapper/control", os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	defer control.Close()
	table := fmt.Sprintf("1 %s %s %d %d %d 1 sha256 %s %s 1 panic_on_corruption",
		data, hashes, bootspec.BlockSize, bootspec.BlockSize, spec.Blocks, spec.RootHash, spec.Salt)
	id := "CRYPT-VERITY-" + strings.ReplaceAll(spec.UUID, "-", "") + "-" + dmName
	if _, err := dm(control, dmCreate, 0, id, nil); err != nil {
		return "", fmt.Errorf("making the device: %w", err)
	}
	if _, err := dm(control, dmLoad, dmReadOnly, "", target(spec.Blocks*bootspec.BlockSize/512, table)); err != nil {
		return "", fmt.Errorf("loading its table: %w", err)
	}
	number, err := dm(control, dmResume, 0, "", nil)
	if err != nil {
		return "", fmt.Errorf("starting it: %w", err)
	}
	return fmt.Sprintf("/dev/dm-%d", unix.Minor(number)), nil
}

// target is a table with one line.
func target(sectors uint64, params string) []byte {
	b := make([]byte, dmTarget, dmTarget+len(params)+8)
	binary.NativeEndian.PutUint64(b[8:], sectors)
	copy(b[24:], "verity")
	b = append(b, params...)
	return append(b, make([]byte, 8-len(b)%8)...) // a zero at least
}

// dm does one thing with the device dmName and returns its number. The uuid is
// for dmCreate alone.
func dm(control *os.File, command uintptr, flags uint32, uuid string, table []byte) (number uint64, err error) {
	if len(uuid) > 128 {
		return 0, errors.New("the uuid is too long")
	}
	buf := make([]byte, dmHeader+len(table))
	for i, v := range []uint32{4, 0, 0, uint32(len(buf)), dmHeader} { // version, data_size, data_start
		binary.NativeEndian.PutUint32(buf[4*i:], v)
	}
	if table != nil {
		binary.NativeEndian.PutUint32(buf[20:], 1) // targets
	}
	binary.NativeEndian.PutUint32(buf[28:], flags)
	copy(buf[48:], dmName)
	copy(buf[176:], uuid)
	copy(buf[dmHeader:], table)
	request := uintptr(3)<<30 | dmHeader<<16 | 0xfd<<8 | command // _IOWR(DM_IOCTL, command, struct dm_ioctl)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, control.Fd(), request, uintptr(unsafe.Pointer(&buf[0]))); errno != 0 {
		return 0, errno
	}
	return binary.NativeEndian.Uint64(buf[40:]), nil
}
