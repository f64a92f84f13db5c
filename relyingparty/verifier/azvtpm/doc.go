// Package azvtpm verifies the evidence of Azure's confidential VMs, AMD SEV-SNP
// and Intel TDX alike.
//
//	JSON -> TPM quote -> attestation key -> HCL report -> hardware report -> claims
//
// Place in the data path: package attestation hands the evidence of a guest to
// a Verifier, which answers with claims for the attestation policy. Packages
// snp and tdx verify the hardware's part of the evidence.
//
// Trust: the evidence is hostile. It is a chain, and nothing counts before its
// last link holds: the quote over nonce and PCRs is signed by the attestation
// key in the HCL report's claims; the hash of those claims is the report data
// of a hardware report; and that is signed by AMD's or Intel's hardware.
//
// What the chain does not say is that a paravisor made it: any confidential VM
// can put a key of its own into its report data and sign PCRs of its choice
// with it. PCRs are worth what the measurement of the hardware (measurement of
// SNP, quote.body.mr_td of TDX) is worth, and a policy must ask for both. With
// TDX it must also ask that RTMR 0 and 1 are zero, as a paravisor leaves them,
// unless it knows that no mr_td in its list is firmware that starts other code.
// VMPL other than 0 is refused, because such a report speaks for the guest below
// the paravisor.
//
// The TD report in the HCL report is not looked at: the quote is signed, and it
// is the quote's report data that counts. Debugging and old firmware are claims
// that the policy weighs, as are PCRs; init data is compared with PCR 8.
//
// An event log, which later attesters send, is replayed over the PCRs it
// names, from zeros. Locality keeps guests from extending PCR 17 to 22, which
// start with ones, so that a log that names those is refused.
//
// Sources: trustee deps/verifier/src/{az_snp_vtpm,az_tdx_vtpm} at 78962cd4, the
// event log at a200c511; az-cvm-vtpm 0.8.1; on RTMRs trustee's quotes of Azure at
// 78962cd4 and openvmm at 1488a37b, which extends none.
package azvtpm
