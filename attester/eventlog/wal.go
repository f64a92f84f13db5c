package eventlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unicode/utf8"
)

// ErrWAL says that an event was interrupted and cannot be completed: the file
// that describes it, the log and the register do not fit together.
var ErrWAL = errors.New("an interrupted event cannot be completed")

// pending is the event in progress, kept in a file from before the register is
// extended until the log has it:
//
//	offset into the log     8 bytes, big-endian
//	register                4 bytes, big-endian
//	value after extending   length of a digest
//	text
//
// The file appears and disappears whole. Upstream's has no register, and so
// completes an event in the default one.
type pending struct {
	offset   int64
	expected []byte
	entry    entry
}

func (p pending) marshal() []byte {
	out := binary.BigEndian.AppendUint64(nil, uint64(p.offset))
	out = binary.BigEndian.AppendUint32(out, p.entry.register)
	return append(append(out, p.expected...), p.entry.text...)
}

func parsePending(alg Algorithm, b []byte) (pending, error) {
	if len(b) < 12+alg.Size || len(b) > 12+alg.Size+maxText {
		return pending{}, fmt.Errorf("%w: a file of %d bytes", ErrWAL, len(b))
	}
	offset := binary.BigEndian.Uint64(b)
	text := string(b[12+alg.Size:])
	if offset > maxLog || !utf8.ValidString(text) {
		return pending{}, fmt.Errorf("%w: offset %d, or text that is not UTF-8", ErrWAL, offset)
	}
	return pending{
		offset:   int64(offset),
		expected: b[12 : 12+alg.Size],
		entry:    newEntry(alg, binary.BigEndian.Uint32(b[8:]), text),
	}, nil
}
