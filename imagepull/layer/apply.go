package layer

import (
	"context"
	_ "crypto/sha256" // for digest.Parse, as sha512
	_ "crypto/sha512"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"sync"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm"
)

// errUpstream is what a stage reads when the one before it failed. It is never
// reported: the failure it stands for is.
var errUpstream = errors.New("an earlier stage failed")

// alarmRatio is the inflation above which Apply warns. Gzip ends at 1032.
const alarmRatio = 200

// Apply reads blob once to its end, verifies it against spec and unpacks it
// into dir, which exists and is empty. key is what UnwrapKey returned for
// spec: nil exactly if the media type is not encrypted.
//
// Its stages run in goroutines of their own, joined by bounded rings: read and
// hash the blob, decrypt it and hash the result (encrypted layers), inflate,
// hash the tar, unpack it. Apply returns when all have ended. If blob is an io.Closer it
// is closed when ctx ends or a stage gives up, so that a Read that hangs cannot
// hold Apply. A panic in a stage is an error of that stage.
//
// Nothing in dir may be trusted, mounted or kept unless the error is nil; the
// caller removes it otherwise. The error is the first in this order: an error
// of blob or ctx, ErrTruncated, ErrTooLarge for the blob; then for an encrypted
// layer ErrDecrypt if digest, HMAC or key do not fit, for a plain one ErrDigest;
// only then ErrArchive, ErrTooLarge and file system errors of unpacking; last
// ErrDiffID. ErrMediaType and malformed digests (ErrDigest, ErrDiffID) are found
// before the first read.
func Apply(ctx context.Context, blob io.Reader, spec Spec, key *Key, dir string, opts Options) (Stats, error) {
	r, err := newRun(spec, key, opts)
	if err != nil {
		return Stats{}, explain(err)
	}
	return r.apply(ctx, blob, dir)
}

func (r *run) apply(ctx context.Context, blob io.Reader, dir string) (Stats, error) {
	stop := func() {}
	if c, ok := blob.(io.Closer); ok {
		stop = sync.OnceFunc(func() { _ = c.Close() })
		defer context.AfterFunc(ctx, stop)()
	}
	g, gctx := errgroup.WithContext(ctx)
	spawn := func(run func() error) {
		g.Go(func() error {
			err := Contain(run)
			if err != nil {
				stop()
			}
			return err
		})
	}
	buffers := newPool()
	stage := func(run func(out *ring) error) *ring {
		out := newRing(gctx, buffers)
		spawn(func() error { return run(out) })
		return out
	}
	in := stage(func(out *ring) error { return r.fetch(blob, out) })
	if r.key != nil {
		cipher := in
		in = stage(func(out *ring) error { return r.decrypt(cipher, out) })
		if plain := in; r.packed != nil && r.packed != r.tar {
			in = stage(func(out *ring) error { return r.hash(plain, out, r.packed) })
		}
	}
	packed := in
	tar := stage(func(out *ring) error { return r.inflate(packed, out) })
	hashed := stage(func(out *ring) error { return r.hash(tar, out, r.tar) })
	spawn(func() error { return r.unpack(gctx, hashed, dir) })
	err := g.Wait()
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err == nil {
		err = r.verdict()
	}
	if err != nil {
		// No Stats: for an encrypted layer they would tell how far the
		// unpacker got with unauthenticated bytes.
		var p *panicError
		if errors.As(err, &p) {
			r.log.Error("Layer made the program fail", "layer", r.spec.Digest, "err", p, "stack", string(p.stack))
		}
		return Stats{}, fmt.Errorf("applying layer %s: %w", podvm.Printable(r.spec.Digest, 140), explain(err))
	}
	if r.stats.Bytes > alarmRatio*r.stats.BlobBytes && r.stats.Bytes > chunkSize {
		r.log.Warn("Layer inflates unusually", "layer", r.spec.Digest, "blob_bytes", r.stats.BlobBytes, "bytes", r.stats.Bytes)
	}
	if r.stats.SkippedDevices > 0 {
		r.log.Warn("Device nodes of the layer left out, they need root", "layer", r.spec.Digest, "count", r.stats.SkippedDevices)
	}
	return r.stats, nil
}

// explain adds the sentence that may leave the guest. ErrDecrypt has its own.
func explain(err error) error {
	for _, c := range []struct {
		err   error
		cause string
	}{
		{ErrDecrypt, ""},
		{ErrDigest, "a layer does not have the digest of its manifest entry"},
		{ErrDiffID, "a layer is not the one the image config names"},
		{ErrTruncated, "a layer ended early"},
		{ErrMediaType, "a layer has an unsupported media type"},
		{ErrTooLarge, "a layer is too large"},
		{ErrArchive, "a layer is not a valid archive"},
		{unix.ENOSPC, "no space left to unpack a layer"},
		{unix.EDQUOT, "no space left to unpack a layer"},
	} {
		if !errors.Is(err, c.err) {
			continue
		}
		if c.cause == "" {
			return err
		}
		return podvm.Explain(err, c.cause)
	}
	return err
}

// tooLong says what is wrong with a tar of at least size bytes: nothing, the cap
// or the room.
func tooLong(size, limit, full int64) error {
	switch {
	case size > limit:
		return fmt.Errorf("%w: a tar of more than %d bytes", ErrTooLarge, limit)
	case size > full:
		return fmt.Errorf("a tar of more than %d bytes: %w", full, unix.ENOSPC)
	}
	return nil
}

// run is the state of one Apply. Each field below the blank line is written by
// one stage and read after all have ended.
type run struct {
	spec   Spec
	format format
	key    *Key
	opts   Options
	full   int64 // bytes of tar that cannot fit any more
	log    *slog.Logger
	// What reads hostile bytes; tests put in what fails.
	decrypter func(io.Reader, *Key) (io.Reader, error)
	inflater  func(compression, io.Reader) (io.ReadCloser, error)

	blob, packed, tar                  digest.Verifier // packed: the compressed stream inside an encrypted blob, nil if not known
	cipherErr, inflateErr, unpackedErr error
	stats                              Stats
}

func newRun(spec Spec, key *Key, opts Options) (*run, error) {
	f, err := formatOf(spec.MediaType)
	if err != nil {
		return nil, err
	}
	if f.encrypted != (key != nil) {
		return nil, undecryptable(fmt.Errorf("media type %q with key: %t", spec.MediaType, key != nil), "")
	}
	blob, err := digest.Parse(spec.Digest)
	if err != nil {
		return nil, fmt.Errorf("%w: malformed digest %q: %v", ErrDigest, podvm.Printable(spec.Digest, 140), err)
	}
	diffID, err := digest.Parse(spec.DiffID)
	if err != nil {
		return nil, fmt.Errorf("%w: malformed diffID %q: %v", ErrDiffID, podvm.Printable(spec.DiffID, 140), err)
	}
	if spec.Size < 0 {
		return nil, fmt.Errorf("%w: size %d", ErrTruncated, spec.Size)
	}
	if opts.MaxBytes == 0 {
		opts.MaxBytes = DefaultMaxBytes
	}
	// Files of a few bytes take less in a file system than in a tar.
	full := int64(math.MaxInt64)
	if opts.Room > 0 && opts.Room < full/2 {
		full = opts.Room + opts.Room/8 + 16<<20
	}
	if f.compression == uncompressed {
		if err := tooLong(spec.Size, opts.MaxBytes, full); err != nil {
			return nil, err
		}
	}
	r := &run{
		spec: spec, format: f, key: key, opts: opts, full: full, log: opts.Log, decrypter: decrypt, inflater: inflate,
		blob: blob.Verifier(), tar: diffID.Verifier(),
	}
	switch {
	case key == nil || key.plain == "":
	case f.compression == uncompressed && key.plain == diffID:
		r.packed = r.tar // the same bytes, hashed once
	default:
		r.packed = key.plain.Verifier()
	}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	return r, nil
}
