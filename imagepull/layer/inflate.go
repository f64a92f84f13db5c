package layer

import (
	"io"

	"github.com/klauspost/compress/zstd"

	"github.com/sealpod/sealpod/imagepull/layer/gunzip"
)

// maxWindow caps what one zstd frame may make the decoder keep in memory.
const maxWindow = 128 << 20

// inflate returns a reader of the plain stream in r. All members of a gzip
// stream and all frames of a zstd stream are read; anything after the last
// one that is not another one is an error. The caller closes the reader.
func inflate(c compression, r io.Reader) (io.ReadCloser, error) {
	switch c {
	case gzipped:
		return gunzip.NewReader(r, gunzip.Options{}), nil
	case zstded:
		// Concurrency 1 decodes in the calling goroutine and starts none.
		d, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	default:
		return io.NopCloser(r), nil
	}
}
