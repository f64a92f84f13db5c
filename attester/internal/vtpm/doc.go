// Package vtpm talks to the TPM 2.0 of this machine: it reads and writes NV
// indices, quotes, extends and reads PCRs, and ties init data to PCR 8.
//
// Data path: attester/azvtpm and attester/tpm make evidence with it, and offer
// the PCRs to package eventlog as registers.
//
// Trust: on Azure the TPM is the paravisor's, inside the trust boundary; on
// other machines it is the host's. Either way its answers are hostile here:
// capped, parsed within bounds, and checked against what was asked.
//
// Waiting: one caller at a time has the TPM, among all processes that use this
// package, and the wait for it ends with the caller's context. A command through a socket ends with the context too. One
// to the kernel's device cannot be called off: the context is looked at before
// it, and the kernel's driver bounds it, to 2 s for the long ones a TPM says it
// has and to 120 s for a TPM that hangs.
//
// It verifies no signature and decides nothing about what it reads.
//
// Sources: TCG TPM 2.0 library specification 1.59; Linux drivers/char/tpm at
// 6.12, tpm-dev-common.c and tpm2-cmd.c.
package vtpm
