// Package tdx verifies the evidence of Intel TDX guests.
//
//	JSON -> quote -> PCK chain -> collateral -> signatures -> TCB -> event log -> claims
//
// Place in the data path: package attestation hands the evidence of a guest to
// a Verifier, which answers with claims for the attestation policy. Packages
// for guests behind a vTPM verify the bare quote with VerifyQuote.
//
// Trust: the evidence is hostile. A quote counts once it is signed by an
// attestation key that a quoting enclave vouches for, which a PCK certificate
// vouches for, which chains to a root of the configuration: Intel's unless it
// says otherwise. Collateral (TCB levels, enclave identity, revocation lists)
// is asked for only after the PCK chain held, and must be signed under the very
// same root, so that the collateral of a simulator never speaks for Intel's
// hardware. Sources of collateral are not trusted, but they can hold back news:
// the dates are claims.
//
// Init data is accepted when its digest is in the signed quote, in one of two
// places; the claim init_data_binding says which:
//
//	mrconfigid   the host set it at launch: MRCONFIGID is the digest, cut or padded
//	rtmr3        the host set nothing, and the first event of RTMR3 is the agent's:
//	             github.com/sealpod/sealpod BindInitData DIGEST, in hexadecimal
//
// Why the first: the attestation agent binds init data before it serves, so
// before any container can ask it to record an event; registers cannot go back,
// so what containers record comes later, whatever they call it. Our agent also
// refuses that domain to its callers. Another agent, which neither binds nor
// refuses, leaves the place to the first container that wants it: a policy that
// trusts rtmr3 must know the guest's image by its measurements. An MRCONFIGID
// that is set is never overruled.
//
// It does not judge: an old TCB, a debug TD and stale collateral are claims
// that the policy weighs. A revoked certificate or TCB level is refused, as is
// one that Intel does not know.
//
// The quote is parsed here and not by go-tdx-guest, which slices hostile
// lengths without bounds; that library has the types of Intel's collateral.
//
// Sources: Intel "TDX DCAP Quoting Library API" rev 0.9 appendix A.3 and A.4,
// "SGX PCK Certificate and CRL Profile" rev 1.5, and the API documentation of
// the provisioning certification service v4; claims as in trustee
// deps/verifier/src/{tdx,intel_dcap} at 78962cd4.
package tdx
