// Package imageseal is the owner's side of confidential images: it encrypts
// their layers, signs them, and shows what an image is protected by.
//
// Data path: an image built with any tool is read from a registry or an OCI
// layout, its layers are encrypted on the way to the destination, the keys go
// to the owner's key broker, and a signature is put beside the result. In the
// pod VM, imagepull checks that signature and asks the broker for the keys.
//
// Trust: it runs on the owner's machine with the owner's credentials. Source
// images and registries are not trusted to be well formed: every blob is
// checked against its digest while it is read. Layers are streamed through
// temporary files that hold ciphertext only.
//
// It does not decrypt, build or scan images, and never runs inside a pod VM.
//
// Sources of the formats: containers/ocicrypt v1.3.2; guest-components
// attestation-agent/docs/IMAGE_ENCRYPTION.md at 8246e5e; cosign
// specs/SIGNATURE_SPEC.md at v2.6.5.
package imageseal
