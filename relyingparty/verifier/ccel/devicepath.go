package ccel

import (
	"encoding/binary"
	"fmt"
)

// maxNodes bounds a device path.
const maxNodes = 64

// application reads a UEFI_IMAGE_LOAD_EVENT: where the image came from.
func application(b []byte) map[string]any {
	r := &reader{rest: b}
	r.bytes(24) // where it was loaded, its length, where it was linked
	r.rest = r.bytes(r.u64())
	paths := []any{}
	for r.err == nil && len(r.rest) > 0 && len(paths) < maxNodes {
		kind, sub, size := r.u8(), r.u8(), r.u16()
		if size < 4 {
			r.fail("a node of %d bytes", size)
			break
		}
		node := r.bytes(uint64(size) - 4)
		if r.err != nil || kind == 0x7F && sub == 0xFF {
			break
		}
		paths = append(paths, pathNode(kind, sub, node))
	}
	if r.err != nil || len(paths) == 0 {
		return map[string]any{}
	}
	return map[string]any{"device_paths": paths}
}

// pathNode writes a node as text. Source: UEFI 2.11 §10.6.1.6, in the spelling
// of trustee; kinds that a pod VM does not boot from are written in full.
func pathNode(kind, sub uint8, b []byte) string {
	le := binary.LittleEndian
	switch {
	case kind == 1 && sub == 1 && len(b) == 2:
		return fmt.Sprintf("Pci(%d,%d)", b[0], b[1])
	case kind == 2 && sub == 1 && len(b) == 8:
		hid := le.Uint32(b)
		letter := func(shift int) byte { return '@' + byte(hid>>shift&0x1F) }
		return fmt.Sprintf("ACPI(%c%c%c%04X,%d)", letter(10), letter(5), letter(0), hid>>16, le.Uint32(b[4:]))
	case kind == 3 && sub == 5 && len(b) == 2:
		return fmt.Sprintf("USB(%d,%d)", b[0], b[1])
	case kind == 4 && sub == 1 && len(b) == 38:
		if s := hardDrive(b); s != "" {
			return s
		}
	case kind == 4 && sub == 3 && len(b) >= 16:
		return fmt.Sprintf("VenMedia(%s,%x)", guid(b[:16]), b[16:])
	case kind == 4 && sub == 4 && len(b) >= 2 && len(b)%2 == 0:
		return fmt.Sprintf("File(%s)", wide(b[:len(b)-2]))
	}
	return fmt.Sprintf("Path(%d,%d,%x)", kind, sub, b)
}

// hardDrive writes a partition, empty for tables other than MBR and GPT.
func hardDrive(b []byte) string {
	le := binary.LittleEndian
	var table, signature, place string
	switch b[36] {
	case 1:
		table, signature = "MBR", fmt.Sprintf("0x%08x", le.Uint32(b[20:]))
	case 2:
		table, signature = "GPT", guid(b[20:36])
	default:
		return ""
	}
	number := le.Uint32(b)
	if number != 0 {
		place = fmt.Sprintf(",%#x,%#x", le.Uint64(b[4:]), le.Uint64(b[12:]))
	}
	return fmt.Sprintf("HD(%d,%s,%s%s)", number, table, signature, place)
}

// guid writes a GUID in the order of UEFI.
func guid(b []byte) string {
	le := binary.LittleEndian
	return fmt.Sprintf("%08X-%04X-%04X-%X-%X", le.Uint32(b), le.Uint16(b[4:]), le.Uint16(b[6:]), b[8:10], b[10:16])
}
