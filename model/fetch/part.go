package fetch

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/model/room"
	"github.com/sealpod/sealpod/model/sealed"
	"github.com/sealpod/sealpod/model/source"
)

// partName is what the file at p is called while it is in progress.
func partName(p string) string {
	dir, base := path.Split(p)
	return dir + "." + base + ".part"
}

// mapName is where the finished runs of the file at p are noted.
func mapName(p string) string { return partName(p) + ".map" }

// part is a file in progress. A run is what one request brings.
type part struct {
	*File
	folder  *Folder
	out     *os.File
	runs    int64
	whole   bool // one request without a range, for the one run
	cipher  *sealed.Cipher
	layout  sealed.Layout
	journal *journal
}

// begin opens the file in progress, asks the source for what the runs need to
// know, and finds out which runs are there from before.
func (f *Folder) begin(ctx context.Context, file *File) (*part, error) {
	p := &part{File: file, folder: f, layout: sealed.Layout{Size: file.Size}}
	if err := p.checkSize(); err != nil {
		return nil, err
	}
	p.count()
	var header sealed.Header
	if p.runs > 1 {
		var err error
		if header, err = p.probe(ctx); errors.Is(err, source.ErrNoRanges) {
			p.runs, p.whole = 1, true
		} else if err != nil {
			return nil, err
		}
	}
	noted := p.runs > 1 && file.ID != [32]byte{} && f.boot != ""
	out, err := f.openPart(file.Path, noted)
	if err != nil {
		return nil, fmt.Errorf("making the file: %w", room.Full(err))
	}
	p.out = out
	if st, err := out.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, errors.Join(errors.New("the file in progress is none"), err, out.Close())
	}
	if noted {
		if p.journal, err = openJournal(f.root, mapName(file.Path), f.boot, file.ID, header, p.runs); err != nil {
			return nil, errors.Join(err, out.Close())
		}
	}
	return p, nil
}

// openPart opens the file in progress at p, or makes it. What is noted about one is
// about this one or about none: notes are removed where there is no such file, and
// where it is written without notes.
func (f *Folder) openPart(p string, noted bool) (*os.File, error) {
	if !noted {
		if err := removed(f.root.Remove(mapName(p))); err != nil {
			return nil, err
		}
	}
	out, err := f.root.OpenFile(partName(p), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrPermission) { // killed between the file's mode and its name
		if err = f.root.Chmod(partName(p), 0o600); err == nil {
			out, err = f.root.OpenFile(partName(p), os.O_RDWR, 0)
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		if err = removed(f.root.Remove(mapName(p))); err == nil {
			out, err = f.root.OpenFile(partName(p), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		}
	}
	return out, err
}

// checkSize compares what the source lists with what must be there.
func (p *part) checkSize() error {
	have, want := p.Object.Size, p.Size
	if p.Cipher != nil {
		want = p.layout.Sealed()
	}
	if have >= 0 && want >= 0 && have != want {
		return fmt.Errorf("%w: %d bytes in the source, want %d", sealed.ErrIntegrity, have, want)
	}
	return nil
}

// count sets how many runs there are.
func (p *part) count() {
	pieces := (p.Size + piece - 1) / piece
	if p.Cipher != nil {
		pieces = p.layout.Segments()
	}
	p.runs = max(1, (pieces+runPieces-1)/runPieces)
	p.whole = p.Size < 0
}

// probe reads the header of a sealed object, and of any other a byte, to see
// whether its source has ranges.
func (p *part) probe(ctx context.Context) (h sealed.Header, err error) {
	n := 1
	if p.Cipher != nil {
		n = sealed.HeaderSize
	}
	err = timed(&p.folder.Stats.Fetching, func() error {
		r, err := p.Source.Open(ctx, p.Object, 0, int64(n))
		if err != nil {
			return err
		}
		defer r.Close()
		return p.short(readFull(r, h[:n]))
	})
	if err != nil || p.Cipher == nil {
		return sealed.Header{}, err
	}
	return h, p.keyed(h)
}

// keyed makes the cipher that goes with the header.
func (p *part) keyed(h sealed.Header) error {
	if _, err := sealed.ParseHeader(h[:]); err != nil {
		return err
	}
	c, err := p.Cipher(h)
	p.cipher = c
	return err
}

func readFull(r io.Reader, buf []byte) error {
	_, err := io.ReadFull(r, buf)
	return err
}

// short is err of reading an object, which a clean end before its time is, too.
func (p *part) short(err error) error {
	if err == nil || !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	if p.Cipher != nil || p.SHA256 != nil {
		return fmt.Errorf("%w: the object is shorter than it must be", sealed.ErrIntegrity)
	}
	return fmt.Errorf("%w: it is shorter now", source.ErrChanged)
}

// plain returns where a run lies in the file.
func (p *part) plain(run int64) (off, n int64) {
	if p.Cipher == nil {
		off = run * runPieces * piece
		return off, min(p.Size-off, runPieces*piece)
	}
	off, _ = p.layout.Plain(run * runPieces)
	end, last := p.layout.Plain(min((run+1)*runPieces, p.layout.Segments()) - 1)
	return off, end + last - off
}

// stored returns where a run lies in the object, n < 0 for to its end.
func (p *part) stored(run int64) (off, n int64) {
	if p.whole {
		return 0, -1
	}
	if p.Cipher == nil {
		return p.plain(run)
	}
	if p.runs == 1 {
		return 0, p.layout.Sealed()
	}
	off, _ = p.layout.Stored(run * runPieces)
	end, last := p.layout.Stored(min((run+1)*runPieces, p.layout.Segments()) - 1)
	return off, end + last - off
}

// fetch brings one run, through buf.
func (p *part) fetch(ctx context.Context, run int64, buf []byte) error {
	if p.Cipher == nil && p.Size == 0 {
		return nil
	}
	off, n := p.stored(run)
	r, err := p.Source.Open(ctx, p.Object, off, n)
	if err != nil {
		return err
	}
	defer r.Close()
	switch {
	case p.Transform != nil:
		return p.transform(ctx, r)
	case p.Cipher != nil:
		err = p.open(r, run, buf)
	case p.Size < 0:
		return p.copyAll(r, buf)
	default:
		err = p.copy(r, run, buf)
	}
	if err != nil {
		return err
	}
	if p.whole {
		if n, err := r.Read(buf[:1]); n > 0 || !errors.Is(err, io.EOF) {
			return errors.Join(p.checkTail(n), err)
		}
	}
	return p.journal.mark(run)
}

func (p *part) checkTail(n int) error {
	if n > 0 {
		return fmt.Errorf("%w: the object is longer than it must be", sealed.ErrIntegrity)
	}
	return nil
}

// open decrypts the segments of a run.
func (p *part) open(r io.Reader, run int64, buf []byte) error {
	stats := &p.folder.Stats
	if p.whole || p.runs == 1 { // the header is not known yet, and comes first
		var h sealed.Header
		if err := timed(&stats.Fetching, func() error { return p.short(readFull(r, h[:])) }); err != nil {
			return err
		}
		if err := p.keyed(h); err != nil {
			return err
		}
	}
	first, end := run*runPieces, p.layout.Segments()
	if !p.whole {
		end = min(end, first+runPieces)
	}
	for i := first; i < end; i++ {
		_, n := p.layout.Stored(i)
		if err := timed(&stats.Fetching, func() error { return p.short(readFull(r, buf[:n])) }); err != nil {
			return err
		}
		var plain []byte
		if err := timed(&stats.Opening, func() (err error) {
			plain, err = p.cipher.Open(i, i == p.layout.Segments()-1, buf[:n])
			return err
		}); err != nil {
			return err
		}
		off, _ := p.layout.Plain(i)
		if err := p.write(plain, off); err != nil {
			return err
		}
	}
	return nil
}

// copy brings a run of an object that is the file.
func (p *part) copy(r io.Reader, run int64, buf []byte) error {
	off, n := p.plain(run)
	if p.whole {
		off, n = 0, p.Size
	}
	for n > 0 {
		b := buf[:min(n, int64(len(buf)))]
		if err := timed(&p.folder.Stats.Fetching, func() error { return p.short(readFull(r, b)) }); err != nil {
			return err
		}
		if err := p.write(b, off); err != nil {
			return err
		}
		off, n = off+int64(len(b)), n-int64(len(b))
	}
	return nil
}

// transform lets somebody else make the file of the object.
func (p *part) transform(ctx context.Context, r io.Reader) error {
	if err := p.out.Truncate(0); err != nil {
		return room.Full(err)
	}
	n, err := p.Transform(ctx, &counted{r: r, stats: &p.folder.Stats}, p.out)
	p.Size = n
	return room.Full(err)
}

// counted counts what is read from an object.
type counted struct {
	r     io.Reader
	stats *Stats
}

func (c *counted) Read(b []byte) (n int, err error) {
	err = timed(&c.stats.Fetching, func() (err error) {
		n, err = c.r.Read(b)
		return err
	})
	c.stats.Bytes.Add(int64(n))
	return n, err
}

// copyAll brings an object of unknown size.
func (p *part) copyAll(r io.Reader, buf []byte) error {
	for off := int64(0); ; {
		var n int
		err := timed(&p.folder.Stats.Fetching, func() (err error) {
			n, err = io.ReadFull(r, buf)
			return err
		})
		if werr := p.write(buf[:n], off); werr != nil {
			return werr
		}
		if off += int64(n); off > sealed.MaxSize {
			return fmt.Errorf("%w: larger than 16 TiB", source.ErrListing)
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			p.Size = off
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (p *part) write(b []byte, off int64) error {
	return timed(&p.folder.Stats.Writing, func() error {
		if _, err := p.out.WriteAt(b, off); err != nil {
			return room.Full(err)
		}
		startWriting(p.out, off, off+int64(len(b)))
		p.folder.Stats.Bytes.Add(int64(len(b)))
		return nil
	})
}

// publish checks the file as a whole and gives it its name.
func (p *part) publish(ctx context.Context) error {
	if err := p.out.Truncate(p.Size); err != nil {
		return room.Full(err)
	}
	if p.SHA256 != nil {
		if err := timed(&p.folder.Stats.Opening, func() error { return p.checkDigest(ctx) }); err != nil {
			return err
		}
	}
	// The model server may run as any user.
	if err := p.out.Chmod(p.Mode&fs.ModePerm&^0o022 | 0o444); err != nil {
		return err
	}
	if err := timed(&p.folder.Stats.Writing, p.out.Sync); err != nil {
		// What was lost is told once: the next sync would find nothing amiss.
		return errors.Join(room.Full(err), p.spoil())
	}
	if err := p.folder.root.Rename(partName(p.Path), p.Path); err != nil {
		return fmt.Errorf("naming the file: %w", room.Full(err))
	}
	return p.journal.remove()
}

// checkDigest reads the file back.
func (p *part) checkDigest(ctx context.Context) error {
	hash := sha256.New()
	buf := make([]byte, 256<<10)
	for off := int64(0); off < p.Size; {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		n, err := p.out.ReadAt(buf[:min(int64(len(buf)), p.Size-off)], off)
		if hash.Write(buf[:n]); n == 0 {
			return fmt.Errorf("reading the file back: %w", err)
		}
		off += int64(n)
	}
	if bytes.Equal(hash.Sum(nil), p.SHA256) {
		return nil
	}
	return errors.Join(ErrDigest, p.spoil())
}

// spoil sees to it that the file is not continued: a run of it is wrong, and nobody
// knows which.
func (p *part) spoil() error { return errors.Join(p.journal.remove(), p.out.Truncate(0)) }

func (p *part) close() {
	p.journal.close()
	p.out.Close()
}

// startWriting lets the kernel begin to write what a file has from off to end, and
// does not wait: otherwise the disk would rest until the file is synced. It is a
// hint, so errors say nothing. The page at the end is left for who fills it.
func startWriting(out *os.File, off, end int64) {
	const page = 4096
	if off, end = off&^(page-1), end&^(page-1); off < end {
		_ = unix.SyncFileRange(int(out.Fd()), off, end-off, unix.SYNC_FILE_RANGE_WRITE)
	}
}
