// Package snp simulates an AMD chip with SEV-SNP: it endorses keys, measures
// guests and signs their attestation reports as a chip of the Milan, Genoa or
// Turin generation does.
//
//	Launch -> measurement, policy, firmware -> report -> signature of the VCEK
//
// Place in the data path: on a simulated machine it stands where the secure
// processor is, below the kernel's configfs and behind the vTPM of a simulated
// cloud; verifier tests take their reports from it. Package attester/snp on one
// side and relyingparty/verifier/snp on the other are written independently of
// it and must both agree with it.
//
// Trust: none is due. Each identity has a root key of its own, which anybody who
// can read DIR/keys can use; nothing accepts it unless it is told to, and AMD's
// roots do not. Guests here are not isolated from anything.
//
// It differs from AMD's where that would only cost time: ARK, ASK and ASVK sign
// with ECDSA on P-384, not with RSA-PSS of 4096 bits (real certificates are in
// the tests of the verifier), all keys follow from one secret, and the measured
// pages stand at addresses of our own and come without a VMSA.
//
// Sources: AMD 56860 "SEV Secure Nested Paging Firmware ABI Specification",
// 57230 "VCEK Certificate and KDS Interface Specification", 56421 "Guest-
// Hypervisor Communication Block Standardization"; AMD's certificates as in
// go-sev-guest v0.15.0 verify/trust.
package snp
