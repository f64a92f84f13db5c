// Package snp verifies the evidence of AMD SEV-SNP guests.
//
//	JSON -> 1184-byte report -> endorsement key -> chain -> signature -> claims
//
// Place in the data path: package attestation hands the evidence of a guest to
// a Verifier, which answers with claims for the attestation policy. Packages
// for guests behind a vTPM verify the bare report with VerifyReport.
//
// Trust: the evidence is hostile. The report counts once it is signed by an
// endorsement key (VCEK or VLEK) that chains to a root of the configuration:
// AMD's for Milan, Genoa and Turin unless the configuration says otherwise. Root
// and endorsement key are tied to the report by product, firmware versions and,
// for a VCEK, the id of the chip. Key servers and stores are not trusted: what
// they return must pass the same checks.
//
// It does not judge: debugging, migration and old firmware are claims that the
// policy weighs. VMPL other than 0 is refused, because such a report speaks for
// less than the whole guest.
//
// Revocation: AMD publishes lists signed by the ARK, which name certificates that
// the ARK signed: the ASK and the ASVK. One that the guest sends along and that
// of a source are both looked at. Endorsement keys are on no list, since all have
// the serial number 0; what ends them is a firmware version that the policy no
// longer accepts.
//
// Sources: AMD 56860 "SEV Secure Nested Paging Firmware ABI Specification" and
// 57230 "VCEK Certificate and KDS Interface Specification"; trustee
// deps/verifier/src/snp at 78962cd4; on revocation, the distribution points in
// AMD's own certificates (go-sev-guest v0.15.0 verify/trust).
package snp
