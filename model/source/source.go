// Package source reads where models are kept: object stores, Hugging Face, OCI
// registries, web servers and local folders, behind one interface that lists a
// model's objects and reads ranges of them.
//
// Data path: the storage initializer lists each source it was given, then
// fetches ranges of objects, several at once, and checks or decrypts them.
//
// Trust: a source, and the network before it, may answer anything: listings are
// capped, names are checked before they become paths, bodies are bounded by
// what was asked for, and credentials go to the host they are for only.
package source

import (
	"context"
	"errors"
	"io"
)

// Limits of a listing.
const (
	MaxObjects = 100_001 // the files of a sealed model and its manifest
	MaxName    = 1024    // bytes of an object's name below its source
)

// Why a source gave no object. Each error of a Source is one of these, or of the
// context.
var (
	// ErrUsage says that a source's address or settings make no sense.
	ErrUsage = errors.New("not the address of a model")
	// ErrUnsupported says that an address is of a kind nobody here reads.
	ErrUnsupported = errors.New("no such kind of source")
	// ErrNotFound says that there is nothing at the address.
	ErrNotFound = errors.New("nothing there")
	// ErrRefused says that the source wants other credentials.
	ErrRefused = errors.New("access refused")
	// ErrUnreachable says that the source gave no usable answer, after retries.
	ErrUnreachable = errors.New("source not reachable")
	// ErrChanged says that an object is not the one that was listed.
	ErrChanged = errors.New("object changed while it was fetched")
	// ErrNoRanges says that the source sends objects from their beginning only.
	ErrNoRanges = errors.New("source sends no ranges")
	// ErrListing says that a listing is not acceptable: too long, or with names
	// that are no paths.
	ErrListing = errors.New("unacceptable listing")
)

// Object is one thing in a source.
type Object struct {
	// Path is the object's name relative to the source: clean, without "..",
	// at most MaxName bytes.
	Path string
	// Size in bytes, or -1 where the source does not say.
	Size int64
	// Version is what a later read is held to, such as an ETag, or "" where the
	// source has nothing like it.
	Version string
}

// Source is one address of a model. Its methods may be called by several
// goroutines at once. Answers that fail in passing are asked for again, within
// the source's own limits of attempts and the context.
type Source interface {
	// List returns the objects, sorted by path: of a folder all that are in it,
	// of a single object that one under its own name.
	List(ctx context.Context) ([]Object, error)
	// Open returns n bytes of o from off, or with n < 0 all from off. A body cut
	// short is resumed where it ended; the reader fails with ErrUnreachable when
	// that does not help and with ErrChanged when o is no longer the same. Where
	// ranges are not to be had and off > 0 or n ends before o does: ErrNoRanges.
	Open(ctx context.Context, o Object, off, n int64) (io.ReadCloser, error)
	// String is the address without credentials, printable.
	String() string
}
