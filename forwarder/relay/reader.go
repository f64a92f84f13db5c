package relay

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"
)

// frameRate is how many bytes of a frame give a peer a second more for it.
const frameRate = 64 << 10

// ErrHalfFrame says that a peer began a frame and did not end it in time.
var ErrHalfFrame = errors.New("a frame is not completed")

// reader gives out the frames of a connection, each in full. Between frames it
// waits for ever.
type reader struct {
	conn       net.Conn
	socket     *Socket       // under conn, or nil
	patience   time.Duration // a frame may take once its first byte is there
	buf        []byte
	start, end int       // of what is read in buf and not given out
	large      *[]byte   // the frame given out last, if it did not fit buf
	began      time.Time // when the frame did whose end is not there, or zero
	limit      time.Time // when it must be complete
	armed      time.Time // the read deadline, which is left standing between frames
}

func newReader(conn net.Conn, size int, patience time.Duration) *reader {
	return &reader{conn: conn, socket: socketUnder(conn), patience: patience, buf: make([]byte, size)}
}

// next returns the frames that are there, one after the other and at least one.
// They are the caller's to change until the next call. A frame that is too large
// is discarded and returned as *tooLargeError, after which next can be called
// again. The end between two frames is io.EOF, that within one
// io.ErrUnexpectedEOF.
func (r *reader) next() ([]byte, error) {
	r.release()
	for {
		have := r.buf[r.start:r.end]
		whole, size := wholeFrames(have)
		switch {
		case whole > 0:
			r.start += whole
			r.began = time.Time{}
			return have[:whole], nil
		case size > headerSize+maxBody:
			return nil, r.discard(getHeader(have))
		case size > len(r.buf):
			return r.readLarge(size)
		}
		copy(r.buf, have)
		r.start, r.end = 0, len(have)
		n, err := r.read(r.buf[r.end:], size)
		r.end += n
		if err != nil {
			return nil, err
		}
	}
}

// release gives back the buffer of a large frame.
func (r *reader) release() {
	if r.large != nil {
		putBuffer(r.large)
		r.large = nil
	}
}

// readLarge reads a frame of size bytes into a buffer of its own.
func (r *reader) readLarge(size int) ([]byte, error) {
	r.large = getBuffer(size)
	frame := *r.large
	at := copy(frame, r.buf[r.start:r.end])
	r.start, r.end = 0, 0
	for at < size {
		n, err := r.read(frame[at:], size)
		if err != nil {
			return nil, err
		}
		at += n
	}
	r.began = time.Time{}
	return frame, nil
}

// discard reads past the frame of h, which begins at r.start and is longer than
// the buffer.
func (r *reader) discard(h header) error {
	left := int64(headerSize) + int64(h.length) - int64(r.end-r.start)
	r.start, r.end = 0, 0
	for left > 0 {
		n, err := r.read(r.buf[:min(left, int64(len(r.buf)))], maxBody)
		if err != nil {
			return err
		}
		left -= int64(n)
	}
	r.began = time.Time{}
	return &tooLargeError{h}
}

// read reads something, at most len(p) bytes. size is that of the frame that
// has begun, or 0 if none has; then there is no end to the wait.
func (r *reader) read(p []byte, size int) (int, error) {
	for {
		if size > 0 {
			if err := r.arm(size); err != nil {
				return 0, err
			}
		}
		n, err := r.conn.Read(p)
		switch {
		case n > 0:
			if r.socket != nil {
				n += r.socket.readMore(r.conn, p[n:], n)
			}
			return n, nil // an error comes again
		case errors.Is(err, os.ErrDeadlineExceeded):
			// The deadline may be that of an earlier frame.
			if size > 0 && !time.Now().Before(r.limit) {
				return 0, ErrHalfFrame
			}
			r.armed = time.Time{}
			if err := r.conn.SetReadDeadline(time.Time{}); err != nil {
				return 0, fmt.Errorf("clearing a deadline: %w", err)
			}
		case errors.Is(err, io.EOF) && size > 0:
			return 0, io.ErrUnexpectedEOF
		case err != nil:
			return 0, err
		}
	}
}

// arm sees to a read deadline that is not after the end of the frame's time. An
// earlier one that still stands will do: what it interrupts goes on. So frames
// that come in pieces do not each pay for two deadlines.
func (r *reader) arm(size int) error {
	if r.began.IsZero() {
		r.began = time.Now()
	}
	r.limit = r.began.Add(r.patience + time.Duration(size)*time.Second/frameRate)
	if !r.armed.IsZero() && !r.armed.After(r.limit) {
		return nil
	}
	r.armed = r.limit
	return r.conn.SetReadDeadline(r.armed)
}
