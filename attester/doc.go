// Package attester finds out which TEE this guest runs in and makes its
// evidence.
//
// Data path: attester/server, the attestation agent, detects once at start and
// collects evidence for callers and for the KBS handshake of package kbs.
//
// Trust: what a TEE device says is authenticated by whoever verifies the
// evidence, never here. The host chooses which devices exist, so detection
// decides only what is tried, and cannot make a weak guest look strong.
package attester
