package gunzip

import (
	"errors"
	"io"
)

// ErrCorrupt says that the stream is not gzip, or contradicts itself: its
// header, codes, distances, checksum or size. The text names the offset of the
// byte in the compressed stream where that was seen.
var ErrCorrupt = errors.New("corrupt gzip stream")

// Options shape a Reader. There are none yet: it decodes in the goroutine that
// reads, in about 370 KiB of memory.
type Options struct{}

var (
	_ io.ReadCloser = (*Reader)(nil)
	_ io.WriterTo   = (*Reader)(nil)
)
