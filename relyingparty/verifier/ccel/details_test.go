package ccel

import (
	"encoding/hex"
	"fmt"
	"reflect"
	"testing"

	teesim "github.com/sealpod/sealpod/teesim/tdx"
)

func wideOf(s string) []byte {
	var out []byte
	for _, c := range s {
		out = append(out, byte(c), byte(c>>8))
	}
	return out
}

func TestDetailsOfEachType(t *testing.T) {
	guid := []byte{0x33, 0x22, 0x11, 0x00, 0x55, 0x44, 0x77, 0x66, 0x88, 0x99, 0xAA, 0xBB, 0xCC, 0xDD, 0xEE, 0xFF}
	variable := append(le.AppendUint64(le.AppendUint64(append([]byte{}, guid...), 2), 3), wideOf("PK")...)
	str := func(s string) map[string]any { return map[string]any{"string": s} }
	none := map[string]any{}
	for name, c := range map[string]struct {
		kind uint32
		data []byte
		want map[string]any
	}{
		"action":                   {evEFIAction, []byte("Exit Boot"), str("Exit Boot")},
		"action that is no text":   {evAction, []byte{0xFF}, none},
		"separator":                {4, make([]byte, 4), none},
		"flags with padding":       {evPlatformConfigFlags, []byte("etc/acpi\x00\x00"), str("etc/acpi")},
		"flags with DLE":           {evPlatformConfigFlags, []byte("a\x10b\x01"), str("a b")},
		"flags that are no text":   {evPlatformConfigFlags, []byte{0xFF, 'a'}, str("")},
		"GRUB":                     {evIPL, []byte("grub_cmd: set a=1\x00junk"), str("grub_cmd: set a=1")},
		"systemd-boot, wide":       {evIPL, wideOf(".cmdline\x00"), str("cmdline")},
		"boot loader, no text":     {evIPL, []byte{0xFE, 0xFF}, str("feff")},
		"boot loader, empty":       {evIPL, nil, str("")},
		"firmware blob":            {evFirmwareBlob2, append([]byte{5}, "Fv()\x00rest"...), str("Fv()")},
		"table without zero":       {evHandoffTables2, append([]byte{3}, "Tdx"...), str("Tdx")},
		"firmware blob, truncated": {evFirmwareBlob2, []byte{5, 'a'}, none},
		"firmware blob, empty":     {evFirmwareBlob2, nil, none},
		"tag of the kernel":        {evEventTag, append([]byte{0xEC, 0x22, 0x3B, 0x8F, 13, 0, 0, 0}, "Linux initrd\x00"...), str("Linux initrd")},
		"tag, truncated":           {evEventTag, []byte{1, 2, 3}, none},
		"tag, too long":            {evEventTag, []byte{1, 2, 3, 4, 5, 0, 0, 0}, none},
		"variable": {evVariableDriver, append(variable, 1, 2, 3), map[string]any{
			"variable_name": "33221100-5544-7766-8899-aabbccddeeff", "unicode_name": "PK", "unicode_name_length": 2,
			"variable_data": "AQID", "variable_data_length": 3,
		}},
		"variable, truncated":  {evVariableBoot, variable, none},
		"variable, huge name":  {evVariableBoot2, append(append([]byte{}, guid...), 255, 255, 255, 255, 255, 255, 255, 255), none},
		"type nobody knows":    {0x8000FFFF, []byte("x"), none},
		"application, no path": {evApplication, make([]byte, 32), none},
	} {
		if got := (Event{Type: c.kind, Data: c.data}).details(); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %v", name, got)
		}
	}
	if c := (Event{Type: 0x8000FFFF}).claims(SHA384); c["type_name"] != "EV_0x8000ffff" {
		t.Errorf("name %v", c["type_name"])
	}
}

func TestDevicePaths(t *testing.T) {
	const end = "7fff0400"
	for name, c := range map[string]struct {
		nodes string
		want  []any
	}{
		"disk": {
			"02010c00d041030a00000000" + "010106000201" + "04012a000f000000002800000000000000500300000000005e27f1007553d5439eb5de2add4c99320202" + end,
			[]any{"ACPI(PNP0A03,0)", "Pci(2,1)", "HD(15,GPT,00F1275E-5375-43D5-9EB5-DE2ADD4C9932,0x2800,0x35000)"},
		},
		"MBR":         {"04012a0000000000000000000000000000000000000000004312020a0000000000000000000000000101" + end, []any{"HD(0,MBR,0x0a021243)"}},
		"odd table":   {"04012a00" + "00000000000000000000000000000000000000000000000000000000000000000000000009" + "01", []any{"Path(4,1,0000000000000000000000000000000000000000000000000000000000000000000000000901)"}},
		"file":        {"040410005c0045004600490061000000" + end, []any{`File(\EFIa)`}},
		"vendor":      {"0403140072f728144ab61e44b8c39ebdd7f893c7" + end, []any{"VenMedia(1428F772-B64A-441E-B8C3-9EBDD7F893C7,)"}},
		"USB":         {"030506000102" + end, []any{"USB(1,2)"}},
		"unknown":     {"09080500ab" + end, []any{"Path(9,8,ab)"}},
		"no end":      {"010106000201", []any{"Pci(2,1)"}},
		"empty node":  {"01010300", nil},
		"short node":  {"010108000201", nil},
		"after end":   {end + "010106000201", nil},
		"only header": {"0101", nil},
	} {
		nodes, err := hex.DecodeString(c.nodes)
		if err != nil {
			t.Fatal(name, err)
		}
		data := append(le.AppendUint64(make([]byte, 24), uint64(len(nodes))), nodes...)
		want := map[string]any{}
		if c.want != nil {
			want["device_paths"] = c.want
		}
		if got := application(data); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// TestSimulatedBoot reads what a simulated TD measured: the simulator writes by
// the documents what is read by them here, each with code of its own.
func TestSimulatedBoot(t *testing.T) {
	p, err := teesim.Open("", teesim.Options{})
	if err != nil {
		t.Fatal(err)
	}
	td := p.NewTD(teesim.Launch{Kernel: []byte("k"), Initrd: []byte("i"), CommandLine: "c"})
	l, registers := parse(t, td.CCEL()), Registers{}
	for i := range 4 {
		value := td.RTMR(i)
		registers[uint32(i+1)] = value[:]
	}
	if err := l.Match(SHA384, registers); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range l.Claims(SHA384, registers) {
		m := c.(map[string]any)
		d := m["details"].(map[string]any)
		for _, name := range []string{"string", "unicode_name", "device_paths"} {
			if d[name] != nil {
				got = append(got, fmt.Sprint(m["index"], " ", m["digest_matches_event"], " ", d[name]))
			}
		}
	}
	want := []string{
		"1 false TdxTable", "1 false Fv(00000000-0000-0000-0000-000000000000)",
		"1 true SecureBoot", "1 true PK", "1 true KEK", "1 true db", "1 true dbx",
		"1 false ACPI DATA", "1 false ACPI DATA", "1 false ACPI DATA", "1 false BootOrder",
		"2 true Calling EFI Application from Boot Option",
		"2 false [VenMedia(1428F772-B64A-441E-B8C3-9EBDD7F893C7,) File(kernel)]",
		"3 false LOADED_IMAGE::LoadOptions", "3 false Linux initrd",
		"2 true Exit Boot Services Invocation", "2 true Exit Boot Services Returned with Success",
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%q", got)
	}
}
