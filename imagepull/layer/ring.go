package layer

import (
	"context"
	"io"
)

const (
	chunkSize = 256 << 10 // bytes per buffer
	ringDepth = 4         // full buffers waiting in one ring
)

// pool hands out buffers of chunkSize bytes for the rings of one Apply. Rings
// are bounded, so at most stages*(ringDepth+2) buffers exist at a time: 6 MiB
// for an encrypted layer.
type pool chan []byte

func newPool() pool { return make(pool, 32) }

func (p pool) get() []byte {
	select {
	case b := <-p:
		return b[:chunkSize]
	default:
		return make([]byte, chunkSize)
	}
}

func (p pool) put(b []byte) {
	select {
	case p <- b:
	default:
	}
}

// ring carries filled buffers from one goroutine to the next. The sender calls
// send and at last close; the receiver calls Read or next until an error.
type ring struct {
	ctx    context.Context // ends both sides
	pool   pool
	full   chan []byte
	err    error  // what the receiver gets after the last buffer; set before full is closed
	unread []byte // rest of the buffer Read is in
	head   []byte // that buffer, to be returned to the pool
}

func newRing(ctx context.Context, p pool) *ring {
	return &ring{ctx: ctx, pool: p, full: make(chan []byte, ringDepth)}
}

// send passes on a filled buffer, which then belongs to the receiver.
func (r *ring) send(b []byte) error {
	select {
	case r.full <- b:
		return nil
	case <-r.ctx.Done():
		return context.Cause(r.ctx)
	}
}

// close ends the stream; the receiver gets err, io.EOF if it is nil.
func (r *ring) close(err error) {
	if err == nil {
		err = io.EOF
	}
	r.err = err
	close(r.full)
}

// next returns the next buffer; the caller sends it on or puts it back.
func (r *ring) next() ([]byte, error) {
	// A full ring must not outlive its context by select's dice.
	if err := r.ctx.Err(); err != nil {
		return nil, context.Cause(r.ctx)
	}
	select {
	case b, ok := <-r.full:
		if !ok {
			return nil, r.err
		}
		return b, nil
	case <-r.ctx.Done():
		return nil, context.Cause(r.ctx)
	}
}

// Read implements io.Reader on the receiving side.
func (r *ring) Read(p []byte) (int, error) {
	for len(r.unread) == 0 {
		if r.head != nil {
			r.pool.put(r.head)
			r.head = nil
		}
		b, err := r.next()
		if err != nil {
			return 0, err
		}
		r.head, r.unread = b, b
	}
	n := copy(p, r.unread)
	r.unread = r.unread[n:]
	return n, nil
}

// drain reads to the end of the stream, so that the sender is never stopped
// by a receiver that has given up.
func (r *ring) drain() {
	for {
		b, err := r.next()
		if err != nil {
			return
		}
		r.pool.put(b)
	}
}

// pump reads src into buffers and sends them until src ends. It returns the
// error src ended with (nil for io.EOF), or that of the ring's context. max
// bounds the bytes sent; one more is ErrTooLarge.
func (r *ring) pump(src io.Reader, tap io.Writer, max int64) (sent int64, err error) {
	for {
		b := r.pool.get()
		n, err := fill(src, b)
		if int64(n) > max-sent {
			r.pool.put(b)
			return sent, ErrTooLarge
		}
		sent += int64(n)
		if n > 0 {
			if tap != nil {
				_, _ = tap.Write(b[:n]) // a hash, never fails
			}
			if e := r.send(b[:n]); e != nil {
				return sent, e
			}
		} else {
			r.pool.put(b)
		}
		if err == io.EOF { //nolint:errorlint // only a bare io.EOF is a clean end
			return sent, nil
		}
		if err != nil {
			return sent, err
		}
	}
}

// fill reads until b is full or src ends. Unlike io.ReadFull it passes on
// src's own error, so that a stream that broke off is told from one that ended.
func fill(src io.Reader, b []byte) (n int, err error) {
	idle := 0
	for n < len(b) && err == nil {
		var m int
		m, err = src.Read(b[n:])
		n += m
		if idle++; m > 0 {
			idle = 0
		}
		if idle == 100 {
			err = io.ErrNoProgress
		}
	}
	return n, err
}
