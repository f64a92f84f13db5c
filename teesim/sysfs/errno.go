package sysfs

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strconv"
	"syscall"
)

// fromDriver are the errors a TEE's driver answers with.
// Source: tdx_report_new in drivers/virt/coco/tdx-guest, sev_report_new in
// drivers/virt/coco/sev-guest.
var fromDriver = []syscall.Errno{
	syscall.EBUSY, syscall.EINTR, syscall.EINVAL, syscall.EIO, syscall.ENOMEM, syscall.ENOTTY, syscall.ENXIO, syscall.ETIMEDOUT,
}

// fromProvider returns what the kernel's driver would answer for err.
func fromProvider(err error) syscall.Errno {
	var errno syscall.Errno
	switch {
	case errors.As(err, &errno) && slices.Contains(fromDriver, errno):
		return errno
	case errors.Is(err, context.DeadlineExceeded):
		return syscall.ETIMEDOUT
	case errors.Is(err, context.Canceled):
		return syscall.EINTR
	}
	return syscall.EIO
}

// errnoOf returns what the caller is told: errors of this package are error
// numbers, but for a wait that ended with its request.
func errnoOf(err error) syscall.Errno {
	var errno syscall.Errno
	switch {
	case err == nil:
		return 0
	case errors.As(err, &errno):
		return errno
	}
	return fromProvider(err)
}

// parseUint reads a number as the kernel's kstrtouint does with base 0: decimal,
// octal after 0 or hexadecimal after 0x, perhaps a plus sign before it and one
// line end after it. Errors: EINVAL, ERANGE. Source: Linux lib/kstrtox.c.
func parseUint(text []byte) (uint32, error) {
	text, _, _ = bytes.Cut(text, []byte{0})
	digits := string(bytes.TrimSuffix(bytes.TrimPrefix(text, []byte("+")), []byte("\n")))
	base := 10
	if len(digits) > 2 && (digits[:2] == "0x" || digits[:2] == "0X") {
		digits, base = digits[2:], 16
	} else if len(digits) > 0 && digits[0] == '0' {
		base = 8
	}
	n, err := strconv.ParseUint(digits, base, 64)
	switch {
	case errors.Is(err, strconv.ErrRange):
		return 0, syscall.ERANGE
	case err != nil || digits[0] == '+':
		return 0, syscall.EINVAL
	case n > 1<<32-1:
		return 0, syscall.ERANGE
	}
	return uint32(n), nil
}
