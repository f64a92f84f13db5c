// Package ccel reads the event log of a confidential guest: what its firmware,
// boot loader and attestation agent say they measured, and into which register.
//
//	bytes -> events -> replay against the registers -> claims
//
// Place in the data path: the verifiers of kinds of TEE with measurement
// registers call Parse on the log in the evidence, Match with the registers in
// the signed report, then Claims.
//
// Trust: the log is hostile. After Match, the order and digests of the events
// that were extended into a matched register are as trustworthy as the report;
// Claims leaves out all others. The content of an event is bound only where
// its digest is that of the content (digest_matches_event), because firmware
// measures, for example, a kernel and logs its path; a policy must look. Events
// of the attestation agent always have that digest and the log is refused when
// one has not.
//
// It does not know which measurements are good, nor does it read ACPI tables.
//
// Sources: TCG PC Client Platform Firmware Profile 1.06 §10; UEFI 2.11 §10 and
// §38; claim names from trustee deps/eventlog at 78962cd4; agent events from
// trustee kbs/docs/confidential-containers-eventlog.md.
package ccel
