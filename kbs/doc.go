// Package kbs speaks the protocol of the Key Broker Service (KBS): the wire
// types both sides share, the report data that ties evidence to a key, the
// encryption of released secrets to that key, the names of resources, and the
// client that attests and fetches.
//
// Data path: the attestation agent proves the TEE with Client.Attest and hands
// the Token to the data hub, which fetches with Client.Resource. The relying
// party uses the same wire types from the other end.
//
// Trust: every byte of a KBS is hostile until it is authenticated, every byte
// of a client is hostile to the relying party. Bodies are capped, JSON is
// parsed with exact member names and without duplicates, waits end with the
// caller's context.
//
// This package does not verify tokens or evidence: a guest has no use for the
// former, and the verdict on the latter is the relying party's.
//
// Source: trustee kbs/src at 78962cd4, guest-components
// attestation-agent/kbs_protocol at 8246e5e0, kbs-types 0.18.
package kbs
