// Package fetch brings the files of a model from their sources into a folder:
// ranges in parallel, decrypted and checked on the way, and picked up again
// where a killed run left them.
//
// Data path: the storage initializer plans the files, from a sealed model's
// manifest or from a listing; this package reads each from its source.Source and
// writes it below the volume of the model server.
//
// Trust: what a source sends is hostile until its tag or digest held; a file
// without either is what its store says it is. The folder is the guest's own: a
// file in progress there may be continued. No file has its name before all of
// it was checked.
package fetch

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sealpod/sealpod/model/room"
	"github.com/sealpod/sealpod/model/sealed"
	"github.com/sealpod/sealpod/model/source"
	"github.com/sealpod/sealpod/podvm"
)

// Sizes.
const (
	// piece is what a worker holds of a file at a time: one segment.
	piece = sealed.SegmentSize
	// runPieces is how many pieces one request asks for. A kill costs what the
	// workers have asked for.
	runPieces = 4
	// MaxWorkers bounds the requests at once, and with them memory: each has a
	// piece and the buffers of a connection.
	MaxWorkers = 64
)

// ErrDigest says that a file does not have the digest it must have. It is a
// sealed.ErrIntegrity.
var ErrDigest = fmt.Errorf("%w: wrong digest", sealed.ErrIntegrity)

// File is one file to fetch.
type File struct {
	Path   string // below the folder, see sealed.CheckPath
	Mode   fs.FileMode
	Size   int64 // of the file, or -1 where the source does not say
	Source source.Source
	Object source.Object
	// Cipher opens the object, which is a sealed one. Nil: the object is the
	// file.
	Cipher func(sealed.Header) (*sealed.Cipher, error)
	// Transform makes the file, which is empty, of the whole object and returns
	// its size. Then Size is -1, and Cipher nil.
	Transform func(ctx context.Context, object io.Reader, file *os.File) (int64, error)
	// SHA256 is the digest the file must have, or nil.
	SHA256 []byte
	// ID is equal only for the same content: what is there of a file in progress
	// counts if its ID was this. The zero ID is none: the file is fetched anew.
	ID [32]byte
}

// Stats are what a Folder has done so far. They may be read at any time.
type Stats struct {
	// Bytes are those of files, from a source or a run before, or of an object
	// that is transformed.
	Bytes   atomic.Int64
	Resumed atomic.Int64 // of Bytes, from a run before
	Files   atomic.Int64 // finished

	// Time of all workers together, in nanoseconds.
	Fetching, Opening, Writing atomic.Int64
}

// Folder is where files go.
type Folder struct {
	root *os.Root
	// boot is this boot of the machine, see journal. "" is unknown.
	boot  string
	Stats Stats
	// Keep leaves the notes of which files are complete, under a name for which
	// sealed.InProgress holds: there is more to do, and a run after a kill does not
	// begin this folder anew.
	Keep bool
}

// OpenFolder opens the folder dir, which exists. The caller closes it.
func OpenFolder(dir string) (*Folder, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("opening the folder for the model: %w", err)
	}
	return &Folder{root: root, boot: bootID()}, nil
}

// bootID is different after each start of the machine, or "" where that is not to
// be known. Source: Linux Documentation/admin-guide/sysctl/kernel.rst, random.
func bootID() string {
	id, err := podvm.ReadFileMax("/proc/sys/kernel/random/boot_id", 100)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(id))
}

// Close closes the folder.
func (f *Folder) Close() error { return f.root.Close() }

// Fetch brings all files, with workers runs at once, 1 to MaxWorkers, and sets the
// sizes that were not known. After an error, which names the file, those that are
// complete have their names, and a later Fetch continues with the others. Errors:
// those of source and sealed, room.ErrSpace with both numbers, ErrDigest, and the
// context's.
func (f *Folder) Fetch(ctx context.Context, files []File, workers int) error {
	done, err := openDone(f.root)
	if err != nil {
		return err
	}
	defer done.close()
	if err := f.room(files, done); err != nil {
		return err
	}
	slots := make(chan *[piece]byte, workers)
	for range workers {
		slots <- new([piece]byte)
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(workers)
	for i := range files {
		if gctx.Err() != nil {
			break
		}
		g.Go(func() error {
			file := &files[i]
			if done.has(file) {
				f.Stats.Bytes.Add(file.Size)
				f.Stats.Resumed.Add(file.Size)
			} else if err := f.file(gctx, file, slots); err != nil {
				return fmt.Errorf("%s: %w", file.Path, err)
			} else if err := done.add(file); err != nil {
				return err
			}
			f.Stats.Files.Add(1)
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if f.Keep {
		return nil
	}
	return done.remove()
}

// file fetches one file.
func (f *Folder) file(ctx context.Context, file *File, slots chan *[piece]byte) error {
	if err := f.root.MkdirAll(path.Dir(file.Path), 0o755); err != nil {
		return room.Full(err)
	}
	p, err := f.begin(ctx, file)
	if err != nil {
		return err
	}
	defer p.close()
	g, gctx := errgroup.WithContext(ctx)
	for run := range p.runs {
		if p.journal.has(run) {
			_, n := p.plain(run)
			f.Stats.Bytes.Add(n)
			f.Stats.Resumed.Add(n)
			continue
		}
		var buf *[piece]byte
		select {
		case buf = <-slots:
		case <-gctx.Done():
		}
		if buf == nil {
			break
		}
		g.Go(func() error {
			defer func() { slots <- buf }()
			return p.fetch(gctx, run, buf[:])
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return p.publish(ctx)
}

// room checks that the file system has room for what is missing of files, and a
// twentieth more.
func (f *Folder) room(files []File, done *doneList) error {
	var need int64
	for i := range files {
		size := max(files[i].Size, 0)
		if done.has(&files[i]) {
			continue
		}
		need += size
		if fi, err := f.root.Stat(partName(files[i].Path)); err == nil {
			if s, ok := fi.Sys().(*syscall.Stat_t); ok {
				need -= min(s.Blocks*512, size)
			}
		}
	}
	need += need / 20
	return room.Check(f.root, need)
}

// timed adds to where what f takes.
func timed(where *atomic.Int64, f func() error) error {
	start := time.Now()
	err := f()
	where.Add(int64(time.Since(start)))
	return err
}
