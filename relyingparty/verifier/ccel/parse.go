package ccel

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// ErrLog says that a log is malformed or is not that of the registers.
var ErrLog = errors.New("event log not accepted")

// Algorithm is a TPM algorithm identifier.
type Algorithm uint16

// The algorithms of digests in a log.
const (
	SHA1   Algorithm = 0x04
	SHA256 Algorithm = 0x0B
	SHA384 Algorithm = 0x0C
	SHA512 Algorithm = 0x0D
	SM3    Algorithm = 0x12
)

var algorithms = map[Algorithm]struct {
	name string
	size int
}{SHA1: {"SHA-1", 20}, SHA256: {"SHA-256", 32}, SHA384: {"SHA-384", 48}, SHA512: {"SHA-512", 64}, SM3: {"SM3", 32}}

const (
	// MaxSize bounds a log in bytes; the table of the firmware has up to 1 MiB.
	MaxSize    = 4 << 20
	maxEvents  = 4096
	maxDigests = 8
)

// Digest is what one algorithm made of an event.
type Digest struct {
	Algorithm Algorithm
	Value     []byte
}

// Event is an entry of a log.
type Event struct {
	// Register is the number of the measurement register: 1 to 4 are RTMR0 to
	// RTMR3 of TDX, and 0 is MRTD, which nothing is extended into.
	Register uint32
	// Type is as in package constants of the TCG, for example 6, EV_EVENT_TAG.
	Type    uint32
	Digests []Digest
	Data    []byte
}

// digest is the value of that algorithm, nil when there is none.
func (e Event) digest(a Algorithm) []byte {
	for _, d := range e.Digests {
		if d.Algorithm == a {
			return d.Value
		}
	}
	return nil
}

// Log is a parsed log without its header.
type Log struct{ Events []Event }

// Parse reads a log in the crypto-agile format: a header, events, and then the
// end of the bytes or a filler of ones or zeros. What follows the filler is not
// read. The log keeps no reference to raw. Malformed logs are ErrLog.
func Parse(raw []byte) (*Log, error) {
	if len(raw) > MaxSize {
		return nil, fmt.Errorf("%w: %d bytes, at most %d are read", ErrLog, len(raw), MaxSize)
	}
	r := &reader{rest: append([]byte(nil), raw...)}
	known := r.header()
	log := &Log{}
	for r.err == nil && !r.ended() {
		if len(log.Events) == maxEvents {
			return nil, fmt.Errorf("%w: more than %d events", ErrLog, maxEvents)
		}
		log.Events = append(log.Events, r.event(known))
	}
	if r.err != nil {
		return nil, fmt.Errorf("%w: entry %d: %w", ErrLog, len(log.Events), r.err)
	}
	return log, nil
}

// reader takes little-endian fields off the front and keeps the first error.
type reader struct {
	rest []byte
	err  error
}

func (r *reader) bytes(n uint64) []byte {
	if r.err != nil {
		return nil
	}
	if n > uint64(len(r.rest)) {
		r.err = fmt.Errorf("truncated: %d bytes where %d are announced", len(r.rest), n)
		return nil
	}
	out := r.rest[:n:n]
	r.rest = r.rest[n:]
	return out
}

func (r *reader) u8() uint8 {
	if b := r.bytes(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) u16() uint16 {
	if b := r.bytes(2); b != nil {
		return binary.LittleEndian.Uint16(b)
	}
	return 0
}

func (r *reader) u32() uint32 {
	if b := r.bytes(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (r *reader) u64() uint64 {
	if b := r.bytes(8); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf(format, args...)
	}
}

// header reads the first record, in the old format, and returns the algorithms
// it announces. Its signature is not compared: logs of guests without firmware
// tables have zeros there.
func (r *reader) header() map[Algorithm]bool {
	r.u32()
	if kind := r.u32(); kind != evNoAction {
		r.fail("the log starts with an event of type %#x, not with a header", kind)
	}
	r.bytes(20)
	spec := &reader{rest: r.bytes(uint64(r.u32())), err: r.err}
	spec.bytes(24) // signature, platform class, version, size of UINTN
	count := spec.u32()
	if count > maxDigests {
		spec.fail("%d algorithms, at most %d are read", count, maxDigests)
	}
	known := map[Algorithm]bool{}
	for range min(count, maxDigests) {
		a, size := Algorithm(spec.u16()), spec.u16()
		if spec.err == nil && (algorithms[a].size == 0 || algorithms[a].size != int(size)) {
			spec.fail("algorithm %#x with digests of %d bytes", uint16(a), size)
		}
		known[a] = true
	}
	spec.bytes(uint64(spec.u8()))
	if len(spec.rest) > 0 {
		spec.fail("%d bytes too many in the header", len(spec.rest))
	}
	if r.err == nil {
		r.err = spec.err
	}
	return known
}

// ended says whether the events are over.
func (r *reader) ended() bool {
	n := min(len(r.rest), 8)
	ones, zeros := true, true
	for _, b := range r.rest[:n] {
		ones, zeros = ones && b == 0xFF, zeros && b == 0
	}
	return ones || zeros
}

func (r *reader) event(known map[Algorithm]bool) Event {
	e := Event{Register: r.u32(), Type: r.u32()}
	count := r.u32()
	if count > maxDigests {
		r.fail("%d digests, at most %d are read", count, maxDigests)
	}
	for range min(count, maxDigests) {
		a := Algorithm(r.u16())
		if r.err == nil && !known[a] {
			r.fail("digest algorithm %#x is not announced in the header", uint16(a))
		}
		if r.err == nil && e.digest(a) != nil {
			r.fail("two digests of algorithm %#x", uint16(a))
		}
		e.Digests = append(e.Digests, Digest{a, r.bytes(uint64(algorithms[a].size))})
	}
	e.Data = r.bytes(uint64(r.u32()))
	return e
}
