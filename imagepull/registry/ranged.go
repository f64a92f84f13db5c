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
// one part at a time; the parts are handed out in order.
type ranging struct {
	above int64 // a blob of at most this size has one connection
	first int64 // brought by one connection before the reader is looked at
	run   int64 // and before it is looked at again
	part  int64 // larger ones lose less time between requests
	page  int64 // filled of each buffer, at most pageSize
	pages int   // in memory at most, but for headPages
	join  func(waited, passed time.Duration, bytes int64) int
}

var defaultRanging = ranging{
	above: 64 << 20, first: 8 << 20, run: 64 << 20, part: 4 << 20, page: pageSize, pages: 36, join: joiners,
}

const (
	pageSize        = 256 << 10
	maxConnsPerBlob = 4
	maxHelpers      = 8  // connections of a Client beyond the first of each blob
	lonePages       = 12 // in memory while there is one connection
	headPages       = 4  // that only the part being read may use
	enoughRate      = 200 << 20
)

// joiners says how many connections join one that brought so many bytes while
// its reader waited so long of the time that passed. They cost time where the
// reader is what is slow, and where the processor is: no single connection over
// a network brings enoughRate bytes per second.
func joiners(waited, passed time.Duration, bytes int64) int {
	if waited < passed/4 || float64(bytes) > enoughRate*passed.Seconds() {
		return 0
	}
	return maxConnsPerBlob - 1
}

// ranged reads a blob over several connections.
type ranged struct {
	ctx     context.Context // of everything
	cancel  context.CancelFunc
	crew    context.Context // of what reads parts
	dismiss context.CancelFunc
	work    sync.WaitGroup
	src     *source
	conf    ranging
	queue   chan *part    // parts in order
	free    chan struct{} // one value per page that may be filled
	head    chan struct{} // the same for the part being read, so that it never waits for later ones

	mu   sync.Mutex // orders taking and queueing
	next int64      // offset of the first byte nobody has taken

	// The reader's.
	off    int64
	cur    *part
	page   page       // in use
	unread []byte     // of it
	alone  *span      // reads the rest after ranges were refused
	closed sync.Mutex // guards alone against Close

	began  time.Time
	start  atomic.Int64 // when the first page was there, in nanoseconds after began
	waited atomic.Int64 // nanoseconds the reader has waited since
}

// part is a piece of the blob on its way. pages is closed at its end; err is
// set before and is why it ended early.
type part struct {
	pages   chan page
	reading chan struct{} // closed when the reader has come to this part
	err     error
}

// page is a buffer, how much of it is filled, and where its end is reported.
type page struct {
	data *[pageSize]byte
	n    int
	home chan struct{}
}

// startRanged opens the first connection and begins to read ahead.
func startRanged(ctx context.Context, src *source) (io.ReadCloser, error) {
	conf := src.repo.client.ranging
	r := &ranged{
		src: src, conf: conf,
		// Each part in the queue has a page or somebody working on it.
		queue: make(chan *part, conf.pages+headPages+maxConnsPerBlob),
		free:  make(chan struct{}, conf.pages),
		head:  make(chan struct{}, headPages),
	}
	allow(r.free, min(lonePages, conf.pages))
	allow(r.head, headPages)
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

// allow lets n more pages be filled.
func allow(c chan struct{}, n int) {
	for range n {
		c <- struct{}{}
	}
}

// first reads the blob until it is all there or more connections join.
func (r *ranged) first(sp *span) {
	for {
		p := r.enqueue()
		r.finish(p, r.fill(p, sp))
		if p.err != nil || r.next == r.src.desc.Size {
			return
		}
		passed := time.Since(r.began) - time.Duration(r.start.Load())
		if n := r.hire(r.conf.join(time.Duration(r.waited.Load()), passed, r.next)); n > 0 {
			r.src.repo.log.Debug("Blob is read over more connections", "layer", r.src.desc.Digest, "connections", n+1)
			allow(r.free, r.conf.pages-min(lonePages, r.conf.pages))
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
			r.finish(r.enqueue(), err)
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

// parts fetches parts until none is left.
func (r *ranged) parts() {
	for {
		r.mu.Lock()
		off := r.next
		r.next = min(off+r.conf.part, r.src.desc.Size)
		end := r.next
		if off == end || r.crew.Err() != nil {
			r.mu.Unlock()
			return
		}
		p := r.enqueue()
		r.mu.Unlock()
		sp, err := r.src.span(r.crew, off, end)
		if err == nil {
			err = r.fill(p, sp)
		}
		r.finish(p, err)
		if err != nil {
			return
		}
	}
}

// enqueue makes the next part. It does not wait: a worker with no page to fill
// begins no further part.
func (r *ranged) enqueue() *part {
	p := &part{pages: make(chan page, r.conf.pages+headPages), reading: make(chan struct{})}
	r.queue <- p
	return p
}

func (r *ranged) finish(p *part, err error) {
	p.err = err
	close(p.pages)
}

// fill reads all of sp into pages of p, and makes sure that nothing follows,
// which also lets the connection be used again.
func (r *ranged) fill(p *part, sp *span) error {
	defer sp.Close() //nolint:errcheck // read to its end or given up
	for sp.off < sp.end {
		b, err := r.take(p)
		if err != nil {
			return err
		}
		b.n, err = io.ReadFull(sp, b.data[:min(r.conf.page, sp.end-sp.off)])
		p.pages <- b
		if err != nil {
			return err
		}
	}
	var one [1]byte
	if _, err := sp.Read(one[:]); err != io.EOF { //nolint:errorlint // only a bare io.EOF is a clean end
		return err
	}
	return nil
}

// take waits for a page that p may use.
func (r *ranged) take(p *part) (page, error) {
	b := page{home: r.free}
	select {
	case <-r.free:
	case <-r.crew.Done():
		return b, context.Cause(r.crew)
	case <-p.reading:
		select {
		case <-r.free:
		case <-r.head:
			b.home = r.head
		case <-r.crew.Done():
			return b, context.Cause(r.crew)
		}
	}
	b.data = r.src.repo.client.pages.Get().(*[pageSize]byte)
	return b, nil
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

// turn gets the next page, and comes to the next part first if it must.
func (r *ranged) turn() error {
	if r.page.data != nil {
		r.src.repo.client.pages.Put(r.page.data)
		r.page.home <- struct{}{} // where it was taken from, so there is room
		r.page = page{}
	}
	if r.cur == nil {
		cur, _, err := receive(r, r.queue)
		if err != nil {
			return err
		}
		close(cur.reading)
		r.cur = cur
	}
	b, ok, err := receive(r, r.cur.pages)
	switch {
	case err != nil:
		return err
	case ok:
		r.page, r.unread = b, b.data[:b.n]
	case r.cur.err != nil:
		return r.cur.err
	default:
		r.cur = nil
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
