package tdx

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// device is the kernel's TDX guest device.
const device = "/dev/tdx_guest"

// Offsets in bytes into a TDREPORT.
// Source: Intel TDX module 1.5 ABI, TDREPORT_STRUCT and TDINFO_STRUCT: the
// latter starts at 512.
const (
	reportSize       = 1024
	mrConfigIDOffset = 576
	rtmrOffset       = 720 // RTMR0; each is 48 bytes long
)

// report0Request is struct tdx_report_req of Linux include/uapi/linux/tdx-guest.h.
type report0Request struct {
	reportData [64]byte         // in
	report     [reportSize]byte // out
}

// report0Command is TDX_CMD_GET_REPORT0, _IOWR('T', 1, struct tdx_report_req).
const report0Command = 3<<30 | unsafe.Sizeof(report0Request{})<<16 | 'T'<<8 | 1

// getReport0 returns the TDREPORT over zero report data, 1024 bytes. It holds
// the registers but proves them only inside this machine.
func getReport0(path string) (_ []byte, err error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("getting a TDREPORT: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	var req report0Request
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), report0Command, uintptr(unsafe.Pointer(&req))); errno != 0 {
		return nil, fmt.Errorf("getting a TDREPORT from %s: %w", path, errno)
	}
	return req.report[:], nil
}
