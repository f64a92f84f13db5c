// Package tpmquote verifies what TPM2_Quote signed: the nonce of the
// relying party and the SHA-256 bank of all 24 platform configuration registers.
//
//	signature -> TPMS_ATTEST -> PCR digest -> nonce, init data -> claims
//
// Place in the data path: the verifiers of guests with a vTPM decode their
// JSON, decide which attestation key speaks, and call Verify.
//
// Trust: message, signature and registers are hostile. The key decides what a
// verified quote is worth: this package asks only that it is RSA with 2048 to
// 4096 bits. A TPM signs what does not start like its own structures with the
// same key only if that key is not restricted, so the magic number counts only
// as much as whoever vouches for the key.
//
// It reads the one form of quote that attesters of Confidential Containers ask
// for and refuses every other, rather than judging which registers matter.
//
// Sources: TCG "Trusted Platform Module Library" Part 2 rev 1.59 §6.2, §6.9,
// §10.5 and §10.12; trustee deps/verifier/src/{az_snp_vtpm,tpm} at 78962cd4.
package tpmquote
