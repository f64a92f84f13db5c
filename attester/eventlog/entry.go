package eventlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/sealpod/sealpod/podvm"
)

// ErrEvent says that an event cannot be recorded because of its text.
var ErrEvent = errors.New("invalid event")

// maxText caps one event's text in bytes.
const maxText = 64 << 10

// Numbers of log entries. Source: TCG PC Client Platform Firmware Profile;
// the tag is guest-components' own.
const (
	typeEventTag = 6          // EV_EVENT_TAG
	eventTag     = 0x4141454c // "LEAA" on disk
)

// eventText returns "domain operation content". White space and control
// characters are refused in the first two and line ends anywhere, so that the
// parts can be told apart again. Errors: ErrEvent.
func eventText(domain, operation, content string) (string, error) {
	refuse := func(why string) (string, error) {
		return "", podvm.Explain(fmt.Errorf("%w: %s", ErrEvent, why), why)
	}
	separates := func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }
	switch {
	case domain == "" || operation == "":
		return refuse("the event's domain or operation is empty")
	case strings.ContainsFunc(domain, separates) || strings.ContainsFunc(operation, separates):
		return refuse("the event's domain or operation has white space or control characters")
	}
	if strings.ContainsAny(content, "\r\n") {
		return refuse("the event's content has a line end")
	}
	text := domain + " " + operation + " " + content
	if !utf8.ValidString(text) {
		return refuse("the event is not UTF-8")
	}
	if len(text) > maxText {
		return refuse(fmt.Sprintf("the event is longer than %d bytes", maxText))
	}
	return text, nil
}

// entry is one event, ready to be measured and logged.
type entry struct {
	register uint32
	text     string
	digest   []byte // of the event with its tag
	alg      Algorithm
}

func newEntry(alg Algorithm, register uint32, text string) entry {
	return entry{register: register, text: text, digest: alg.sum(tagged(text)), alg: alg}
}

// tagged returns the event as it is measured: tag, length, text.
func tagged(text string) []byte {
	out := binary.LittleEndian.AppendUint32(nil, eventTag)
	out = binary.LittleEndian.AppendUint32(out, uint32(len(text)))
	return append(out, text...)
}

// marshal returns the entry as it stands in the log, a TCG_PCR_EVENT2 with one
// digest.
func (e entry) marshal() []byte {
	event, le := tagged(e.text), binary.LittleEndian
	out := le.AppendUint32(nil, e.register)
	out = le.AppendUint32(out, typeEventTag)
	out = le.AppendUint32(out, 1) // digests
	out = le.AppendUint16(out, e.alg.ID)
	out = append(out, e.digest...)
	out = le.AppendUint32(out, uint32(len(event)))
	return append(out, event...)
}
