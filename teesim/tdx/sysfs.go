package tdx

import (
	"context"
	"fmt"
	"strings"
	"syscall"
)

// Registers are the files of a TD below
// /sys/devices/virtual/misc/tdx_guest/measurements: what is read is a value,
// what is written to an rtmr extends it. Source: Linux
// Documentation/ABI/testing/sysfs-devices-virtual-misc-tdx_guest at v6.16.
type Registers struct{ td *TD }

// Registers returns the measurement files of the TD.
func (t *TD) Registers() Registers { return Registers{t} }

// Names returns the names of the files.
func (Registers) Names() []string {
	return []string{
		"mrconfigid", "mrowner", "mrownerconfig", "mrtd:sha384",
		"rtmr0:sha384", "rtmr1:sha384", "rtmr2:sha384", "rtmr3:sha384",
	}
}

// Read returns the value of a register, 48 bytes. A name that is none of Names
// is ENOENT.
func (r Registers) Read(name string) ([]byte, error) {
	var value [DigestSize]byte
	switch i := rtmrNumber(name); {
	case i >= 0:
		value = r.td.RTMR(i)
	case name == "mrconfigid":
		value = r.td.MRConfigID()
	case name == "mrtd:sha384":
		value = r.td.MRTD()
	case name == "mrowner":
		value = r.td.report.MROwner
	case name == "mrownerconfig":
		value = r.td.report.MROwnerConfig
	default:
		return nil, fmt.Errorf("reading %s: %w", name, syscall.ENOENT)
	}
	return value[:], nil
}

// Write extends an rtmr with a digest. One that has not 48 bytes is EINVAL, a
// register that only the platform sets EACCES, another name ENOENT.
func (r Registers) Write(name string, digest []byte) error {
	i := rtmrNumber(name)
	if i < 0 {
		if _, err := r.Read(name); err != nil {
			return err
		}
		return fmt.Errorf("writing %s: %w", name, syscall.EACCES)
	}
	if len(digest) != DigestSize {
		return fmt.Errorf("writing %d bytes to %s: %w", len(digest), name, syscall.EINVAL)
	}
	return r.td.Extend(i, [DigestSize]byte(digest))
}

// rtmrNumber is 0 to 3 for the name of an RTMR, else -1.
func rtmrNumber(name string) int {
	digits, ok := strings.CutPrefix(name, "rtmr")
	digits, ok2 := strings.CutSuffix(digits, ":sha384")
	if !ok || !ok2 || len(digits) != 1 || digits[0] < '0' || digits[0] > '3' {
		return -1
	}
	return int(digits[0] - '0')
}

// Reports makes quotes as the kernel's TDX driver does behind
// /sys/kernel/config/tsm/report.
type Reports struct{ td *TD }

// Reports returns the quotes of the TD.
func (t *TD) Reports() Reports { return Reports{t} }

// Name is what the driver calls itself.
func (Reports) Name() string { return "tdx_guest" }

// Report returns a quote; there are no auxiliary bytes, and TDX has no
// privilege levels. An inblob that has not 64 bytes is EINVAL: the driver does
// not pad. Source: Linux drivers/virt/coco/tdx-guest/tdx-guest.c at v6.16.
func (r Reports) Report(ctx context.Context, inblob []byte, _ uint) (outblob, auxblob []byte, err error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	if len(inblob) != ReportDataSize {
		return nil, nil, fmt.Errorf("quoting over %d bytes: %w", len(inblob), syscall.EINVAL)
	}
	outblob, err = r.td.platform.Quote(r.td, [ReportDataSize]byte(inblob))
	return outblob, nil, err
}
