package relyingparty

import (
	"context"
	"time"

	"golang.org/x/sync/semaphore"
)

// patience is how long a call to somebody else may take before the guest whose
// evidence needs it gives back its room.
const patience = 100 * time.Millisecond

// room is what a request holds of Server.work. It belongs to one goroutine.
type room struct {
	ctx   context.Context // of the request
	work  *semaphore.Weighted
	bytes int64
	held  bool
}

// enter waits for room for that many bytes. The caller must leave.
func (s *Server) enter(ctx context.Context, bytes int64) (*room, error) {
	r := &room{ctx: ctx, work: s.work, bytes: bytes}
	if err := r.work.Acquire(ctx, bytes); err != nil {
		return nil, err
	}
	r.held = true
	return r, nil
}

func (r *room) leave() {
	if r.held {
		r.work.Release(r.bytes)
		r.held = false
	}
}

// park makes a call and has no room while it takes long: evidence that makes us
// ask a key server, which anybody can send, must not keep out the rest while that
// server is silent. If the request ends before there is room again, it goes on
// without: nothing but errors is left to do.
func (r *room) park(call func()) {
	left := make(chan struct{})
	timer := time.AfterFunc(patience, func() { r.work.Release(r.bytes); close(left) })
	defer func() {
		if !timer.Stop() {
			<-left
			r.held = r.work.Acquire(r.ctx, r.bytes) == nil
		}
	}()
	call()
}
