package eventlog

import (
	"bytes"
	"errors"
	"fmt"
)

// ErrLog says that the log of runtime events is not what this package writes.
var ErrLog = errors.New("malformed event log")

// history reads a log of runtime events, without the firmware's, and returns of
// one register the first event, nil if there is none, and the value its events
// lead to from zero. Errors: ErrLog.
func history(alg Algorithm, raw []byte, register uint32) (first, value []byte, err error) {
	value = make([]byte, alg.Size)
	for r := (reader{buf: raw}); r.at < len(raw); {
		start := r.at
		index, kind, digests, id := r.u32(), r.u32(), r.u32(), r.u16()
		digest := r.take(uint32(alg.Size))
		event := r.take(r.u32())
		if r.short || kind != typeEventTag || digests != 1 || id != alg.ID || !bytes.Equal(alg.sum(event), digest) {
			return nil, nil, fmt.Errorf("%w: the entry at %d", ErrLog, start)
		}
		if index != register {
			continue
		}
		if first == nil {
			first = event
		}
		value = alg.sum(value, digest)
	}
	return first, value, nil
}
