package layer

import (
	"context"
	"errors"
)

// Merge folds layers that Apply made in Plain mode, base first, into dst.
func Merge(ctx context.Context, layers []string, dst string) error {
	return errors.ErrUnsupported
}
