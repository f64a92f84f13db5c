// Package attester finds out which TEE this guest runs in and makes its
// evidence.
//
// Data path: attester/server, the attestation agent, detects once at start and
// collects evidence for callers and for the KBS handshake of package kbs.
//
// Trust: what a TEE device says is authenticated by whoever verifies the
// evidence, never here. The host chooses which devices exist, so detection
// decides only what is tried, and cannot make a weak guest look strong.
//
// NVIDIA GPUs are found and reported, never attested: their evidence comes from
// libnvidia-ml alone, and an executable that can load a shared library has to be
// linked dynamically against the C library of its image, which this one is not.
// A guest whose list of attesters names "nvidia" does not start on a machine
// with such a GPU, so that nobody takes its evidence for the GPU's.
package attester
