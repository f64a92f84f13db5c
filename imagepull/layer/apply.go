package layer

import (
	"context"
	"errors"
	"io"
)

// Apply reads blob to its end, verifies it against spec and unpacks it into
// dir, which exists and is empty. key is what UnwrapKey returned for spec.
func Apply(ctx context.Context, blob io.Reader, spec Spec, key *Key, dir string, opts Options) (Stats, error) {
	return Stats{}, errors.ErrUnsupported
}
