// Package seal makes sealed models: it encrypts the files of a folder, each
// under a key of its own, and closes the set with a manifest.
//
// Data path: the owner seals a model once and uploads the folder this package
// wrote; pods open it with package sealed.
//
// Trust: the files are the owner's own. The folder that comes out may be given
// to anyone. It is the owner's side, and never part of the guest's binary.
package seal

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sealpod/sealpod/model/sealed"
	"github.com/sealpod/sealpod/podvm"
)

// ErrNotEmpty says that the folder to write exists and has files.
var ErrNotEmpty = errors.New("folder is not empty")

// Options say how a model is sealed.
type Options struct {
	Name string // for people, at most 256 bytes
	// Public tells which files, by path, stay readable and are only protected
	// from change. Nil means none.
	Public func(path string) bool
	// Exclude tells which files, by path, are left out. Nil means none.
	Exclude func(path string) bool
	// Progress is told how many bytes more are done, by several goroutines at
	// once. Nil is allowed.
	Progress func(n int64)
	// Plan is told, before anything is written, what will be. Nil is allowed.
	Plan func(*sealed.Manifest)
}

// Model seals all files below the folder src into the folder dst, which it
// makes, and returns the manifest and its pin, "sha256:HEX". Links to files are
// followed, links to folders and other kinds of files are an error. When it
// fails, dst holds no manifest and so no model. Errors: ErrNotEmpty,
// sealed.ErrManifest for files a manifest cannot name.
func Model(ctx context.Context, k *sealed.Key, src, dst string, o Options) (*sealed.Manifest, string, error) {
	m, err := plan(src, o)
	if err != nil {
		return nil, "", err
	}
	if err := m.Check(); err != nil {
		return nil, "", fmt.Errorf("%w: %w", sealed.ErrManifest, err)
	}
	if o.Plan != nil {
		o.Plan(m)
	}
	if err := emptyFolder(dst); err != nil {
		return nil, "", err
	}
	for i := range m.Files {
		f := &m.Files[i]
		if err := writeFile(ctx, k, m.ID, f, filepath.Join(src, f.Path), filepath.Join(dst, f.Object), o.Progress); err != nil {
			return nil, "", fmt.Errorf("sealing %s: %w", f.Path, err)
		}
	}
	text, err := json.Marshal(m)
	if err != nil {
		return nil, "", fmt.Errorf("writing the manifest: %w", err)
	}
	stored, err := object(k.Manifest, text)
	if err != nil {
		return nil, "", fmt.Errorf("sealing the manifest: %w", err)
	}
	if len(stored) > sealed.MaxManifest {
		return nil, "", fmt.Errorf("%w: longer than %d bytes", sealed.ErrManifest, sealed.MaxManifest)
	}
	if err := os.WriteFile(filepath.Join(dst, sealed.ManifestObject), stored, 0o644); err != nil {
		return nil, "", fmt.Errorf("writing the manifest: %w", err)
	}
	sum := sha256.Sum256(stored)
	return m, "sha256:" + hex.EncodeToString(sum[:]), nil
}

// NewKey returns a new random key for a model.
func NewKey() podvm.Secret {
	k := make(podvm.Secret, sealed.KeySize)
	rand.Read(k) // never fails
	return k
}

// plan lists the files of src.
func plan(src string, o Options) (*sealed.Manifest, error) {
	var id [16]byte
	rand.Read(id[:])
	m := &sealed.Manifest{Version: 1, ID: hex.EncodeToString(id[:]), Name: o.Name, Created: time.Now().UTC().Truncate(time.Second)}
	err := filepath.WalkDir(src, func(p string, e fs.DirEntry, err error) error {
		if err != nil || p == src {
			return err
		}
		rel, err := filepath.Rel(src, p)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		if o.Exclude != nil && o.Exclude(rel) {
			if e.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		if e.IsDir() {
			return nil
		}
		st, err := os.Stat(p)
		if err != nil {
			return err
		}
		if !st.Mode().IsRegular() {
			return fmt.Errorf("%s is neither a file nor a link to one", rel)
		}
		f := sealed.File{Path: rel, Object: rel, Size: st.Size(), Mode: uint32(st.Mode().Perm()), Sealed: true}
		if o.Public != nil && o.Public(rel) {
			f.Sealed, f.SHA256 = false, hex.EncodeToString(make([]byte, sha256.Size)) // until it is read
		}
		m.Files = append(m.Files, f)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listing the model: %w", err)
	}
	if len(m.Files) == 0 {
		return nil, fmt.Errorf("listing the model: %s has no files", src)
	}
	return m, nil
}

// emptyFolder makes dir, or finds it without files.
func emptyFolder(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("making the folder: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("reading the folder: %w", err)
	}
	if len(entries) > 0 {
		return fmt.Errorf("%s: %w", dir, ErrNotEmpty)
	}
	return nil
}

// writeFile makes one object.
func writeFile(ctx context.Context, k *sealed.Key, id string, f *sealed.File, from, to string, progress func(int64)) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if progress == nil {
		progress = func(int64) {}
	}
	if !f.Sealed {
		return copyPublic(ctx, f, in, out, progress)
	}
	h := newHeader()
	c, err := k.Content(h, id, f.Path)
	if err != nil {
		return err
	}
	if _, err := out.WriteAt(h[:], 0); err != nil {
		return err
	}
	return segments(ctx, c, f.Size, in, out, progress)
}

// copyPublic copies a file that stays readable and notes its digest.
func copyPublic(ctx context.Context, f *sealed.File, in io.Reader, out io.Writer, progress func(int64)) error {
	hash := sha256.New()
	buf := make([]byte, sealed.SegmentSize)
	var done int64
	for {
		n, err := in.Read(buf)
		if _, werr := out.Write(buf[:n]); werr != nil {
			return werr
		}
		hash.Write(buf[:n])
		done += int64(n)
		progress(int64(n))
		if err := errors.Join(ctx.Err(), beyond(done, f.Size)); err != nil {
			return err
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	if done != f.Size {
		return errChanged
	}
	f.SHA256 = hex.EncodeToString(hash.Sum(nil))
	return nil
}

var errChanged = errors.New("the file changes while it is sealed")

func beyond(done, size int64) error {
	if done > size {
		return errChanged
	}
	return nil
}

func newHeader() sealed.Header {
	var h sealed.Header
	rand.Read(h[:])
	h[0] = sealed.HeaderSize
	return h
}

// segments seals a file of size bytes on all cores.
func segments(ctx context.Context, c *sealed.Cipher, size int64, in io.ReaderAt, out io.WriterAt, progress func(int64)) error {
	l := sealed.Layout{Size: size}
	if n, err := in.ReadAt(make([]byte, 1), size); n > 0 || !errors.Is(err, io.EOF) {
		return errors.Join(errChanged, err)
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	buffers := sync.Pool{New: func() any { b := make([]byte, sealed.SegmentSize); return &b }}
	for i := range l.Segments() {
		if gctx.Err() != nil {
			break
		}
		g.Go(func() error {
			buf := buffers.Get().(*[]byte)
			defer buffers.Put(buf)
			off, n := l.Plain(i)
			plain := (*buf)[:n]
			if got, err := in.ReadAt(plain, off); int64(got) < n {
				return errors.Join(errChanged, err)
			}
			to, _ := l.Stored(i)
			if _, err := out.WriteAt(c.Seal(plain[:0], i, i == l.Segments()-1, plain), to); err != nil {
				return err
			}
			progress(n)
			return nil
		})
	}
	return errors.Join(g.Wait(), ctx.Err())
}

// object seals text as a whole object in memory.
func object(cipher func(sealed.Header) (*sealed.Cipher, error), text []byte) ([]byte, error) {
	h := newHeader()
	c, err := cipher(h)
	if err != nil {
		return nil, err
	}
	l := sealed.Layout{Size: int64(len(text))}
	out := append(make([]byte, 0, l.Sealed()), h[:]...)
	for i := range l.Segments() {
		off, n := l.Plain(i)
		out = c.Seal(out, i, i == l.Segments()-1, text[off:off+n])
	}
	return out, nil
}
