package tdx

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/sealpod/sealpod/attester/eventlog"
	"github.com/sealpod/sealpod/podvm"
)

// measurements is where kernels from 6.16 on show the registers: reading a file
// gives its value, writing a digest to an rtmr extends it.
const measurements = "/sys/devices/virtual/misc/tdx_guest/measurements"

// registerSize is the length of MRCONFIGID and of each RTMR in bytes, SHA-384.
const registerSize = 48

// firstRTMR and lastRTMR are the numbers of RTMR0 and RTMR3 in log entries.
// Source: UEFI 2.10, confidential computing, Intel TDX; 0 is MRTD.
const firstRTMR, lastRTMR = 1, 4

func rtmrPath(index uint32) string {
	return fmt.Sprintf("%s/rtmr%d:sha384", measurements, index-firstRTMR)
}

// ErrSize says that a register had another length than it must have.
var ErrSize = errors.New("a register of the wrong length")

// Registers returns the RTMRs for an event log, or nil when this kernel cannot
// extend them. Index 1 is RTMR0, 4 is RTMR3.
func (a *Attester) Registers() eventlog.Registers {
	if _, err := os.Stat(a.host.Path(rtmrPath(lastRTMR))); err != nil {
		return nil
	}
	return registers{a}
}

// registers are the RTMRs. Their lock is the attester's, so no event falls
// between a quote and its log.
type registers struct{ a *Attester }

func (r registers) Lock(ctx context.Context) error { return r.a.gate.Lock(ctx) }
func (r registers) Unlock()                        { r.a.gate.Unlock() }

// Read returns the value of an RTMR, 48 bytes.
func (r registers) Read(index uint32) ([]byte, error) { return r.a.readRTMR(index) }

// Extend writes a digest of 48 bytes to an RTMR.
func (r registers) Extend(index uint32, digest []byte) error {
	if err := checkIndex(index); err != nil {
		return err
	}
	if len(digest) != registerSize {
		return fmt.Errorf("extending RTMR%d: %w: %d bytes", index-firstRTMR, ErrSize, len(digest))
	}
	f, err := os.OpenFile(r.a.host.Path(rtmrPath(index)), os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("extending RTMR%d: %w", index-firstRTMR, err)
	}
	_, err = f.Write(digest) // one write is one extension
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("extending RTMR%d: %w", index-firstRTMR, err)
	}
	return nil
}

func checkIndex(index uint32) error {
	if index < firstRTMR || index > lastRTMR {
		return fmt.Errorf("%w: TDX measurement register %d", eventlog.ErrRegister, index)
	}
	return nil
}

// readRTMR returns the value of the RTMR with this number in log entries.
func (a *Attester) readRTMR(index uint32) ([]byte, error) {
	if err := checkIndex(index); err != nil {
		return nil, err
	}
	out, err := a.register(rtmrPath(index), rtmrOffset+registerSize*int(index-firstRTMR))
	if err != nil {
		return nil, fmt.Errorf("reading RTMR%d: %w", index-firstRTMR, err)
	}
	return out, nil
}

// mrConfigID returns MRCONFIGID, 48 bytes.
func (a *Attester) mrConfigID() ([]byte, error) {
	out, err := a.register(measurements+"/mrconfigid", mrConfigIDOffset)
	if err != nil {
		return nil, fmt.Errorf("reading MRCONFIGID: %w", err)
	}
	return out, nil
}

// register returns a register from its file or, on kernels without it, from
// offset of a TDREPORT.
func (a *Attester) register(path string, offset int) ([]byte, error) {
	out, err := podvm.ReadFileMax(a.host.Path(path), registerSize)
	if errors.Is(err, fs.ErrNotExist) {
		report, err := a.report0()
		if err != nil {
			return nil, err
		}
		if len(report) != reportSize {
			return nil, fmt.Errorf("%w: a TDREPORT of %d bytes", ErrSize, len(report))
		}
		return report[offset : offset+registerSize], nil
	}
	if err != nil {
		return nil, err
	}
	if len(out) != registerSize {
		return nil, fmt.Errorf("%w: %d bytes in %s", ErrSize, len(out), path)
	}
	return out, nil
}
