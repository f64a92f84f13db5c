package tool

import (
	"context"
	"errors"
	"fmt"

	"github.com/sealpod/sealpod/podvm"
)

// Errors that all kinds of volumes share; cdh/mount and forwarder/volume export
// them.
var (
	// ErrOption says that a request is malformed or names something that is not
	// supported.
	ErrOption = errors.New("option not supported")
	// ErrBusy says that a device, a name or a mount point is in use.
	ErrBusy = errors.New("in use")
	// ErrForeign says that a device to be formatted carries data.
	ErrForeign = errors.New("the device carries data")
	// ErrKey says that the key does not open the volume, or is none.
	ErrKey = errors.New("wrong key")
)

// Option makes an ErrOption whose text may leave the guest. It quotes what the
// caller itself sent, so args go through podvm.Printable.
func Option(format string, args ...any) error {
	why := fmt.Sprintf(format, args...)
	return podvm.Explain(fmt.Errorf("%w: %s", ErrOption, why), why)
}

// Explain says before err what was being done, and gives it a cause unless it
// brings its own or is the end of a context, which the server explains. A nil
// err stays nil.
func Explain(doing string, err error, cause string) error {
	if err == nil {
		return nil
	}
	err = fmt.Errorf("%s: %w", doing, err)
	if podvm.Cause(err) != "" || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return podvm.Explain(err, cause)
}
