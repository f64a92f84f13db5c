package ccel

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// details reads an event by its type. Content that cannot be read gives no
// details; the event itself stands beside them.
func (e Event) details() map[string]any {
	switch e.Type {
	case evPostCode, evAction, evCompactHash, evOmitBootDevice, evEFIAction:
		if utf8.Valid(e.Data) {
			return text(string(e.Data))
		}
	case evPlatformConfigFlags:
		return text(printable(e.Data))
	case evIPL:
		return text(ipl(e.Data))
	case evHandoffTables2, evFirmwareBlob2:
		return described(e.Data)
	case evEventTag:
		return tagged(e.Data)
	case evVariableDriver, evVariableBoot, evVariableBoot2, evVariableAuthority:
		return variable(e.Data)
	case evApplication:
		return application(e.Data)
	}
	return map[string]any{}
}

func text(s string) map[string]any { return map[string]any{"string": strings.ToValidUTF8(s, "\uFFFD")} }

// printable drops control characters; DLE separates words in some tables.
func printable(b []byte) string {
	if !utf8.Valid(b) {
		return ""
	}
	return strings.Map(func(r rune) rune {
		if r == 0x10 {
			return ' '
		}
		if unicode.IsControl(r) {
			return -1
		}
		return r
	}, string(b))
}

// ipl reads the text of a boot loader: UTF-16 after a full stop with
// systemd-boot and Google, else bytes up to a zero.
func ipl(b []byte) string {
	if len(b) >= 4 && len(b)%2 == 0 && b[0] == '.' && b[1] == 0 {
		return wide(b[2 : len(b)-2])
	}
	if s, _, _ := bytes.Cut(b, []byte{0}); utf8.Valid(s) {
		return string(s)
	}
	return hex.EncodeToString(b)
}

// wide decodes UTF-16, little-endian.
func wide(b []byte) string {
	units := make([]uint16, len(b)/2)
	for i := range units {
		units[i] = binary.LittleEndian.Uint16(b[2*i:])
	}
	return string(utf16.Decode(units))
}

// described reads the description in front of UEFI_PLATFORM_FIRMWARE_BLOB2 and
// UEFI_HANDOFF_TABLE_POINTERS2, without the zero it ends with.
func described(b []byte) map[string]any {
	r := &reader{rest: b}
	s := r.bytes(uint64(r.u8()))
	if r.err != nil || !utf8.Valid(s) {
		return map[string]any{}
	}
	return text(strings.TrimSuffix(string(s), "\x00"))
}

// tagged reads a TCG_PCClientTaggedEvent, and inside it an event of the
// attestation agent: domain, operation and content, which may be JSON.
func tagged(b []byte) map[string]any {
	r := &reader{rest: b}
	tag := r.u32()
	body := string(r.bytes(uint64(r.u32())))
	if r.err != nil {
		return map[string]any{}
	}
	d := text(strings.ReplaceAll(body, "\x00", ""))
	domain, rest, ok := strings.Cut(body, " ")
	operation, content, more := strings.Cut(rest, " ")
	if tag != agentTag || !ok || !more || !utf8.ValidString(body) {
		return d
	}
	d["unicode_name"] = "AAEL"
	d["data"] = map[string]any{"domain": domain, "operation": operation, "content": agentContent(content)}
	return d
}

var errNumber = errors.New("a number too large")

// agentContent is the JSON value in the text, or the text.
func agentContent(s string) any {
	var v any
	d := json.NewDecoder(strings.NewReader(s))
	d.UseNumber()
	if d.Decode(&v) != nil || checkNumbers(v) != nil {
		return s
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return s
	}
	return v
}

// checkNumbers refuses what policy engines choke on.
func checkNumbers(v any) error {
	switch v := v.(type) {
	case json.Number:
		if f, err := v.Float64(); err != nil || math.IsInf(f, 0) || len(v) > 32 {
			return errNumber
		}
	case []any:
		for _, m := range v {
			if err := checkNumbers(m); err != nil {
				return err
			}
		}
	case map[string]any:
		for _, m := range v {
			if err := checkNumbers(m); err != nil {
				return err
			}
		}
	}
	return nil
}

// variable reads a UEFI_VARIABLE_DATA. The GUID is written byte by byte, not in
// the order of UEFI, as trustee does.
func variable(b []byte) map[string]any {
	r := &reader{rest: b}
	guid := r.bytes(16)
	units, size := r.u64(), r.u64()
	if units > uint64(len(b)) {
		return map[string]any{}
	}
	name, data := r.bytes(2*units), r.bytes(size)
	if r.err != nil {
		return map[string]any{}
	}
	return map[string]any{
		"variable_name":        fmt.Sprintf("%x-%x-%x-%x-%x", guid[:4], guid[4:6], guid[6:8], guid[8:10], guid[10:]),
		"unicode_name":         wide(name),
		"unicode_name_length":  int(units),
		"variable_data":        base64.StdEncoding.EncodeToString(data),
		"variable_data_length": int(size),
	}
}
