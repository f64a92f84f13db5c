//go:build !sealpod_libgzip

package gunzip

import (
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
)

// Reader reads the plain bytes of a gzip stream: of all its members, one after
// the other. Only one goroutine may use it at a time.
//
// Its error is io.EOF when the stream ended after a member, all of which had
// the right checksum and size; io.ErrUnexpectedEOF (wrapped) when it ended
// elsewhere, even before the first byte; ErrCorrupt; or the error of the reader
// below, as it is. What follows a member and is not another one, zeros for
// example, is ErrCorrupt. Bytes read before an error are to be distrusted: the
// checksum comes last.
type Reader struct {
	dec    decoder
	unread []byte // rest of what was decoded last
	crc    uint32 // of the member
	size   uint32 // of the member, modulo 2^32
	err    error
}

// NewReader returns a Reader of what is compressed in r. It starts to read when
// it is read from, and may read up to 64 KiB more than it decodes. The caller
// closes it.
func NewReader(r io.Reader, _ Options) *Reader {
	g := &Reader{}
	g.dec.src, g.dec.out = r, new(buffer)
	return g
}

// Read implements io.Reader.
func (g *Reader) Read(p []byte) (int, error) {
	if len(g.unread) == 0 && len(p) > 0 {
		g.next()
	}
	n := copy(p, g.unread)
	g.unread = g.unread[n:]
	if n == 0 && len(p) > 0 {
		return 0, g.err
	}
	return n, nil
}

// WriteTo implements io.WriterTo.
func (g *Reader) WriteTo(w io.Writer) (n int64, err error) {
	for {
		if len(g.unread) == 0 {
			g.next()
		}
		if len(g.unread) == 0 {
			if g.err == io.EOF { //nolint:errorlint // only a bare io.EOF is the end
				return n, nil
			}
			return n, g.err
		}
		m, err := w.Write(g.unread)
		n += int64(m)
		g.unread = g.unread[m:]
		if err != nil {
			return n, err
		}
		if len(g.unread) > 0 {
			return n, io.ErrShortWrite
		}
	}
}

// Close ends reading, which is an error from then on. It does not close the
// reader below and never fails.
func (g *Reader) Close() error {
	g.unread, g.err = nil, fmt.Errorf("reading gzip: %w", fs.ErrClosed)
	return nil
}

// next sets unread to more plain bytes, or err.
func (g *Reader) next() {
	for len(g.unread) == 0 && g.err == nil {
		p := g.dec.next()
		g.unread, g.err = p.data, p.err
		g.crc = crc32.Update(g.crc, crc32.IEEETable, p.data)
		g.size += uint32(len(p.data))
		if p.last {
			if g.crc != p.crc || g.size != p.size {
				g.err = fmt.Errorf("%w at byte %d: checksum or size of a member", ErrCorrupt, p.end)
			}
			g.crc, g.size = 0, 0
		}
	}
}

// piece is a run of decoded bytes of one member.
type piece struct {
	data []byte // good until the next piece
	err  error  // after data

	last      bool // and that was the member: its trailer says
	crc, size uint32
	end       int64 // offset of the byte after the trailer
}

// decoder turns a gzip stream into pieces.
type decoder struct {
	inflater
	begun  bool // there was a member
	inside bool // a member
}

// next decodes the next piece.
func (d *decoder) next() (p piece) {
	if !d.inside {
		if err := d.member(); err != nil {
			return piece{err: err}
		}
	}
	if d.full() {
		d.slide()
	}
	done, err := d.inflate()
	p = piece{data: d.out[d.fresh:d.op], err: err}
	d.fresh = d.op
	if !done {
		return p
	}
	t, err := d.bytes(8)
	if err != nil {
		p.err = err
		return p
	}
	d.inside = false
	p.last, p.crc, p.size, p.end = true, le.Uint32(t), le.Uint32(t[4:]), d.offset()
	return p
}

// member begins the next member, if there is one.
func (d *decoder) member() error {
	if d.begun {
		d.giveBack()
		d.want(1)
		if d.ip == d.end && d.err == io.EOF { //nolint:errorlint // only a bare io.EOF is the end
			return io.EOF
		}
	}
	if err := d.header(); err != nil {
		return err
	}
	d.reset()
	d.begun, d.inside = true, true
	return nil
}
