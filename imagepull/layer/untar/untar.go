// Package untar unpacks one layer tar below a directory.
package untar

import "errors"

var (
	// ErrArchive says that the tar is broken or asks for something forbidden.
	ErrArchive = errors.New("invalid layer archive")
	// ErrTooLarge says that a cap was exceeded.
	ErrTooLarge = errors.New("layer too large")
)

// Mode says how a layer is laid out on disk.
type Mode int

// See package layer for what the modes mean.
const (
	Overlay Mode = iota
	Plain
)

// Default caps.
const (
	DefaultMaxBytes   = 1 << 40
	DefaultMaxEntries = 1 << 20
)
