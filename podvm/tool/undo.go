package tool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm"
)

// undoTimeout bounds a rollback, which runs although the call was cancelled.
const undoTimeout = 30 * time.Second

// Undo is the steps that take back what a call did so far. Its zero value has
// none.
type Undo []func(context.Context) error

// Add puts step before all earlier ones.
func (u *Undo) Add(step func(context.Context) error) { *u = append(*u, step) }

// OnError runs the steps, last first, when *err is not nil, and joins what
// fails to it. All steps run, whatever fails. Values of ctx are kept, its end is
// not.
func (u Undo) OnError(ctx context.Context, err *error) {
	if *err == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	var failed []error
	for _, step := range slices.Backward(u) {
		failed = append(failed, step(ctx))
	}
	if e := errors.Join(failed...); e != nil {
		// The caller is told of what happened first.
		*err = podvm.Explain(fmt.Errorf("%w; taking it back: %w", *err, e), podvm.Cause(*err))
	}
}

// Retry calls f as long as it returns an error that is busy, with pauses that
// grow to the longest, at most until ctx ends: what was used just now is let go a
// moment later.
func Retry(ctx context.Context, longest time.Duration, busy func(error) bool, f func() error) error {
	for pause := time.Millisecond; ; pause = min(2*pause, longest) {
		err := f()
		if err == nil || !busy(err) {
			return err
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return errors.Join(err, context.Cause(ctx))
		case <-timer.C:
		}
	}
}

// Unmount takes the topmost mount off path, now for new users and when the last
// one is gone for good. Nothing mounted there is not an error.
func Unmount(path string) error {
	err := unix.Unmount(path, unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EBUSY) {
		err = unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	}
	if err == nil || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return fmt.Errorf("unmounting %s: %w", path, err)
}
