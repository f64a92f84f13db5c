package ccel

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
)

// The types of events that are treated apart. Source: TCG PFP 1.06 §10.4.1.
const (
	evPostCode            = 0x1
	evNoAction            = 0x3
	evAction              = 0x5
	evEventTag            = 0x6
	evPlatformConfigFlags = 0xA
	evCompactHash         = 0xC
	evIPL                 = 0xD
	evOmitBootDevice      = 0x12
	evVariableDriver      = 0x80000001
	evVariableBoot        = 0x80000002
	evApplication         = 0x80000003
	evEFIAction           = 0x80000007
	evFirmwareBlob2       = 0x8000000A
	evHandoffTables2      = 0x8000000B
	evVariableBoot2       = 0x8000000C
	evVariableAuthority   = 0x800000E0
)

var typeNames = map[uint32]string{
	0x0: "EV_PREBOOT_CERT", evPostCode: "EV_POST_CODE", 0x2: "EV_UNUSED", evNoAction: "EV_NO_ACTION",
	0x4: "EV_SEPARATOR", evAction: "EV_ACTION", evEventTag: "EV_EVENT_TAG", 0x7: "EV_S_CRTM_CONTENTS",
	0x8: "EV_S_CRTM_VERSION", 0x9: "EV_CPU_MICROCODE", evPlatformConfigFlags: "EV_PLATFORM_CONFIG_FLAGS",
	0xB: "EV_TABLE_OF_DEVICES", evCompactHash: "EV_COMPACT_HASH", evIPL: "EV_IPL", 0xE: "EV_IPL_PARTITION_DATA",
	0xF: "EV_NONHOST_CODE", 0x10: "EV_NONHOST_CONFIG", 0x11: "EV_NONHOST_INFO", evOmitBootDevice: "EV_OMIT_BOOT_DEVICE_EVENTS",
	0x80000000: "EV_EFI_EVENT_BASE", evVariableDriver: "EV_EFI_VARIABLE_DRIVER_CONFIG", evVariableBoot: "EV_EFI_VARIABLE_BOOT",
	evApplication: "EV_EFI_BOOT_SERVICES_APPLICATION", 0x80000004: "EV_EFI_BOOT_SERVICES_DRIVER",
	0x80000005: "EV_EFI_RUNTIME_SERVICES_DRIVER", 0x80000006: "EV_EFI_GPT_EVENT", evEFIAction: "EV_EFI_ACTION",
	0x80000008: "EV_EFI_PLATFORM_FIRMWARE_BLOB", 0x80000009: "EV_EFI_HANDOFF_TABLES",
	evFirmwareBlob2: "EV_EFI_PLATFORM_FIRMWARE_BLOB2", evHandoffTables2: "EV_EFI_HANDOFF_TABLES2",
	evVariableBoot2: "EV_EFI_VARIABLE_BOOT2", 0x80000010: "EV_EFI_HCRTM_EVENT", evVariableAuthority: "EV_EFI_VARIABLE_AUTHORITY",
	0x800000E1: "EV_EFI_SPDM_FIRMWARE_BLOB", 0x800000E2: "EV_EFI_SPDM_FIRMWARE_CONFIG",
}

// Claims returns the events that were extended into the registers, for the
// claim uefi_event_logs. Call it after Match. Each event is a map:
//
//	index                  the number of the register
//	type_name              as in "EV_IPL"
//	digests                list of one {alg, digest}, as in "SHA-384" and hexadecimal:
//	                       that which extended the register
//	digest_matches_event   whether the digest is that of the event
//	event                  standard base64
//	details                what could be read of the event, perhaps nothing
func (l *Log) Claims(a Algorithm, registers Registers) []any {
	claims := []any{}
	for _, e := range l.Events {
		if e.bound(a, registers) {
			claims = append(claims, e.claims(a))
		}
	}
	return claims
}

// claims leaves out digests of other algorithms: no register vouches for them.
func (e Event) claims(a Algorithm) map[string]any {
	digest := e.digest(a)
	name, ok := typeNames[e.Type]
	if !ok {
		name = fmt.Sprintf("EV_%#x", e.Type)
	}
	return map[string]any{
		"index": int(e.Register), "type_name": name,
		"digests":              []any{map[string]any{"alg": algorithms[a].name, "digest": hex.EncodeToString(digest)}},
		"digest_matches_event": bytes.Equal(a.sum(e.Data), digest),
		"event":                base64.StdEncoding.EncodeToString(e.Data), "details": e.details(),
	}
}
