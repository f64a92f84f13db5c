// Package azvtpm makes evidence of Azure's confidential VMs, AMD SEV-SNP and
// Intel TDX alike. Their guest sees no TEE device: a paravisor, part of the
// measured VM, owns the TEE and offers a virtual TPM.
//
// Evidence is a chain. The TPM's attestation key signs report data and PCRs;
// the paravisor's report (HCL report) holds that key and the report data; a
// hash of those is in the hardware report; and that is signed by the hardware,
// which takes a certificate or a quote from the host's metadata service.
//
// Data path: attester.Detect chooses it; the attestation agent hands its
// evidence to callers and to the KBS, whose verifier walks the chain. The
// registers it offers, the PCRs, are what package eventlog extends.
//
// Trust: the TPM is the paravisor's and speaks for it, but what it says is
// bounded and parsed strictly all the same. The metadata service is the host:
// its answers are capped, checked for their form and passed on, never believed.
//
// It verifies no signature.
//
// Sources: guest-components attestation-agent/attester/src/{az_snp_vtpm,az_tdx_vtpm}
// at 8246e5e0; az-cvm-vtpm 0.8.1; azure-guest-attestation-sdk at 9c8344cb;
// openvmm at 1488a37b, whose vm/devices/tpm and openhcl are the paravisor.
package azvtpm
