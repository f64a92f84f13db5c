package eventlog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"

	"github.com/sealpod/sealpod/podvm"
)

// Where the logs are on a machine.
const (
	// CCELPath is the firmware's log, which the kernel copies from memory that
	// the ACPI table CCEL names.
	CCELPath = "/sys/firmware/acpi/tables/data/CCEL"
	// Path is the log of runtime events. The environment variable AAEL_PATH
	// names another one for Combined, but not for Open, as upstream.
	Path = "/run/attestation-agent/eventlog"
)

// Caps in bytes. Both logs and a quote of 256 KiB, in base64, fit into a ttrpc
// frame of 4 MiB; an answer that does not breaks its connection.
const (
	maxCCEL = 2 << 20
	maxLog  = 512 << 10
)

// Combined returns the log a verifier replays: the firmware's records, those of
// runtime events, and 8 bytes of 0xff. Without a firmware log a header stands
// for it. It returns nil when there is neither. A caller that also makes a
// quote holds the lock of Registers over both.
//
// Errors: ErrCCEL, podvm.ErrTooLarge.
func Combined(host podvm.Host) ([]byte, error) {
	ccel, err := readIfThere(host.Path(CCELPath), maxCCEL)
	if err != nil {
		return nil, podvm.Explain(fmt.Errorf("reading the firmware's event log: %w", err), "the firmware's event log (CCEL) cannot be read, or is too long")
	}
	path := Path
	if p := host.Getenv("AAEL_PATH"); p != "" {
		path = p
	}
	events, err := readIfThere(host.Path(path), maxLog)
	if err != nil {
		return nil, podvm.Explain(fmt.Errorf("reading the event log: %w", err), "the log of runtime events cannot be read, or is too long")
	}
	switch {
	case ccel == nil && events == nil:
		return nil, nil
	case ccel == nil:
		ccel = header()
	default:
		if ccel, err = cutCCEL(ccel); err != nil {
			return nil, podvm.Explain(fmt.Errorf("reading the firmware's event log %s: %w", CCELPath, err),
				"the firmware's event log (CCEL) is malformed")
		}
	}
	out := make([]byte, 0, len(ccel)+len(events)+8)
	out = append(append(out, ccel...), events...)
	return append(out, bytes.Repeat([]byte{0xff}, 8)...), nil
}

// readIfThere returns the file, nil if there is none. An empty file is not nil.
func readIfThere(path string, limit int64) ([]byte, error) {
	b, err := podvm.ReadFileMax(path, limit)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if b == nil && err == nil {
		b = []byte{}
	}
	return b, err
}

// headerAlgorithms are what the header without a firmware log names, with the
// length of their digests in bytes.
func headerAlgorithms() []Algorithm { return []Algorithm{sha384, sm3} }

// header returns the 69 bytes that stand for a missing firmware log: a record
// of register 0, type EV_NO_ACTION, whose event is a specification header of
// zeros but for the list of algorithms.
func header() []byte {
	algs := headerAlgorithms()
	le := binary.LittleEndian
	out := le.AppendUint32(nil, 0)
	out = le.AppendUint32(out, 3)
	out = append(out, make([]byte, 20)...)
	out = le.AppendUint32(out, uint32(24+4+4*len(algs)+1))
	out = append(out, make([]byte, 24)...)
	out = le.AppendUint32(out, uint32(len(algs)))
	for _, a := range algs {
		out = le.AppendUint16(out, a.ID)
		out = le.AppendUint16(out, uint16(a.Size))
	}
	return append(out, 0) // no vendor information
}
