// Package unpack unpacks the one archive a model may come as: a tar, a tar
// compressed with gzip, or a zip.
//
// Data path: after the storage initializer fetched a single archive it unpacks it
// in place, and removes it.
//
// Trust: an archive is hostile. Its entries are files and folders with clean
// relative paths; anything else is an error. Bytes, entries and depth are capped,
// every file has its name only once it is complete, and no link leads out of the
// folder, for os.Root follows none that does.
package unpack

import (
	"archive/tar"
	"archive/zip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path"
	"strings"
	"syscall"

	"github.com/sealpod/sealpod/imagepull/layer/gunzip"
	"github.com/sealpod/sealpod/model/room"
	"github.com/sealpod/sealpod/model/sealed"
	"github.com/sealpod/sealpod/podvm"
)

// Limits of an archive.
const (
	maxEntries = 100_000
	// maxDirectory is how many bytes tell the entries of a zip, which are all read
	// before the first one; each takes about six times that in memory.
	maxDirectory = 24 << 20
)

// ErrArchive says that an archive is corrupt or holds what no model does.
var ErrArchive = errors.New("unacceptable archive")

// Is tells whether a file of this name is an archive that is unpacked.
func Is(name string) bool { return kind(name) != "" }

func kind(name string) string {
	name = strings.ToLower(name)
	for _, ext := range []string{".tar", ".tar.gz", ".tgz", ".zip"} {
		if strings.HasSuffix(name, ext) {
			return ext
		}
	}
	return ""
}

// Options say how an archive is unpacked.
type Options struct {
	// StripFirst leaves out the first element of each path, and entries that
	// have no other.
	StripFirst bool
	// Progress is told how many bytes more are written. Nil is allowed.
	Progress func(n int64)
}

// InPlace unpacks the archive name, a path in the folder root, into the folder it
// is in and then removes it. Errors: ErrArchive, room.ErrSpace,
// the context's.
func InPlace(ctx context.Context, root *os.Root, name string, o Options) error {
	file, err := root.Open(name)
	if err != nil {
		return fmt.Errorf("opening the archive: %w", err)
	}
	defer file.Close()
	u := &unpacker{ctx: ctx, root: root, dir: path.Dir(name), self: name, o: o, buf: make([]byte, 256<<10)}
	if kind(name) == ".zip" {
		err = u.zip(file)
	} else {
		err = u.tar(file, kind(name))
	}
	if err != nil {
		return fmt.Errorf("unpacking %s: %w", name, err)
	}
	if u.replaced {
		return nil // an entry has the archive's name, and its place
	}
	if err := root.Remove(name); err != nil {
		return fmt.Errorf("removing the archive: %w", err)
	}
	return nil
}

type unpacker struct {
	ctx       context.Context
	root      *os.Root
	dir, self string
	o         Options
	buf       []byte
	entries   int
	replaced  bool
}

func (u *unpacker) tar(file *os.File, kind string) error {
	var r io.Reader = file
	if kind != ".tar" {
		r = gunzip.NewReader(file, gunzip.Options{})
	}
	for t := tar.NewReader(r); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			// What follows the archive's end must be sound, too.
			_, err := io.CopyBuffer(io.Discard, struct{ io.Reader }{r}, u.buf)
			return corrupt(err)
		}
		if err != nil {
			return corrupt(err)
		}
		switch h.Typeflag {
		case tar.TypeDir:
			err = u.folder(h.Name)
		case tar.TypeReg:
			err = u.file(h.Name, fs.FileMode(h.Mode), h.Size, t)
		case tar.TypeXGlobalHeader:
		default:
			err = fmt.Errorf("%w: %q is neither a file nor a folder", ErrArchive, podvm.Printable(h.Name, 200))
		}
		if err != nil {
			return err
		}
	}
}

func (u *unpacker) zip(file *os.File) error {
	st, err := file.Stat()
	if err != nil {
		return err
	}
	directory := &capped{file: file, left: maxDirectory}
	z, err := zip.NewReader(directory, st.Size())
	if err != nil {
		return corrupt(err)
	}
	directory.left = math.MaxInt64
	for _, f := range z.File {
		mode := f.Mode()
		switch {
		case mode.IsDir():
			err = u.folder(f.Name)
		case mode.IsRegular():
			err = u.zipped(f)
		default:
			err = fmt.Errorf("%w: %q is neither a file nor a folder", ErrArchive, podvm.Printable(f.Name, 200))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// capped reads so many bytes of a file and no more.
type capped struct {
	file *os.File
	left int64
}

func (c *capped) ReadAt(b []byte, off int64) (int, error) {
	if c.left -= int64(len(b)); c.left < 0 {
		return 0, fmt.Errorf("%w: its directory has more than %d bytes", ErrArchive, maxDirectory)
	}
	return c.file.ReadAt(b, off)
}

func (u *unpacker) zipped(f *zip.File) error {
	r, err := f.Open()
	if err != nil {
		return corrupt(err)
	}
	defer r.Close()
	if f.UncompressedSize64 > sealed.MaxSize {
		return fmt.Errorf("%w: %q is too large", ErrArchive, podvm.Printable(f.Name, 200))
	}
	return u.file(f.Name, f.Mode(), int64(f.UncompressedSize64), r)
}

// corrupt is err of reading an archive.
func corrupt(err error) error {
	if err == nil || errors.Is(err, context.Canceled) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrArchive, err)
}

// place returns where the entry name goes, "" if nowhere.
func (u *unpacker) place(name string) (string, error) {
	if err := u.ctx.Err(); err != nil {
		return "", err
	}
	if u.entries++; u.entries > maxEntries {
		return "", fmt.Errorf("%w: more than %d entries", ErrArchive, maxEntries)
	}
	p := strings.TrimSuffix(strings.TrimPrefix(name, "./"), "/")
	if p == "" || p == "." {
		return "", nil
	}
	if err := sealed.CheckPath(p); err != nil {
		return "", fmt.Errorf("%w: %q: %w", ErrArchive, podvm.Printable(name, 200), err)
	}
	if u.o.StripFirst {
		_, p, _ = strings.Cut(p, "/")
		if p == "" {
			return "", nil
		}
	}
	return path.Join(u.dir, p), nil
}

func (u *unpacker) folder(name string) error {
	p, err := u.place(name)
	if err != nil || p == "" {
		return err
	}
	return inTheWay(u.root.MkdirAll(p, 0o755))
}

// inTheWay is err of giving a name, which something else may have.
func inTheWay(err error) error {
	if errors.Is(err, fs.ErrExist) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.EISDIR) {
		return fmt.Errorf("%w: a file where a folder is to be, or a folder where a file is: %w", ErrArchive, err)
	}
	return room.Full(err)
}

func (u *unpacker) file(name string, mode fs.FileMode, size int64, r io.Reader) error {
	p, err := u.place(name)
	if err != nil || p == "" {
		return err
	}
	if size < 0 || size > sealed.MaxSize {
		return fmt.Errorf("%w: an entry of %d bytes", ErrArchive, size)
	}
	if err := room.Check(u.root, size); err != nil {
		return err
	}
	dir, base := path.Split(p)
	if err := u.root.MkdirAll(path.Dir(p), 0o755); err != nil {
		return inTheWay(err)
	}
	part := dir + "." + base + ".part"
	// A run that was killed may have left one that is read-only.
	if err := u.root.Remove(part); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	out, err := u.root.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return room.Full(err)
	}
	err = u.write(out, r, size)
	if err == nil {
		err = room.Full(out.Sync()) // a disk that lost something tells it here only
	}
	if err == nil {
		err = out.Chmod(mode&fs.ModePerm&^0o022 | 0o444) // the model server may be any user
	}
	if err = errors.Join(err, out.Close()); err != nil {
		return errors.Join(err, u.root.Remove(part))
	}
	u.replaced = u.replaced || p == u.self
	if err := u.root.Rename(part, p); err != nil {
		return errors.Join(inTheWay(err), u.root.Remove(part))
	}
	return nil
}

func (u *unpacker) write(out *os.File, r io.Reader, size int64) error {
	for left := size; left > 0; {
		if err := u.ctx.Err(); err != nil {
			return err
		}
		n, err := io.ReadFull(r, u.buf[:min(left, int64(len(u.buf)))])
		if err != nil {
			return corrupt(err)
		}
		if _, err := out.Write(u.buf[:n]); err != nil {
			return room.Full(err)
		}
		left -= int64(n)
		if u.o.Progress != nil {
			u.o.Progress(int64(n))
		}
	}
	// A zip has its checksum at the end, and may hold more than it says.
	if n, err := io.ReadFull(r, u.buf[:1]); n > 0 || !errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: an entry is not what its header says: %w", ErrArchive, err)
	}
	return nil
}
