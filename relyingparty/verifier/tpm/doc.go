// Package tpm verifies the evidence of guests whose only root of trust is a
// TPM.
//
//	JSON -> attestation key, TPM quote -> nonce -> claims
//
// Place in the data path: package attestation hands the evidence of a guest to
// a Verifier, which answers with claims for the attestation policy.
//
// Trust: the evidence is hostile, and a TPM is no TEE: the host can read the
// guest's memory whatever its PCRs say. The verifier does not know which
// attestation keys are of a TPM at all. Anybody can make evidence that it
// accepts with a key of their own; a policy that does not compare the claim
// ak_public with keys it trusts has checked nothing.
//
// Init data is compared with PCR 8.
//
// Source: trustee deps/verifier/src/tpm at 78962cd4.
package tpm
