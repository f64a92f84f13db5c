//go:build sealpod_libgzip

package gunzip

import (
	"bufio"
	"compress/flate"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/klauspost/compress/gzip"
)

// Reader is the decoder of github.com/klauspost/compress behind the names of
// this package, for comparison and as a way back.
type Reader struct {
	src *source
	buf *bufio.Reader
	zip *gzip.Reader // nil until the first Read
	err error
}

// NewReader returns a Reader of what is compressed in r. The caller closes it.
func NewReader(r io.Reader, _ Options) *Reader {
	src := &source{r: r}
	return &Reader{src: src, buf: bufio.NewReaderSize(src, 64<<10)}
}

// source counts the bytes read, does not let the decoder spin on a reader that
// never reads, and keeps an error of that, so that it is not taken for the
// decoder's.
type source struct {
	r    io.Reader
	n    int64
	idle int
	err  error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.n += int64(n)
	if s.idle++; n > 0 {
		s.idle = 0
	}
	if err == nil && s.idle == 100 {
		err = io.ErrNoProgress
	}
	if err != nil && err != io.EOF { //nolint:errorlint // only a bare io.EOF is the end
		s.err = err
	}
	return n, err
}

// Read implements io.Reader.
func (g *Reader) Read(p []byte) (n int, err error) {
	if g.err != nil || len(p) == 0 {
		return 0, g.err
	}
	if g.zip == nil {
		if g.zip, err = gzip.NewReader(g.buf); err == io.EOF { //nolint:errorlint // as above
			err = io.ErrUnexpectedEOF
		}
	}
	if err == nil {
		n, err = g.zip.Read(p)
	}
	g.err = g.explain(err)
	return n, g.err
}

// WriteTo implements io.WriterTo.
func (g *Reader) WriteTo(w io.Writer) (int64, error) {
	return io.Copy(w, struct{ io.Reader }{g})
}

// Close ends reading, which is an error from then on. It never fails.
func (g *Reader) Close() error {
	g.err = fmt.Errorf("reading gzip: %w", fs.ErrClosed)
	return nil
}

// explain makes the decoder's errors those of this package.
func (g *Reader) explain(err error) error {
	var corrupt flate.CorruptInputError
	at := g.src.n - int64(g.buf.Buffered())
	switch {
	case err == nil || err == io.EOF: //nolint:errorlint // as above
		return err
	case g.src.err != nil && errors.Is(err, g.src.err):
		return g.src.err
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("gzip stream ends at byte %d: %w", at, err)
	case errors.As(err, &corrupt), errors.Is(err, gzip.ErrHeader), errors.Is(err, gzip.ErrChecksum):
		return fmt.Errorf("%w at byte %d: %v", ErrCorrupt, at, err)
	default:
		return err
	}
}
