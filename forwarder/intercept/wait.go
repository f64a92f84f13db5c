package intercept

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/moby/sys/mountinfo"

	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/tool"
)

// errNotMounted says that nothing was mounted on a target path within patience.
var errNotMounted = errors.New("nothing was mounted there in time")

const (
	patience  = 3 * time.Minute // for each mount, within the caller's deadline
	longPause = 100 * time.Millisecond
)

// wait returns when something is mounted on path, which the driver of the volume
// sees to.
func (i *Interceptor) wait(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, errNotMounted)
	defer cancel()
	start := time.Now()
	notYet := func(error) bool { return true } // the driver makes the directory, too
	err := tool.Retry(ctx, longPause, notYet, func() error {
		mounted, err := mountinfo.Mounted(i.host.Path(path))
		if err == nil && !mounted {
			err = errNotMounted
		}
		return err
	})
	shown := podvm.Printable(path, 256)
	if err != nil {
		return podvm.Explain(fmt.Errorf("waiting for a mount on %s: %w", shown, context.Cause(ctx)), "a volume of the container was not mounted in time")
	}
	i.log.Info("Volume is mounted", "path", shown, "dur", time.Since(start))
	return nil
}
