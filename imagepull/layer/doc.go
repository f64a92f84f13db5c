// Package layer turns one image layer blob into a directory: it reads the blob
// once and, on the way, checks size and digest, decrypts, inflates, checks the
// diffID and unpacks.
//
// Data path: imagepull/registry delivers the blob, the caller has already bound
// the Spec to a verified manifest and config; Apply fills a private staging
// directory; imagepull/store publishes the directory when Apply returned nil
// and, where overlayfs cannot be used, Merge folds layers into one directory.
//
// Trust: every byte of the blob and every annotation is hostile. Unverified
// bytes drive only memory-safe, capped code that writes below the staging
// directory. AES-CTR is malleable, so for an encrypted layer no detail of what
// the inflater or the unpacker thought of unauthenticated bytes leaves Apply:
// ciphertext is read to its end and its verdict comes first (ErrDecrypt).
//
// It does not fetch, mount, cache or decide whether an image is allowed, and
// a Spec that says "not encrypted" is believed: only a signature stops someone
// from serving a plain layer where an encrypted one was expected.
package layer
