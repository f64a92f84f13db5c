// Package policy decides whether an image may be used at all. It reads the
// owner's policy.json, finds the rule for an image and checks the signatures
// that rule asks for: sigstoreSigned (cosign's `.sig` tags and the Sigstore
// bundles of cosign 3, by key), signedBy (GPG simple signing) and, of our own,
// sealpodEncrypted.
//
// Data path: imagepull resolves a reference and parses the manifest, asks this
// package for a decision, and only then lets a byte of a layer be unpacked.
// The decision binds to the digest of the manifest bytes already parsed; no
// tag is looked up a second time, so a tag that moves changes nothing.
//
// Trust: the policy and the public keys are the owner's word, but they arrive
// through files or a network and are parsed strictly. Signatures, payloads and
// annotations come from a registry or a lookaside store and are hostile: sizes
// and counts are capped, and one bad signature never hides a good one.
//
// Every cryptographic verdict is a library's: cosign's, reached through one
// interface in cosign.go, and go-crypto's in openpgp.go. What this package does
// not do: fetch anything itself (package lookaside below it does so for
// signedBy), verify transparency logs or certificates. A policy that asks for
// one of those is refused when it is read, never quietly weakened.
//
// Source of format and semantics: policy.json of containers/image, as
// guest-components image-rs/src/signature at 8246e5e evaluates it.
package policy
