// Package azure simulates an Azure confidential VM as its guest sees it: a
// virtual TPM (a real one, swtpm), the report of the hardware that the paravisor
// keeps in it and renews, and the metadata service.
//
//	guest -> ROOT/dev/tpmrm0 -> front -> swtpm
//	             NV write of report data -> paravisor -> Hardware -> HCL report in NV
//	guest -> http://127.0.0.1:PORT -> quote of a TD report, or AMD's certificates
//
// Place in the data path: on a simulated machine of the kinds az-tdx-vtpm and
// az-snp-vtpm it stands below attester/azvtpm. What signs is a simulated
// platform of teesim/tdx or teesim/snp.
//
// Trust: a simulator proves nothing. The guest's bytes are hostile all the same:
// commands are framed and bounded before the TPM sees them, and the guest cannot
// change the paravisor's report, since the TPM itself lets only the platform
// hierarchy write it, whose password nobody knows but the paravisor.
//
// What differs from Azure:
//
//   - The HCL report has 2048 bytes, not 2600: libtpms takes no longer NV index.
//     So it names the attestation key only, and not the endorsement key too.
//     Azure's own reports were like that once (az-cvm-vtpm 0.8.1,
//     test/hcl-report-snp.bin).
//   - Each VM has a new TPM, which is gone with it.
//   - Boot extends the SHA-256 bank of PCRs alone, and there is no event log.
//   - Of the kernel's resource manager there is what keeps clients apart in time:
//     one command at a time, and what a client leaves loaded is flushed when its
//     connection ends. Handles are not virtual: clients see those of others, and
//     share room for two objects and three sessions. A third object is refused
//     where the kernel would swap one out, so that the attestation key can always
//     be loaded.
//
// Sources: az-cvm-vtpm 0.8.1 (src/hcl, src/vtpm, az-tdx-vtpm/src/imds.rs,
// az-snp-vtpm/src/imds.rs); TCG TPM 2.0 library specification 1.59; Linux v6.12
// drivers/char/tpm.
package azure
