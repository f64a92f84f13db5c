// Package untar unpacks the tar of one image layer below a directory, as a
// lower directory for overlayfs or, without privilege, as a plain tree.
//
// Data path: package layer feeds it the inflated stream and judges afterwards
// whether those bytes were authentic; until then the directory is private.
//
// Trust: the tar is hostile. No name, link or type in it reaches a file outside
// the directory: every parent is opened by openat2(2) confined to the directory
// and only its last component is given to an *at call that follows no symlink.
// Counts, sizes, depths and what is remembered are capped.
//
// It does not check digests, and it does not merge layers. The directory must
// be empty, on one file system, and nobody else may change it meanwhile.
// /proc must be mounted: attributes of links and devices have no *at call. Linux
// must be 5.8 or later, for openat2(2) and utimensat(2) of a descriptor.
package untar

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm"
)

var (
	// ErrArchive says that the tar is broken or asks for something forbidden.
	ErrArchive = errors.New("invalid layer archive")
	// ErrTooLarge says that a cap was exceeded.
	ErrTooLarge = errors.New("layer too large")
)

// Mode says how a layer is laid out on disk. Package layer describes both.
type Mode int

// The modes.
const (
	Overlay Mode = iota
	Plain
)

// Default caps.
const (
	DefaultMaxBytes   = 1 << 40
	DefaultMaxEntries = 1 << 20
)

// Options bounds and shapes Extract.
type Options struct {
	Mode       Mode
	MaxBytes   int64 // sum of file sizes; 0 means DefaultMaxBytes
	MaxEntries int   // tar entries and implied directories; 0 means DefaultMaxEntries
}

// Stats counts what Extract did.
type Stats struct {
	Entries        int // tar entries, whiteouts included
	SkippedDevices int // Plain mode only
	SkippedXattrs  int // not allowed by mode or file system
}

// Extract unpacks the tar in r below dir and reads r to its end. Tars that
// follow each other in r are unpacked one after the other; the last entry of a
// name wins. Directories without an entry, the root too, get mode 0755 and a mark
// that IsDescribed reads. What is in files is written by a goroutine of its own,
// which has ended when Extract returns.
//
// Errors: ErrArchive, ErrTooLarge, the error of ctx, and system errors such as
// unix.ENOSPC. After an error r may have bytes left and dir is garbage.
func Extract(ctx context.Context, r io.Reader, dir string, opts Options) (Stats, error) {
	if opts.MaxBytes == 0 {
		opts.MaxBytes = DefaultMaxBytes
	}
	if opts.MaxEntries == 0 {
		opts.MaxEntries = DefaultMaxEntries
	}
	t, err := openTree(dir, opts.MaxEntries)
	if err != nil {
		return Stats{}, fmt.Errorf("opening %s: %w", dir, err)
	}
	defer t.close()
	x := &extractor{tree: t, setter: setter{mode: opts.Mode}, opts: opts, files: newWriter(opts.Mode)}
	defer x.files.finish() //nolint:errcheck // for a panic in reading the tar
	if err = x.archives(ctx, r); err == nil {
		err = x.finishDirs(ctx)
	}
	if e := x.files.finish(); e != nil {
		err = e
	}
	x.stats.SkippedXattrs = x.skipped + x.files.skipped
	return x.stats, err
}

// archives unpacks to the end of r.
func (x *extractor) archives(ctx context.Context, r io.Reader) error {
	for tr := tar.NewReader(r); ; {
		if err := x.archive(ctx, tr); err != nil {
			return err
		}
		head, err := skipZeros(r)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%w: after the end marker: %w", ErrArchive, err)
		}
		tr = tar.NewReader(io.MultiReader(head, r))
	}
}

// extractor is the state of one Extract.
type extractor struct {
	*tree
	setter
	opts  Options
	stats Stats
	files *writer

	bytes  int64 // sum of file sizes
	xattrs int   // sum of attribute sizes
}

// archive unpacks up to the end marker.
func (x *extractor) archive(ctx context.Context, tr *tar.Reader) error {
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if x.files.stuck.Load() {
			return errStuck
		}
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		// A process-wide setting makes names like "/bin" this error; they are
		// cleaned or refused below.
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) {
			return fmt.Errorf("%w: after %d entries: %w", ErrArchive, x.stats.Entries, err)
		}
		x.stats.Entries++
		if err := x.count(); err != nil {
			return err
		}
		if err := x.entry(ctx, tr, hdr); err != nil {
			return fmt.Errorf("entry %d %q: %w", x.stats.Entries, podvm.Printable(hdr.Name, 256), err)
		}
	}
}

// skipZeros reads zero blocks and returns the first other one; io.EOF if there
// is none.
func skipZeros(r io.Reader) (io.Reader, error) {
	const blockSize = 512
	var block, zero [blockSize]byte
	for {
		n, err := io.ReadFull(r, block[:])
		switch {
		case block != zero && n > 0:
			if err != nil {
				return nil, fmt.Errorf("block of %d bytes", n)
			}
			return &oneBlock{block[:]}, nil
		case errors.Is(err, io.ErrUnexpectedEOF):
			return nil, io.EOF
		case err != nil:
			return nil, err
		}
	}
}

// oneBlock reads b once. (A bytes.Reader would do, but archive/tar seeks in
// readers that can.)
type oneBlock struct{ b []byte }

func (o *oneBlock) Read(p []byte) (int, error) {
	if len(o.b) == 0 {
		return 0, io.EOF
	}
	n := copy(p, o.b)
	o.b = o.b[n:]
	return n, nil
}

// failed words a system error. Those that only the tar can have caused are
// ErrArchive as well.
func failed(what string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrArchive) || errors.Is(err, ErrTooLarge):
		return fmt.Errorf("%s: %w", what, err)
	}
	for _, e := range []unix.Errno{unix.ENOENT, unix.ENOTDIR, unix.EISDIR, unix.EEXIST, unix.ELOOP,
		unix.EINVAL, unix.ENAMETOOLONG, unix.EMLINK, unix.EXDEV, unix.ENODATA, unix.ERANGE} {
		if errors.Is(err, e) {
			return fmt.Errorf("%w: %s: %w", ErrArchive, what, err)
		}
	}
	return fmt.Errorf("%s: %w", what, err)
}
