package source

import (
	"context"

	"github.com/sealpod/sealpod/podvm"
)

// Unpacker is a Source that has its files in archives, such as the layers of an
// image, whose parts say nothing before all of an archive was checked. What it
// lists are the archives; Open has no use.
type Unpacker interface {
	Source
	// Pinned tells whether the address has a digest, which binds every byte. Without
	// one, the source decides what it sends.
	Pinned() bool
	// Unpack fetches all archives and puts what is the model in them into the
	// folder dir, which exists. Nothing has its name there before everything was
	// checked; after an error, Unpack continues with the archive it failed at.
	// Errors: those of a Source, sealed.ErrIntegrity for archives that are not
	// what the source promised, layer.ErrDecrypt for those that cannot be
	// decrypted, which is key.ErrUnreachable too when nobody could be asked for the
	// key, room.ErrSpace.
	Unpack(ctx context.Context, dir string, keys Keys) error
}

// Keys opens the wrapped keys of encrypted archives. A nil Keys opens none.
type Keys interface {
	// UnwrapKey returns what is in one wrapped key, of which the caller wipes the
	// result.
	UnwrapKey(ctx context.Context, packet []byte) (podvm.Secret, error)
}
