package eventlog

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/sealpod/sealpod/podvm"
)

// The event that binds init data on TDX. Its content is the digest in lower-case
// hex. A verifier believes it only as the first event of RTMR3, since whoever
// may record events may record more of them, but none before the first.
const (
	// Domain is that of the agent's own events, which it refuses from callers.
	Domain = "github.com/sealpod/sealpod"
	// BindInitDataOperation is the operation of the event.
	BindInitDataOperation = "BindInitData"
)

// rtmr3 is the number of RTMR3 in log entries. The firmware's mapping ends at
// RTMR2 (UEFI 2.10, confidential computing), and neither Linux 6.16 nor systemd
// up to 261 measures into RTMR3 by itself (systemd pull request 43041 would make
// it use RTMRs), so it is zero when the agent starts, unless the image has a
// user of its own. That is found out, never assumed.
const rtmr3 = 4

// ErrBound says that init data cannot be bound, because RTMR3 already holds
// something else.
var ErrBound = errors.New("RTMR3 already holds something else")

// BindInitData makes the digest of init data, 32, 48 or 64 bytes, the first
// event of RTMR3, if that is not done yet: it can be repeated with the same
// digest, also after a crash. Nothing and nobody else may have extended RTMR3
// since the machine started.
//
// Errors: ErrEvent for a digest of another length, ErrBound, ErrLog, and those
// of Extend.
func (l *Log) BindInitData(ctx context.Context, digest []byte) error {
	switch len(digest) {
	case 32, 48, 64:
	default:
		return podvm.Explain(fmt.Errorf("%w: an init data digest of %d bytes", ErrEvent, len(digest)),
			"an init data digest has 32, 48 or 64 bytes")
	}
	text, err := eventText(Domain, BindInitDataOperation, hex.EncodeToString(digest))
	if err != nil {
		return err
	}
	unlock, err := l.lock(ctx)
	if err != nil {
		return fmt.Errorf("binding init data: %w", err)
	}
	defer unlock()
	if _, err := l.complete(); err != nil {
		return fmt.Errorf("completing the event before: %w", err)
	}
	if err := l.bind(newEntry(l.platform.Algorithm, rtmr3, text)); err != nil {
		return fmt.Errorf("binding init data: %w", err)
	}
	return nil
}

// bind records e unless it is the first event of its register already. Nothing
// is pending.
func (l *Log) bind(e entry) error {
	raw, err := l.disk.read(Path, maxLog)
	if err != nil {
		return err
	}
	first, value, err := history(l.platform.Algorithm, raw, e.register)
	if err != nil {
		return podvm.Explain(fmt.Errorf("reading %s: %w", Path, err), "the event log is malformed")
	}
	live, err := l.read(e.register)
	if err != nil {
		return err
	}
	refuse := func(why string) error {
		return podvm.Explain(fmt.Errorf("%w: it is %x: %s", ErrBound, live, why), why)
	}
	switch own := tagged(Domain + " " + BindInitDataOperation + " "); {
	case !bytes.Equal(value, live):
		return refuse("RTMR3 was extended by something that is not in the event log, so init data cannot be bound to it")
	case first == nil:
		return l.extend(e)
	case bytes.Equal(first, tagged(e.text)):
		return nil
	case len(first) > len(own) && bytes.Equal(first[8:len(own)], own[8:]): // but for tag and length
		return refuse("other init data was bound to RTMR3 since this machine started")
	}
	return refuse("an event was recorded in RTMR3 before the init data")
}
