// Package azure simulates an Azure confidential VM as its guest sees it: a
// virtual TPM (a real one, swtpm), the report of the hardware that the paravisor
// keeps in it and renews, and the metadata service.
//
//	guest -> ROOT/dev/tpmrm0 -> front -> swtpm
//	             reading the HCL report -> paravisor -> Hardware -> new HCL report in NV
//	guest -> http://127.0.0.1:PORT -> quote of a TD report, or AMD's certificates
//
// Place in the data path: on a simulated machine of the kinds az-tdx-vtpm and
// az-snp-vtpm it stands below attester/azvtpm. What signs is a simulated
// platform of teesim/tdx or teesim/snp.
//
// Trust: a simulator proves nothing. The guest's bytes are hostile all the same:
// commands are framed and bounded before the TPM sees them, and the guest cannot
// change the paravisor's report, since the TPM itself lets nobody write it without
// a password that only the paravisor knows.
//
// What differs from Azure:
//
//   - The HCL report has 2048 bytes, not 2600: libtpms takes no longer NV index.
//     So it names the attestation key only, and not the endorsement key too.
//     Azure's own reports were like that once (az-cvm-vtpm 0.8.1,
//     test/hcl-report-snp.bin).
//   - Each VM has a new TPM, which is gone with it.
//   - The metadata service has two paths, and nothing else of the real one.
//   - Boot extends the SHA-256 bank of PCRs alone, and there is no event log.
//   - Of the kernel's resource manager there is what keeps clients apart in time:
//     one command at a time, and what a client leaves loaded is flushed when its
//     connection ends. Handles are not virtual: clients see those of others, and
//     share room for two objects and three sessions. A third object is refused
//     where the kernel would swap one out, so that the attestation key can always
//     be loaded.
//
// Sources: az-cvm-vtpm 0.8.1 (src/hcl, src/vtpm, az-tdx-vtpm/src/imds.rs,
// az-snp-vtpm/src/imds.rs); openvmm at 1488a37b, whose vm/devices/tpm and openhcl
// are the paravisor; TCG TPM 2.0 library specification 1.59; Linux v6.12
// drivers/char/tpm.
package azure
