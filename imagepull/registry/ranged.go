package registry

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

// ranging says how large blobs are read, in bytes. One connection begins. When
// the reader turns out to wait for it, more join, and from then on each fetches
// one part at a time; the parts are handed out in order. At most window parts
// are in memory.
type ranging struct {
	above  int64 // a blob of at most this size has one connection
	first  int64 // brought by one connection before the reader is looked at
	run    int64 // and before it is looked at again; a multiple of part, as is first
	part   int64
	window int                                    // parts
	join   func(waited, passed time.Duration) int // how many connections join
}

var defaultRanging = ranging{
	above: 64 << 20, first: 12 << 20, run: 48 << 20, part: 3 << 20, window: 5,
	join: func(waited, passed time.Duration) int {
		if waited < passed/4 {
			return 0 // the reader is what is slow
		}
		return maxConnsPerBlob - 1
	},
}

const (
	maxConnsPerBlob = 4
	maxHelpers      = 8 // connections of a Client beyond the first of each blob
	pageSize        = 256 << 10
)

// ranged reads a blob over several connections.
type ranged struct {
	ctx     context.Context // of everything
	cancel  context.CancelFunc
	crew    context.Context // of what reads parts
	dismiss context.CancelFunc
	work    sync.WaitGroup
	src     *source
	conf    ranging
	slots   chan struct{} // one value per part in memory
	queue   chan *part    // parts in order
	pages   chan []byte   // free buffers

	mu   sync.Mutex // orders taking and queueing
	next int64      // offset of the first byte nobody has taken

	// The reader's.
	off    int64
	cur    *part
	page   []byte // in use, with what is left of it in unread
	unread []byte
	alone  *span // reads the rest after ranges were refused
	began  time.Time
	closed sync.Mutex // guards alone against Close

	waited atomic.Int64 // nanoseconds the reader has waited since the first page
	start  atomic.Int64 // when that was, in nanoseconds after began
}

// part is a piece of the blob on its way. pages is closed at its end; err is
// set before and is why it ended early.
type part struct {
	pages chan []byte
	err   error
}

// startRanged opens the first connection and begins to read ahead.
func startRanged(ctx context.Context, src *source) (io.ReadCloser, error) {
	conf := src.repo.client.ranging
	r := &ranged{
		src: src, conf: conf,
		slots: make(chan struct{}, conf.window),
		queue: make(chan *part, conf.window),
		pages: make(chan []byte, int64(conf.window)*(1+conf.part/pageSize)),
	}
	r.ctx, r.cancel = context.WithCancel(ctx)
	r.crew, r.dismiss = context.WithCancel(r.ctx)
	sp, err := src.span(r.crew, 0, min(conf.first, src.desc.Size))
	if err != nil {
		r.cancel()
		return nil, err
	}
	r.began, r.next = time.Now(), sp.end
	r.work.Go(func() { r.first(sp) })
	return r, nil
}

// first reads the blob until it is all there or more connections join.
func (r *ranged) first(sp *span) {
	for {
		if !r.bring(sp) || r.next == r.src.desc.Size {
			return
		}
		n := r.conf.join(time.Duration(r.waited.Load()), time.Since(r.began)-time.Duration(r.start.Load()))
		if n = r.hire(n); n > 0 {
			r.src.repo.log.Debug("Blob is read over more connections", "layer", r.src.desc.Digest, "connections", n+1)
			for range n {
				r.work.Go(func() {
					defer func() { <-r.src.repo.client.helpers }()
					r.parts()
				})
			}
			r.parts()
			return
		}
		var err error
		if sp, err = r.src.span(r.crew, r.next, min(r.next+r.conf.run, r.src.desc.Size)); err != nil {
			r.fail(err)
			return
		}
		r.next = sp.end
	}
}

// hire reserves up to n further connections.
func (r *ranged) hire(n int) int {
	for i := range n {
		select {
		case r.src.repo.client.helpers <- struct{}{}:
		default:
			return i
		}
	}
	return n
}

// bring reads all of sp, one part after another, and says whether it got there.
func (r *ranged) bring(sp *span) bool {
	defer sp.Close() //nolint:errcheck // read to its end or given up
	for sp.off < sp.end {
		if !r.slot() {
			return false
		}
		p := r.enqueue()
		if p.err = r.fill(p, sp, min(sp.off+r.conf.part, sp.end)); p.err == nil && sp.off == sp.end {
			p.err = ended(sp)
		}
		close(p.pages)
		if p.err != nil {
			return false
		}
	}
	return true
}

// parts fetches parts until none is left.
func (r *ranged) parts() {
	for r.slot() {
		r.mu.Lock()
		off := r.next
		end := min(off+r.conf.part, r.src.desc.Size)
		if off == end {
			r.mu.Unlock()
			return
		}
		r.next = end
		p := r.enqueue()
		r.mu.Unlock()
		sp, err := r.src.span(r.crew, off, end)
		if err == nil {
			if err = r.fill(p, sp, end); err == nil {
				err = ended(sp)
			}
			_ = sp.Close()
		}
		p.err = err
		close(p.pages)
		if err != nil {
			return
		}
	}
}

// slot waits for room for one more part.
func (r *ranged) slot() bool {
	select {
	case r.slots <- struct{}{}:
		return true
	case <-r.crew.Done():
		return false
	}
}

// enqueue makes the next part; there is a slot for it, so queue has room.
func (r *ranged) enqueue() *part {
	p := &part{pages: make(chan []byte, 1+r.conf.part/pageSize)}
	r.queue <- p
	return p
}

// fail hands err to the reader where the next part would be.
func (r *ranged) fail(err error) {
	if r.slot() {
		p := r.enqueue()
		p.err = err
		close(p.pages)
	}
}

// fill reads from sp up to offset end into pages of p.
func (r *ranged) fill(p *part, sp *span, end int64) error {
	for sp.off < end {
		var page []byte
		select {
		case page = <-r.pages:
			page = page[:pageSize]
		default:
			page = make([]byte, pageSize)
		}
		n, err := io.ReadFull(sp, page[:min(pageSize, end-sp.off)])
		p.pages <- page[:n]
		if err != nil {
			return err
		}
	}
	return nil
}

// ended makes sure that nothing follows, and lets the connection be used again.
func ended(sp *span) error {
	var one [1]byte
	if _, err := sp.Read(one[:]); err != io.EOF { //nolint:errorlint // only a bare io.EOF is a clean end
		return err
	}
	return nil
}

// Read implements io.Reader.
func (r *ranged) Read(p []byte) (int, error) {
	for len(r.unread) == 0 {
		if r.alone != nil {
			return r.alone.Read(p)
		}
		if r.off == r.src.desc.Size && r.cur == nil {
			return 0, io.EOF
		}
		if err := r.turn(); errors.Is(err, errNoParts) {
			if err := r.goOnAlone(); err != nil {
				return 0, err
			}
		} else if err != nil {
			return 0, err
		}
	}
	n := copy(p, r.unread)
	r.unread = r.unread[n:]
	r.off += int64(n)
	return n, nil
}

// turn gets the next page.
func (r *ranged) turn() error {
	if r.page != nil {
		r.pages <- r.page // there is room for all there are
		r.page = nil
	}
	if r.cur == nil {
		cur, _, err := receive(r, r.queue)
		if err != nil {
			return err
		}
		r.cur = cur
	}
	page, ok, err := receive(r, r.cur.pages)
	switch {
	case err != nil:
		return err
	case ok:
		r.page, r.unread = page, page
	case r.cur.err != nil:
		return r.cur.err
	default:
		r.cur = nil
		<-r.slots
	}
	return nil
}

// receive gets a value from ch and counts how long that took.
func receive[T any](r *ranged, ch chan T) (v T, ok bool, err error) {
	select {
	case v, ok = <-ch:
		return v, ok, nil
	default:
	}
	start := time.Now()
	select {
	case v, ok = <-ch:
	case <-r.ctx.Done():
		return v, false, context.Cause(r.ctx)
	}
	if r.off == 0 {
		r.start.Store(int64(time.Since(r.began))) // the first page comes late, whoever is slow
	} else {
		r.waited.Add(int64(time.Since(start)))
	}
	return v, ok, nil
}

// goOnAlone gives up on parts and reads the rest over one connection.
func (r *ranged) goOnAlone() error {
	r.dismiss()
	r.work.Wait()
	sp, err := r.src.span(r.ctx, r.off, r.src.desc.Size)
	if err != nil {
		return err
	}
	r.closed.Lock()
	r.alone = sp
	r.closed.Unlock()
	return nil
}

// Close implements io.Closer.
func (r *ranged) Close() error {
	r.cancel()
	r.work.Wait()
	r.closed.Lock()
	defer r.closed.Unlock()
	if r.alone != nil {
		return r.alone.Close()
	}
	return nil
}
