package tdx

import (
	"crypto/sha512"
	"encoding/binary"
	"unicode/utf16"
)

// bootEvents are what firmware and kernel measure with direct boot in QEMU.
func (l Launch) bootEvents() []Event {
	if l.Paravisor {
		return nil
	}
	const rtmr0, rtmr1 = 1, 2
	separator := make([]byte, 4)
	events := []Event{
		{rtmr0, evHandoffTables2, sha512.Sum384([]byte("memory map")), described("TdxTable\x00", 24)},
		{rtmr0, evFirmwareBlob2, sha512.Sum384([]byte("variable store")), described("Fv(00000000-0000-0000-0000-000000000000)\x00", 16)},
	}
	for _, v := range []struct {
		guid [16]byte
		name string
		data []byte
	}{
		{globalVariable, "SecureBoot", []byte{0}}, {globalVariable, "PK", nil}, {globalVariable, "KEK", nil},
		{securityDatabase, "db", nil}, {securityDatabase, "dbx", nil},
	} {
		events = append(events, measured(rtmr0, evVariableDriver, variable(v.guid, v.name, v.data)))
	}
	events = append(events, measured(rtmr0, evSeparator, separator))
	for _, file := range []string{"etc/table-loader", "etc/acpi/rsdp", "etc/acpi/tables"} {
		events = append(events, Event{rtmr0, evConfigFlags, sha512.Sum384([]byte(file)), []byte("ACPI DATA")})
	}
	order := []byte{0, 0}
	events = append(events,
		Event{rtmr0, evVariableBoot, sha512.Sum384(order), variable(globalVariable, "BootOrder", order)},
		measured(rtmr1, evEFIAction, []byte("Calling EFI Application from Boot Option")),
		measured(rtmr1, evSeparator, separator),
		KernelEvent(l.Kernel), commandLineEvent(l.CommandLine))
	if l.Initrd != nil {
		events = append(events, initrdEvent(l.Initrd))
	}
	return append(events,
		measured(rtmr1, evEFIAction, []byte("Exit Boot Services Invocation")),
		measured(rtmr1, evEFIAction, []byte("Exit Boot Services Returned with Success")))
}

// The vendors of variables. Source: UEFI 2.10 §3.3 and §32.4.1.
var (
	globalVariable   = [16]byte{0x61, 0xDF, 0xE4, 0x8B, 0xCA, 0x93, 0xD2, 0x11, 0xAA, 0x0D, 0x00, 0xE0, 0x98, 0x03, 0x2B, 0x8C}
	securityDatabase = [16]byte{0xCB, 0xB2, 0x19, 0xD7, 0x3A, 0x3D, 0x96, 0x45, 0xA3, 0xBC, 0xDA, 0xD0, 0x0E, 0x67, 0x65, 0x6F}
)

// variable is a UEFI_VARIABLE_DATA.
func variable(guid [16]byte, name string, data []byte) []byte {
	wide := utf16z(name)
	wide = wide[:len(wide)-2]
	le := binary.LittleEndian
	out := le.AppendUint64(guid[:], uint64(len(wide)/2))
	out = append(le.AppendUint64(out, uint64(len(data))), wide...)
	return append(out, data...)
}

// described is a description, its length in front, and size bytes of zeros: the
// addresses of what was measured.
func described(text string, size int) []byte {
	return append(append([]byte{byte(len(text))}, text...), make([]byte, size)...)
}

// utf16z is UTF-16, little-endian, with a zero at the end.
func utf16z(s string) []byte {
	var out []byte
	for _, u := range utf16.Encode([]rune(s + "\x00")) {
		out = binary.LittleEndian.AppendUint16(out, u)
	}
	return out
}

const pageSize, chunkSize = 4096, 256

// buildTD returns the MRTD of a TD whose only initial memory is that firmware,
// at the end of the first 4 GiB. Each page is added, then measured in chunks.
// Source: ABI, TDH.MEM.PAGE.ADD and TDH.MR.EXTEND.
func buildTD(firmware []byte) [DigestSize]byte {
	pages := (len(firmware) + pageSize - 1) / pageSize
	memory := make([]byte, pages*pageSize)
	copy(memory, firmware)
	base := uint64(1)<<32 - uint64(len(memory))
	h := sha512.New384()
	record := func(name string, address uint64) {
		var b [128]byte
		copy(b[:16], name)
		binary.LittleEndian.PutUint64(b[16:], address)
		h.Write(b[:])
	}
	for at := 0; at < len(memory); at += pageSize {
		record("MEM.PAGE.ADD", base+uint64(at))
		for chunk := at; chunk < at+pageSize; chunk += chunkSize {
			record("MR.EXTEND", base+uint64(chunk))
			h.Write(memory[chunk:][:chunkSize])
		}
	}
	return [DigestSize]byte(h.Sum(nil))
}
