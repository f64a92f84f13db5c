// Package sealed reads sealed models: a model's files, each encrypted in
// segments that authenticate where they belong, and a manifest that closes the
// set. FORMAT.md beside this file is the format.
//
// Data path: the storage initializer fetches a bucket's manifest and segments,
// opens them here and writes plaintext into the volume of the model server.
// Package seal makes what this one reads.
//
// Trust: whoever stores the model may change, mix, drop, reorder and roll back
// every byte of it. Nothing is used before its tag held. The key is trusted; a
// pin in it ends rollback as well.
package sealed

import "errors"

var (
	// ErrKey says that bytes are not the key of a model.
	ErrKey = errors.New("not a model key")
	// ErrIntegrity says that bytes are not what the key's owner sealed, or not
	// under this key, or belong elsewhere.
	ErrIntegrity = errors.New("sealed model does not match its key")
	// ErrManifest says that a manifest which is authentic is not valid.
	ErrManifest = errors.New("invalid manifest of a sealed model")
	// ErrPin says that a manifest is authentic, but not the one the key names.
	ErrPin = errors.New("another version of the model than the one its key names")
)
