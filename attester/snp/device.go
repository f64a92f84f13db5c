package snp

import (
	"bytes"
	"errors"
	"fmt"
	"os"

	labi "github.com/google/go-sev-guest/client/linuxabi"
	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/attester/internal/tsm"
)

// devicePath is the kernel's SNP guest device.
const devicePath = "/dev/sev-guest"

// certBuffer is the most the kernel takes for certificates, in bytes.
// Source: Linux drivers/virt/coco/sev-guest, SEV_FW_BLOB_MAX_SIZE.
const certBuffer = 16 << 10

// invalidLength is the firmware error that says the certificates did not fit:
// SNP_GUEST_VMM_ERR_INVALID_LEN in the upper half.
// Source: Linux include/uapi/linux/sev-guest.h.
const invalidLength = 1 << 32

// ErrFirmware says that the secure processor or the hypervisor refused.
var ErrFirmware = errors.New("SNP firmware error")

// device is the kernel's device as package client of go-sev-guest has it. That
// client is not used itself: it asks the host how much memory to allocate, and
// sleeps 2 s between the two requests that takes.
type device interface {
	// Ioctl takes a *labi.SnpUserGuestRequest.
	Ioctl(command uintptr, request any) (uintptr, error)
	Close() error
}

// fromDevice gets a report for VMPL 0 with certificates, or without them if
// the host has more than fit.
func (a *Attester) fromDevice(data [tsm.ReportDataSize]byte) (report, table []byte, err error) {
	dev, err := a.open()
	if err != nil {
		return nil, nil, fmt.Errorf("opening the SNP device: %w", err)
	}
	defer func() { err = errors.Join(err, dev.Close()) }()
	ask := labi.SnpReportReqABI{ReportData: data}
	ext := &labi.SnpExtendedReportReq{Data: ask, Certs: make([]byte, certBuffer), CertsLength: certBuffer}
	report, fw, err := request(dev, labi.IocSnpGetExtendedReport, ext)
	if err == nil {
		return report, ext.Certs, nil
	}
	if fw == invalidLength {
		report, _, err = request(dev, labi.IocSnpGetReport, &ask)
	}
	return report, nil, err
}

// request sends one request and returns the report, or the firmware's error.
func request(dev device, command uintptr, ask labi.BinaryConvertible) (report []byte, fw uint64, err error) {
	var out labi.SnpReportRespABI
	req := &labi.SnpUserGuestRequest{ReqData: ask, RespData: &out}
	status, err := dev.Ioctl(command, req)
	switch {
	case err != nil && req.FwErr != 0:
		return nil, req.FwErr, fmt.Errorf("getting a report: %w %#x: %w", ErrFirmware, req.FwErr, err)
	case err != nil:
		return nil, 0, fmt.Errorf("getting a report: %w", err)
	case status != uintptr(labi.EsOk):
		return nil, 0, fmt.Errorf("getting a report: %w: status %d", ErrFirmware, status)
	}
	return bytes.Clone(out.Data[:ReportSize]), 0, nil
}

// file is the device on Linux.
type file struct{ *os.File }

func openDevice(path string) (device, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	return file{f}, nil
}

func (f file) Ioctl(command uintptr, request any) (uintptr, error) {
	req, ok := request.(*labi.SnpUserGuestRequest)
	if !ok {
		return 0, fmt.Errorf("%T is no SNP guest request", request)
	}
	conv := req.ABI()
	status, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), command, uintptr(conv.Pointer()))
	if err := conv.Finish(req); err != nil && errno == 0 {
		return 0, err
	}
	if errno != 0 {
		if errno != unix.EIO { // older kernels write back what nobody set
			req.FwErr = 0
		}
		return 0, errno
	}
	return status, nil
}
