// Package eventlog records runtime events in measurement registers of a TEE,
// and keeps the log that explains what the registers hold.
//
// Data path: the attestation agent's ExtendRuntimeMeasurement calls
// (*Log).Extend, as the data hub does after each image pull; the attesters of
// TEEs with registers put Combined into their evidence, and a verifier replays
// it against the registers in the quote.
//
// Trust: event texts come from anyone in the pod. They can add events, as is
// meant, but cannot forge the form of one, nor make the log so long that
// evidence no longer fits its frame. The firmware's log comes from the host and
// is only cut to its records; the verifier replays it. What is on the file
// system under /run belongs to this program.
//
// It does not decide whether events are wanted, and makes no evidence.
//
// Sources: guest-components attestation-agent/src/eventlog and
// attester/src/utils.rs at 8246e5e0; TCG PC Client Platform Firmware Profile,
// TCG_PCR_EVENT2 and EV_EVENT_TAG; UEFI 2.10, confidential computing.
package eventlog
