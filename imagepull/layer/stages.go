package layer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/imagepull/layer/untar"
)

// Each stage reads one ring to its end, whatever happens: a stage that fails
// keeps its error for verdict, ends its output with errUpstream and drains its
// input, so that the blob is always judged as a whole. Only errors that no
// decrypted byte can cause are returned, which stops all stages. What parses
// hostile bytes is contained, so that a panic counts as such a failure.

// fetch reads the blob, whose length is known beforehand.
func (r *run) fetch(blob io.Reader, out *ring) error {
	n, err := out.pump(blob, r.blob, r.spec.Size)
	r.stats.BlobBytes = n
	switch {
	case errors.Is(err, ErrTooLarge):
		err = fmt.Errorf("%w: blob is longer than its %d bytes", ErrTooLarge, r.spec.Size)
	case errors.Is(err, io.ErrUnexpectedEOF):
		err = fmt.Errorf("%w: %d of %d bytes: %w", ErrTruncated, n, r.spec.Size, err)
	case err != nil:
		err = fmt.Errorf("reading the blob at byte %d: %w", n, err)
	case n < r.spec.Size:
		err = fmt.Errorf("%w: %d of %d bytes", ErrTruncated, n, r.spec.Size)
	}
	if err != nil {
		out.close(errUpstream)
		return err
	}
	out.close(nil)
	return nil
}

// decrypt turns ciphertext into the compressed stream.
func (r *run) decrypt(in, out *ring) error {
	err := Contain(func() error {
		plain, err := r.decrypter(in, r.key)
		if err != nil {
			return err
		}
		_, err = out.pump(plain, nil, math.MaxInt64)
		return err
	})
	r.cipherErr = err
	finish(in, out, err)
	return nil
}

// inflate turns the compressed stream into the tar.
func (r *run) inflate(in, out *ring) error {
	err := Contain(func() error {
		plain, err := r.inflater(r.format.compression, in)
		if err != nil {
			return err
		}
		limit := min(r.opts.MaxBytes, r.full)
		r.stats.Bytes, err = out.pump(plain, nil, limit)
		if errors.Is(err, ErrTooLarge) {
			err = tooLong(limit+1, r.opts.MaxBytes, r.full)
		}
		return errors.Join(err, plain.Close())
	})
	switch {
	case err == nil:
	case errors.Is(err, ErrTooLarge), errors.Is(err, unix.ENOSPC):
		err = fmt.Errorf("inflating: %w", err)
	default:
		err = fmt.Errorf("%w: inflating: %w", ErrArchive, err)
	}
	r.inflateErr = err
	finish(in, out, err)
	return nil
}

// hash passes on what it hashes. It has a goroutine to itself so that neither
// the stage before nor the one after, whichever is slower, waits for it.
func (r *run) hash(in, out *ring, h io.Writer) error {
	for {
		b, err := in.next()
		if errors.Is(err, io.EOF) {
			out.close(nil)
			return nil
		}
		if err == nil {
			_, _ = h.Write(b) // a hash, never fails
			err = out.send(b)
		}
		if err != nil {
			finish(in, out, err)
			return nil
		}
	}
}

// unpack writes the tar below dir.
func (r *run) unpack(ctx context.Context, in *ring, dir string) error {
	var st untar.Stats
	err := Contain(func() (err error) {
		st, err = untar.Extract(ctx, in, dir, untar.Options{
			Mode: r.opts.Mode, MaxBytes: r.opts.MaxBytes, MaxEntries: r.opts.MaxEntries,
		})
		return err
	})
	r.stats.Entries, r.stats.SkippedDevices, r.stats.SkippedXattrs = st.Entries, st.SkippedDevices, st.SkippedXattrs
	if r.key == nil && err != nil && !errors.Is(err, ErrArchive) && !errors.Is(err, ErrTooLarge) {
		// A full disk, say: no need to fetch the rest, and nothing to hide.
		return fmt.Errorf("unpacking: %w", err)
	}
	r.unpackedErr = err
	in.drain()
	return nil
}

// finish ends a stage: out first, since what comes after it may be waiting.
func finish(in, out *ring, err error) {
	if err != nil {
		err = errUpstream
	}
	out.close(err)
	in.drain()
}

// verdict judges a blob that was read in full and has the right length. What
// is known of the ciphertext comes first; only for an authentic blob does it
// say what the inflater and the unpacker found.
func (r *run) verdict() error {
	authentic := r.blob.Verified()
	if r.key != nil {
		if !authentic || r.cipherErr != nil || (r.packed != nil && !r.packed.Verified()) {
			return undecryptable(errors.New("blob, HMAC, digest and key do not fit together"), "")
		}
	} else if !authentic {
		return fmt.Errorf("%w: want %s", ErrDigest, r.spec.Digest)
	}
	if r.inflateErr != nil {
		return r.inflateErr
	}
	if r.unpackedErr != nil {
		return fmt.Errorf("unpacking: %w", r.unpackedErr)
	}
	if !r.tar.Verified() {
		return fmt.Errorf("%w: want %s", ErrDiffID, r.spec.DiffID)
	}
	return nil
}
