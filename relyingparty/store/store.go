// Package store keeps what a relying party must remember across restarts:
// resources, policies, reference values and its own keys.
//
// Place in the data path: everything else in relyingparty reads and writes
// through the Store interface. Dir is the embedded default, one file per value
// in the layout of Trustee's LocalFs backend; Memory is for tests and for
// relying parties that may forget. A store shared by several relying parties
// (a network file system under Dir, or another implementation of Store) makes
// them one: nothing above this package caches a value without comparing it
// with the stored one.
//
// Trust: namespaces are constants of this module; keys come from requests and
// are checked here; values are opaque. The store does not encrypt: whoever
// reads its files has the secrets.
package store

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/sealpod/sealpod/podvm"
)

// What callers tell apart.
var (
	// ErrNotFound says that nothing is stored under that key.
	ErrNotFound = errors.New("not in the store")
	// ErrExists says that Create found a value under that key.
	ErrExists = errors.New("already in the store")
	// ErrKey says that a text cannot be a key.
	ErrKey = errors.New("not a store key")
	// ErrFull says that a namespace or a value is over its cap.
	ErrFull = errors.New("over the cap of the store")
)

// Caps that bound what one store can grow to through requests.
const (
	// MaxValueBytes is the size of the largest value.
	MaxValueBytes = 4 << 20
	// MaxKeys is the number of keys of one namespace.
	MaxKeys = 16384
	// maxFileName is NAME_MAX of Linux less the room for a temporary suffix.
	maxFileName = 230
)

// Namespace is a group of keys. The names are those of Trustee, so that its
// LocalFs directory and ours can be exchanged.
// Source: trustee docs of the storage backends at 78962cd4.
type Namespace string

// The namespaces in use.
const (
	// KBS holds the resource policy.
	KBS Namespace = "kbs"
	// Repository holds the resources under repo/type/tag.
	Repository Namespace = "repository"
	// AttestationPolicy holds attestation policies under their id and ".rego".
	AttestationPolicy Namespace = "attestation_service_policy"
	// ReferenceValue holds reference values under their name.
	ReferenceValue Namespace = "reference_value"
	// RelyingParty holds the token signing key and the admin token's digest;
	// it has no counterpart in Trustee.
	RelyingParty Namespace = "relying_party"
)

// Store keeps small values under keys. All methods may be called at the same
// time. Keys that CheckKey refuses are ErrKey.
type Store interface {
	// Get returns a copy of the value, or ErrNotFound.
	Get(ctx context.Context, ns Namespace, key string) ([]byte, error)
	// Put sets the value; readers see the old or the new one, never a part.
	// A value or namespace over its cap is ErrFull.
	Put(ctx context.Context, ns Namespace, key string, value []byte) error
	// Create sets the value of a new key; an existing one is ErrExists.
	Create(ctx context.Context, ns Namespace, key string, value []byte) error
	// Delete removes the key, or is ErrNotFound.
	Delete(ctx context.Context, ns Namespace, key string) error
	// List returns all keys in order.
	List(ctx context.Context, ns Namespace) ([]string, error)
}

// CheckKey tells whether key can be stored: one or more segments of
// [A-Za-z0-9-_.] joined by "/", none empty or starting with a dot, and short
// enough for a file name once "/" is written as four characters. A key that is
// not so is ErrKey.
func CheckKey(key string) error {
	for _, seg := range strings.Split(key, "/") {
		if seg == "" || seg[0] == '.' {
			return fmt.Errorf("%w: %q: a segment is empty or starts with a dot", ErrKey, podvm.Printable(key, 128))
		}
	}
	for i := range len(key) {
		if !allowed(key[i]) {
			return fmt.Errorf("%w: %q: want letters, digits and - _ . /", ErrKey, podvm.Printable(key, 128))
		}
	}
	if n := len(fileName(key)); n > maxFileName {
		return fmt.Errorf("%w: %q: %d bytes as a file name, want at most %d", ErrKey, podvm.Printable(key, 128), n, maxFileName)
	}
	return nil
}

func allowed(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("-_./", c) >= 0
}

// slash is how "/" of a key is written in a file name.
// Source: trustee LocalFs key-value storage at 78962cd4.
const slash = `\x2F`

func fileName(key string) string { return strings.ReplaceAll(key, "/", slash) }

func keyOf(fileName string) string { return strings.ReplaceAll(fileName, slash, "/") }

func checkValue(value []byte) error {
	if len(value) > MaxValueBytes {
		return fmt.Errorf("%w: a value of %d bytes, want at most %d", ErrFull, len(value), MaxValueBytes)
	}
	return nil
}
