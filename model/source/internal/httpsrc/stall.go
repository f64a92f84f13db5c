package httpsrc

import (
	"context"
	"errors"
	"io"
	"time"
)

// errStalled says that a server sent next to nothing for too long.
var errStalled = errors.New("the connection stalled")

// trickle is how many bytes must come within the limit: less than anyone could
// use, more than one who only keeps the connection busy sends.
const trickle = 64 << 10

// stallBody cancels the request of a body when its reader has waited for longer
// than limit for the next trickle. Time the reader spends elsewhere does not
// count.
type stallBody struct {
	io.ReadCloser
	limit, left time.Duration
	got         int // bytes since left was full
	timer       *time.Timer
	cancel      context.CancelCauseFunc
}

func guardStall(body io.ReadCloser, limit time.Duration, cancel context.CancelCauseFunc) *stallBody {
	t := time.AfterFunc(limit, func() { cancel(errStalled) })
	t.Stop()
	return &stallBody{ReadCloser: body, limit: limit, left: limit, timer: t, cancel: cancel}
}

// Read implements io.Reader.
func (b *stallBody) Read(p []byte) (int, error) {
	start := time.Now()
	b.timer.Reset(b.left)
	n, err := b.ReadCloser.Read(p)
	if !b.timer.Stop() && err != nil && !errors.Is(err, io.EOF) {
		err = errStalled
	}
	b.left = max(b.left-time.Since(start), 1)
	if b.got += n; b.got >= trickle {
		b.got, b.left = 0, b.limit
	}
	return n, err
}

// Close implements io.Closer.
func (b *stallBody) Close() error {
	b.timer.Stop()
	err := b.ReadCloser.Close()
	b.cancel(nil)
	return err
}
