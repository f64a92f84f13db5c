// Package local reads models that are files of this machine already: volumes the
// pod has mounted, and folders on an owner's disk.
//
// Data path: the storage initializer links what is not encrypted into its
// folder, entry by entry, and reads the rest as from any other source.
//
// Trust: whoever made the volume chose its files, and whoever wrote the pod
// chose the path. A folder is not left: links that lead out of it are not
// followed, and other things than files are passed over.
package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/sealpod/sealpod/model/source"
	"github.com/sealpod/sealpod/model/source/internal/listing"
	"github.com/sealpod/sealpod/model/source/settings"
	"github.com/sealpod/sealpod/podvm"
)

// Prefix is how addresses of this kind may begin. An existing path is one, too.
const Prefix = "file://"

// Source is a folder or a file. It implements source.Source.
type Source struct {
	path string      // as the address has it
	real string      // on this machine
	root *os.Root    // the folder, or the one the file is in
	file string      // "" for a folder
	info os.FileInfo // of real
}

// New opens the source at address. Its user closes it. Errors: source.ErrUsage,
// source.ErrNotFound, source.ErrRefused.
func New(address string, env *settings.Env) (*Source, error) {
	s := &Source{path: filepath.Clean(strings.TrimPrefix(address, Prefix))}
	if !filepath.IsAbs(s.path) {
		return nil, settings.Usage("%s: not an absolute path", podvm.Printable(address, 200))
	}
	s.real = env.Host.Path(s.path)
	info, err := os.Stat(s.real)
	if err != nil {
		return nil, s.explain(err)
	}
	dir := s.real
	s.info = info
	switch {
	case info.Mode().IsRegular():
		dir, s.file = filepath.Split(s.real)
	case !info.IsDir():
		return nil, settings.Usage("%s: neither a file nor a folder", s)
	}
	if s.root, err = os.OpenRoot(dir); err != nil {
		return nil, s.explain(err)
	}
	return s, nil
}

func (s *Source) explain(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return podvm.Explain(fmt.Errorf("%w: %w", source.ErrNotFound, err), "there is nothing at "+s.String())
	case errors.Is(err, fs.ErrPermission):
		return podvm.Explain(fmt.Errorf("%w: %w", source.ErrRefused, err), "the files at "+s.String()+" are not for this user to read")
	}
	return fmt.Errorf("%w: %w", source.ErrUnreachable, err)
}

// Close closes the folder.
func (s *Source) Close() { _ = s.root.Close() }

// String implements source.Source.
func (s *Source) String() string { return Prefix + podvm.Printable(s.path, 400) }

// List implements source.Source. As upstream, it leaves out what begins with a
// dot at the top of a folder; Kubernetes keeps its own links there.
func (s *Source) List(ctx context.Context) ([]source.Object, error) {
	var l listing.Listing
	if s.file != "" {
		if err := l.Add(object(s.file, s.info)); err != nil {
			return nil, err
		}
		return l.Done()
	}
	err := fs.WalkDir(s.root.FS(), ".", func(p string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return s.explain(err)
		case ctx.Err() != nil:
			return ctx.Err()
		case p == ".":
			return nil
		case strings.HasPrefix(p, ".") && e.IsDir():
			return fs.SkipDir
		case strings.HasPrefix(p, "."), e.IsDir():
			return nil
		}
		info, err := s.root.Stat(p) // of what a link leads to
		if err != nil || !info.Mode().IsRegular() {
			return nil
		}
		return l.Add(object(p, info))
	})
	if err != nil {
		return nil, err
	}
	return l.Done()
}

func object(path string, info fs.FileInfo) source.Object {
	return source.Object{Path: path, Size: info.Size(), Version: fmt.Sprintf("%d-%d", info.Size(), info.ModTime().UnixNano())}
}

// Open implements source.Source.
func (s *Source) Open(_ context.Context, o source.Object, off, n int64) (io.ReadCloser, error) {
	f, err := s.root.OpenFile(o.Path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a pipe would make it wait
	if err != nil {
		return nil, s.explain(err)
	}
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() || o.Version != "" && object(o.Path, info).Version != o.Version {
		return nil, errors.Join(podvm.Explain(fmt.Errorf("%w: %s", source.ErrChanged, podvm.Printable(o.Path, 200)), "a file changed after it was listed: start again"), err, f.Close())
	}
	if n < 0 {
		n = max(info.Size()-off, 0)
	}
	return &section{io.NewSectionReader(f, off, n), f}, nil
}

type section struct {
	io.Reader
	io.Closer
}

// Link makes a link in the folder dest to each entry of the source, as KServe
// does. What has the name of an entry already stays. It returns how many entries
// there are. Errors: source.ErrNotFound for none.
// Source: kserve python/storage/kserve_storage/kserve_storage.py,
// _download_local, at aaac4e2.
func (s *Source) Link(dest string) (int, error) {
	names := []string{s.file}
	if s.file == "" {
		entries, err := fs.ReadDir(s.root.FS(), ".")
		if err != nil {
			return 0, s.explain(err)
		}
		names = names[:0]
		for _, e := range entries {
			if !strings.HasPrefix(e.Name(), ".") {
				names = append(names, e.Name())
			}
		}
	}
	if len(names) == 0 {
		return 0, s.explain(fs.ErrNotExist)
	}
	for _, name := range names {
		to := path.Join(s.real, name)
		if s.file != "" {
			to = s.real
		}
		if err := os.Symlink(to, filepath.Join(dest, name)); err != nil && !errors.Is(err, fs.ErrExist) {
			return 0, fmt.Errorf("linking to %s: %w", s, err)
		}
	}
	return len(names), nil
}
