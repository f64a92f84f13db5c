// Package server is the attestation agent: evidence, tokens and measurements
// over ttrpc on a unix socket, as upstream's ttrpc-aa offers them, or over gRPC
// on a loopback port, as upstream's grpc-aa does.
//
// Data path: the data hub and api-server-rest call it; it calls the attesters
// of package attester and the KBS through package kbs.
//
// Trust: callers are local but not trusted, the KBS is hostile, the
// configuration comes from the host. What a caller can ask for is what the pod
// may ask for; nothing here is secret except TEE keys, which leave only with
// their token. A unix socket has permissions. A port has none: over gRPC every
// process of the network namespace may ask, and on a vTPM may extend PCR 8 with
// BindInitData, as with upstream's.
//
// Callers wait for a slow device: those who want evidence for each other, tokens
// and events for few of them. An attestation serves all who wait for a token.
//
// Init data is bound before anything is served. Where that is an event of the
// agent's own, no caller can record one like it, see eventlog.Domain.
//
// Source: guest-components attestation-agent at 8246e5e0.
package server
