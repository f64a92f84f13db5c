package ccel

import (
	"bytes"
	"encoding/binary"
)

// agentTag is "AAEL", the tag of events of the attestation agent.
const agentTag = 0x4141454C

func (e Event) isAgent() bool {
	return e.Type == evEventTag && len(e.Data) >= 8 && binary.LittleEndian.Uint32(e.Data) == agentTag
}

// IsAgent says whether e is exactly the event that the attestation agent
// records for domain, operation and content, with nothing behind it.
func (e Event) IsAgent(domain, operation, content string) bool {
	text := domain + " " + operation + " " + content
	want := binary.LittleEndian.AppendUint32(nil, agentTag)
	want = append(binary.LittleEndian.AppendUint32(want, uint32(len(text))), text...)
	return e.Type == evEventTag && bytes.Equal(e.Data, want)
}

// First returns the event that was the first to extend a register, and whether
// there is one. After Match nothing can have been extended before it.
func (l *Log) First(a Algorithm, register uint32) (Event, bool) {
	for _, e := range l.Events {
		if e.Register == register && e.extended(a) {
			return e, true
		}
	}
	return Event{}, false
}
