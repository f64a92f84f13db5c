package sysfs

import (
	"context"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// maxText is what one write to a text attribute takes, in bytes.
// Source: SIMPLE_ATTR_SIZE in Linux fs/configfs/file.c, less its final zero.
const maxText = 4095

// content is an open file that is read: what it holds is determined by the first
// read and stays until it is closed.
type content struct {
	fill func(context.Context) ([]byte, error)

	mu     sync.Mutex
	filled bool
	bytes  []byte
}

// Read returns the bytes at off, none behind the end.
func (c *content) Read(ctx context.Context, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.filled {
		b, err := c.fill(ctx)
		if err != nil {
			return nil, errnoOf(err)
		}
		// An empty one is asked for again at the next read, as configfs does.
		c.bytes, c.filled = b, len(b) != 0
	}
	return part(c.bytes, dest, off), 0
}

// part returns what of b is at off and fits dest.
func part(b, dest []byte, off int64) fuse.ReadResult {
	if off < 0 || off >= int64(len(b)) {
		return fuse.ReadResultData(nil)
	}
	return fuse.ReadResultData(b[off:min(off+int64(len(dest)), int64(len(b)))])
}

// text returns a text attribute.
func text(show func() (string, error)) *content {
	return &content{fill: func(context.Context) ([]byte, error) {
		s, err := show()
		return []byte(s), err
	}}
}

// binary returns a binary attribute of at most maxBlob bytes; more is EFBIG.
func binary(get func(context.Context) ([]byte, error)) *content {
	return &content{fill: func(ctx context.Context) ([]byte, error) {
		b, err := get(ctx)
		if err == nil && len(b) > maxBlob {
			return nil, syscall.EFBIG
		}
		return b, err
	}}
}

// textWrite is an open text attribute that is written: every write is a value of
// its own, wherever it says it begins.
type textWrite struct{ store func([]byte) error }

// Write stores a value, cut to maxText.
func (t textWrite) Write(_ context.Context, b []byte, _ int64) (uint32, syscall.Errno) {
	b = b[:min(len(b), maxText)]
	if err := t.store(b); err != nil {
		return 0, errnoOf(err)
	}
	return uint32(len(b)), 0
}

// position is where the next write of an open file goes. Files here do not know
// O_APPEND, but FUSE's requests have the file's size as offset then.
type position struct {
	append bool
	next   int64
}

// at returns where a write goes that FUSE says is at off.
func (p *position) at(off int64) int64 {
	if p.append {
		return p.next
	}
	return off
}

// inblobWrite is an open inblob. The entry takes over what was written when the
// file is closed.
type inblobWrite struct {
	entry *entry

	// The entry's lock guards these.
	position
	bytes  []byte
	dirty  bool // written to since the entry took it over
	closed bool // in the entry's list
}

// Write puts b into the file. Errors: EFBIG behind maxInblob; as in the kernel
// the file counts as written to even so.
func (w *inblobWrite) Write(_ context.Context, b []byte, off int64) (uint32, syscall.Errno) {
	w.entry.mu.Lock()
	defer w.entry.mu.Unlock()
	off = w.at(off)
	w.dirty = true
	if off > maxInblob || off+int64(len(b)) > maxInblob {
		return 0, syscall.EFBIG
	}
	if grow := int(off) + len(b) - len(w.bytes); grow > 0 {
		w.bytes = append(w.bytes, make([]byte, grow)...)
	}
	w.next = off + int64(copy(w.bytes[off:], b))
	return uint32(len(b)), 0
}

// Flush is one close of perhaps several file descriptors.
func (w *inblobWrite) Flush(context.Context) syscall.Errno {
	w.entry.mu.Lock()
	defer w.entry.mu.Unlock()
	if w.dirty && !w.closed {
		w.closed = true
		w.entry.closing = append(w.entry.closing, w)
	}
	return 0
}

// Release is after the last close.
func (w *inblobWrite) Release(context.Context) syscall.Errno {
	_ = w.entry.view(func() error { w.entry.take(w); return nil }) // nobody hears of it
	return 0
}

// take takes over what was written to inblob. The caller holds the lock. Like
// the kernel it tells nobody when the generation cannot advance.
func (e *entry) take(w *inblobWrite) {
	if w.dirty && e.advance() == nil {
		e.inblob = append([]byte(nil), w.bytes...)
	}
	w.dirty, w.closed = false, false
}

var (
	_ fs.FileReader   = (*content)(nil)
	_ fs.FileWriter   = textWrite{}
	_ fs.FileWriter   = (*inblobWrite)(nil)
	_ fs.FileFlusher  = (*inblobWrite)(nil)
	_ fs.FileReleaser = (*inblobWrite)(nil)
)
