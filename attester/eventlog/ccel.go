package eventlog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// ErrCCEL says that the firmware's event log is not one.
var ErrCCEL = errors.New("invalid CCEL")

// specSignature is the start of the first record's event: it names the digest
// algorithms of all others.
const specSignature = "Spec ID Event03\x00"

// maxAlgorithms caps the digests per record; TCG defines fewer.
const maxAlgorithms = 16

// cutCCEL returns the records at the start of ccel, which firmware leaves
// padded: the log ends at the first record boundary that is followed by 8 bytes
// of all 0xff or all zero, or by nothing. It walks the records, since event
// data may hold such bytes too. Errors: ErrCCEL.
func cutCCEL(ccel []byte) ([]byte, error) {
	r := reader{buf: ccel}
	sizes, err := r.header()
	if err != nil {
		return nil, err
	}
	for !r.ended() {
		start := r.at
		r.skip(8) // register, event type
		n := r.u32()
		if n > maxAlgorithms {
			return nil, fmt.Errorf("%w: %d digests in the record at %d", ErrCCEL, n, start)
		}
		for range n {
			alg := r.u16()
			size, ok := sizes[alg]
			if !ok && !r.short {
				return nil, fmt.Errorf("%w: digest algorithm %#x in the record at %d", ErrCCEL, alg, start)
			}
			r.skip(size)
		}
		r.skip(r.u32())
		if r.short {
			return nil, fmt.Errorf("%w: the record at %d runs past the end", ErrCCEL, start)
		}
	}
	return ccel[:r.at], nil
}

// reader walks little-endian bytes. After the end it returns zeros and is short.
type reader struct {
	buf   []byte
	at    int
	short bool
}

func (r *reader) take(n uint32) []byte {
	if r.short || uint64(n) > uint64(len(r.buf)-r.at) {
		r.short = true
		return make([]byte, 4)
	}
	b := r.buf[r.at : r.at+int(n)]
	r.at += int(n)
	return b
}

func (r *reader) skip(n uint32) { r.take(n) }
func (r *reader) u32() uint32   { return binary.LittleEndian.Uint32(r.take(4)) }
func (r *reader) u16() uint16   { return binary.LittleEndian.Uint16(r.take(2)) }

// ended tells whether the log ends here.
func (r *reader) ended() bool {
	rest := r.buf[r.at:]
	if len(rest) == 0 {
		return true
	}
	head := rest[:min(8, len(rest))]
	return isAll(head, 0) || isAll(head, 0xff)
}

func isAll(b []byte, v byte) bool { return bytes.Count(b, []byte{v}) == len(b) }

// header reads the first record, which has the older form: register, type,
// 20-byte digest, size, event. It returns the digest size of each algorithm.
func (r *reader) header() (map[uint16]uint32, error) {
	r.skip(8 + 20)
	event := reader{buf: r.take(r.u32())}
	if sig := event.take(16); r.short || event.short || string(sig) != specSignature && !isAll(sig, 0) {
		return nil, fmt.Errorf("%w: the first record is no specification header", ErrCCEL)
	}
	event.skip(8) // platform class, version, errata, size of uintn
	n := event.u32()
	if n > maxAlgorithms {
		return nil, fmt.Errorf("%w: %d algorithms", ErrCCEL, n)
	}
	sizes := map[uint16]uint32{}
	for range n {
		alg, size := event.u16(), uint32(event.u16())
		sizes[alg] = size
	}
	if event.short {
		return nil, fmt.Errorf("%w: the specification header is cut short", ErrCCEL)
	}
	return sizes, nil
}
