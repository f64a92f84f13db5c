package untar

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm"
)

const (
	batchSize  = 256 << 10 // bytes of files in a batch
	batchFiles = 16        // files that end in it, each an open descriptor
	batchCount = 3
)

// errStuck says that the error to report is the writer's.
var errStuck = errors.New("the writer has failed")

// writer writes files in a goroutine of its own, while the extractor reads on
// and creates the next ones. It gets descriptors and never a name: what the tar
// does to the name of a file afterwards, link it, remove it or put another in
// its place, the extractor does in the order of the tar, and it comes to the
// same whether the file is written already or not.
type writer struct {
	cur   *batch // being filled; nil if none is
	work  chan *batch
	free  chan *batch
	ended chan struct{}
	end   sync.Once
	stuck atomic.Bool // after an error it only closes what it gets

	// The goroutine's, until ended is closed.
	setter
	err   error
	panic any
}

// batch is what is handed over at a time: many small files or a part of one.
type batch struct {
	buf    []byte
	pieces []piece
	files  int // that end in it
}

// piece is something to do with an open file: to append data, and at the end
// to set its attributes and close it.
type piece struct {
	fd    int
	data  []byte
	last  bool
	attrs *attrs // nil if the file was not read to its end
	entry int    // number in the tar; 0 for a directory being finished
	name  string
}

func newWriter(mode Mode) *writer {
	w := &writer{setter: setter{mode: mode}, work: make(chan *batch, batchCount), free: make(chan *batch, batchCount), ended: make(chan struct{})}
	for range batchCount {
		w.free <- &batch{}
	}
	go w.run()
	return w
}

// copy appends data to the file of p.
func (w *writer) copy(p piece, data io.Reader) error {
	var err error
	for err == nil {
		if w.stuck.Load() {
			return errStuck
		}
		b := w.room()
		at := len(b.buf)
		for err == nil && len(b.buf) < cap(b.buf) {
			var n int
			n, err = data.Read(b.buf[len(b.buf):cap(b.buf)])
			b.buf = b.buf[:len(b.buf)+n]
		}
		p.data = b.buf[at:]
		b.pieces = append(b.pieces, p)
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return fmt.Errorf("%w: %w", ErrArchive, err)
}

// close ends the file of p, which then belongs to the writer.
func (w *writer) close(p piece) {
	b := w.room()
	p.last = true
	b.pieces = append(b.pieces, p)
	b.files++
}

// room returns a batch that is not full.
func (w *writer) room() *batch {
	if w.cur != nil && (len(w.cur.buf) == cap(w.cur.buf) || w.cur.files == batchFiles) {
		w.work <- w.cur
		w.cur = nil
	}
	if w.cur == nil {
		w.cur = <-w.free
		if w.cur.buf == nil {
			w.cur.buf = make([]byte, 0, batchSize)
		}
	}
	return w.cur
}

// finish waits until all is written and ends the goroutine. Its error is about
// an entry before whatever the extractor is at.
func (w *writer) finish() error {
	w.end.Do(func() {
		if w.cur != nil {
			w.work <- w.cur
		}
		close(w.work)
		<-w.ended
	})
	if p := w.panic; p != nil {
		w.panic = nil
		panic(p) // where whoever called Extract can contain it
	}
	return w.err
}

func (w *writer) run() {
	defer close(w.ended)
	for b := range w.work {
		for i := range b.pieces {
			w.do(&b.pieces[i])
		}
		clear(b.pieces)
		b.buf, b.pieces, b.files = b.buf[:0], b.pieces[:0], 0
		w.free <- b
	}
}

// do does what is left to do for p: all of it, or after an error only to close.
func (w *writer) do(p *piece) {
	defer func() {
		if r := recover(); r != nil {
			w.panic, w.err = r, errStuck
			w.stuck.Store(true)
		}
	}()
	var err error
	if w.err == nil {
		err = w.write(p)
	}
	if p.last {
		// Disks that report a full quota late do it here.
		err = errors.Join(err, unix.Close(p.fd))
	}
	if err == nil || w.err != nil {
		return
	}
	if p.entry == 0 {
		w.err = failed(fmt.Sprintf("finishing directory %.256q", p.name), err)
	} else {
		w.err = fmt.Errorf("entry %d %q: %w", p.entry, podvm.Printable(p.name, 256), failed("writing a file", err))
	}
	w.stuck.Store(true)
}

func (w *writer) write(p *piece) error {
	if err := writeFull(p.fd, p.data); err != nil || p.attrs == nil {
		return err
	}
	return w.setOpen(p.fd, *p.attrs)
}
