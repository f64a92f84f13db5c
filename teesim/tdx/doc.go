// Package tdx simulates an Intel TDX platform: its keys and certificates, the
// trust domains (TDs) that run on it, the quotes over them, and the collateral
// that Intel would publish about it. Everything is really signed and really
// measured, under a root of the simulator's own.
//
//	Open -> Platform -> NewTD (boot: MRTD, RTMR0..2, CCEL) -> Report -> QuoteOfReport
//	               \--> CollateralJSON, Root: what a relying party needs
//
// Place: the guest's attester reads registers, event log and quotes from what a
// TD shows through a simulated /sys; the relying party's verifier of tdx checks
// the quotes. Tests of both make quotes that are wrong with Parts and TCB.
//
// Trust: a simulator proves nothing. Its quotes fail under Intel's root, and
// its root must be configured to be trusted. A TDREPORT that comes from outside
// (QuoteOfReport) is checked as the quoting enclave does.
//
// It has no memory encryption and no other protection: whoever reads the
// directory of a Platform can sign as the platform.
//
// Sources, by the names in comments: "DCAP" is Intel "TDX DCAP Quoting Library
// API" rev 0.9 appendix A.3; "ABI" is Intel "TDX Module 1.5 ABI" (TDREPORT_STRUCT,
// TDH.MEM.PAGE.ADD, TDH.MR.EXTEND); "PCK" is "SGX PCK Certificate and CRL
// Profile" rev 1.5; "PCS" is the API of Intel's provisioning certification
// service v4; "PFP" is TCG PC Client Platform Firmware Profile 1.06 §10.
package tdx
