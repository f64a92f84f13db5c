package tdx

import (
	"bytes"
	"crypto/sha512"
	"encoding/binary"
)

// Event is an entry of an event log.
type Event struct {
	// Register is 1 to 4 for RTMR0 to RTMR3. Source: UEFI 2.10 §38.4.1.
	Register uint32
	// Type is as in PFP, for example 6 for EV_EVENT_TAG.
	Type uint32
	// Digest is what the register is extended with; that of Data, or of what
	// Data describes.
	Digest [DigestSize]byte
	Data   []byte
}

const (
	algSHA384 = 0x0C // TPM_ALG_SHA384

	evNoAction       = 0x3
	evSeparator      = 0x4
	evEventTag       = 0x6
	evConfigFlags    = 0xA
	evVariableDriver = 0x80000001
	evVariableBoot   = 0x80000002
	evApplication    = 0x80000003
	evEFIAction      = 0x80000007
	evFirmwareBlob2  = 0x8000000A
	evHandoffTables2 = 0x8000000B
)

// EventLog returns a log in the crypto-agile form of PFP: a header that
// announces SHA-384, and the events. There is no filler behind them.
func EventLog(events ...Event) []byte {
	le := binary.LittleEndian
	// TCG_EfiSpecIdEvent: platform class 0, version 2.0, errata 0, UINTN of 8
	// bytes, one algorithm, no vendor information.
	spec := append([]byte("Spec ID Event03\x00"), 0, 0, 0, 0, 0, 2, 0, 2)
	spec = le.AppendUint32(spec, 1)
	spec = append(le.AppendUint16(le.AppendUint16(spec, algSHA384), DigestSize), 0)
	// TCG_PCR_EVENT with a digest of 20 zeros.
	log := append(le.AppendUint32(le.AppendUint32(nil, 0), evNoAction), make([]byte, 20)...)
	log = append(le.AppendUint32(log, uint32(len(spec))), spec...)
	for _, e := range events { // TCG_PCR_EVENT2
		log = le.AppendUint32(le.AppendUint32(log, e.Register), e.Type)
		log = le.AppendUint16(le.AppendUint32(log, 1), algSHA384)
		log = append(log, e.Digest[:]...)
		log = append(le.AppendUint32(log, uint32(len(e.Data))), e.Data...)
	}
	return log
}

// Replay returns what the events make of RTMR0 to RTMR3.
func Replay(events ...Event) (rtmr [4][DigestSize]byte) {
	for _, e := range events {
		if e.Register >= 1 && e.Register <= 4 && e.Type != evNoAction {
			rtmr[e.Register-1] = extend(rtmr[e.Register-1], e.Digest)
		}
	}
	return rtmr
}

func extend(value, digest [DigestSize]byte) [DigestSize]byte {
	return sha512.Sum384(append(value[:], digest[:]...))
}

// measured is an event whose digest is that of its data.
func measured(register, kind uint32, data []byte) Event {
	return Event{register, kind, sha512.Sum384(data), data}
}

// agentTag is "AAEL", the tag of events of the attestation agent. Source:
// trustee kbs/docs/confidential-containers-eventlog.md at 78962cd4.
const agentTag = 0x4141454C

// AgentEvent is an event of the attestation agent: its text is "domain
// operation content".
func AgentEvent(register uint32, text string) Event {
	return measured(register, evEventTag, tagged(agentTag, text))
}

// tagged is a TCG_PCClientTaggedEvent.
func tagged(tag uint32, text string) []byte {
	le := binary.LittleEndian
	return append(le.AppendUint32(le.AppendUint32(nil, tag), uint32(len(text))), text...)
}

// KernelEvent is that of a kernel which the firmware got from QEMU and started,
// a UEFI_IMAGE_LOAD_EVENT. Real firmware measures the Authenticode hash of the
// kernel; here it is that of its bytes.
func KernelEvent(kernel []byte) Event {
	path := []byte{
		4, 3, 20, 0, // VenMedia: the file system with what QEMU was given
		0x72, 0xF7, 0x28, 0x14, 0x4A, 0xB6, 0x1E, 0x44, 0xB8, 0xC3, 0x9E, 0xBD, 0xD7, 0xF8, 0x93, 0xC7,
	}
	name := utf16z("kernel")
	path = append(binary.LittleEndian.AppendUint16(append(path, 4, 4), uint16(4+len(name))), name...)
	path = append(path, 0x7F, 0xFF, 4, 0) // end
	le := binary.LittleEndian
	data := le.AppendUint64(nil, 0x7A000000)          // where it was loaded
	data = le.AppendUint64(data, uint64(len(kernel))) // its length
	data = le.AppendUint64(data, 0)                   // where it was linked
	data = le.AppendUint64(data, uint64(len(path)))   // length of the path
	return Event{2, evApplication, sha512.Sum384(kernel), append(data, path...)}
}

// commandLineEvent is that of the EFI stub of Linux for its command line, which
// it gets as UTF-16. Source: Linux drivers/firmware/efi/libstub/efi-stub-helper.c
// at v6.16.
func commandLineEvent(line string) Event {
	return Event{3, evEventTag, sha512.Sum384(utf16z(line)), tagged(0x8F3B22ED, "LOADED_IMAGE::LoadOptions\x00")}
}

// initrdEvent is that of the EFI stub of Linux for its initrd.
func initrdEvent(initrd []byte) Event {
	return Event{3, evEventTag, sha512.Sum384(initrd), tagged(0x8F3B22EC, "Linux initrd\x00")}
}

// pad fills a log with ones up to the size of the table's memory.
func pad(log []byte) []byte {
	const area = 64 << 10 // as OVMF reserves
	return append(log, bytes.Repeat([]byte{0xFF}, max(8, area-len(log)))...)
}
