package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/imagepull/layer"
	"github.com/sealpod/sealpod/podvm"
)

const (
	// maxImplied bounds the directories of an image that its layers imply.
	maxImplied = 1 << 16
	// maxImpliedFile bounds what is remembered of a layer, in bytes.
	maxImpliedFile = 8 << 20
)

// impliedBy lists the directories that some layer has and does not describe.
func (s *Store) impliedBy(ctx context.Context, layers []string) (map[string]struct{}, error) {
	implied := map[string]struct{}{}
	for _, root := range layers {
		has, err := layer.HasImplied(root)
		if err != nil {
			return nil, err
		}
		if !has {
			continue
		}
		list, err := s.impliedIn(ctx, root)
		if err != nil {
			return nil, err
		}
		for _, path := range list {
			if implied[path] = struct{}{}; len(implied) > maxImplied {
				return nil, fmt.Errorf("%w: more than %d directories without an entry", layer.ErrTooLarge, maxImplied)
			}
		}
	}
	return implied, nil
}

// impliedIn lists the directories that the layer at root does not describe. To
// find them takes a walk through all of the layer; a layer never changes, so
// that is done once, and written down below implied/ under the layer's name.
// A file there is whole, or it would not have that name.
func (s *Store) impliedIn(ctx context.Context, root string) ([]string, error) {
	file := s.path("implied", filepath.Base(root))
	raw, err := podvm.ReadFileMax(file, maxImpliedFile)
	if err == nil {
		list := strings.Split(string(raw), "\x00")
		return list[:len(list)-1], nil
	}
	list, err := findImplied(ctx, root)
	if err != nil {
		return nil, err
	}
	if err := s.remember(file, list); err != nil {
		s.log.Warn("A layer has to be walked through again the next time", "layer", filepath.Base(root), "err", err)
	}
	return list, nil
}

// findImplied walks through a layer. Paths are relative to its root.
func findImplied(ctx context.Context, root string) (list []string, err error) {
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() || path == root {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil || layer.IsDescribed(st) {
			return err
		}
		if list = append(list, strings.TrimPrefix(path, root+"/")); len(list) > maxImplied {
			return fmt.Errorf("%w: more than %d directories without an entry", layer.ErrTooLarge, maxImplied)
		}
		return nil
	})
	return list, err
}

// remember writes list to file, each path with a NUL after it.
func (s *Store) remember(file string, list []string) (err error) {
	var b bytes.Buffer
	for _, path := range list {
		b.WriteString(path)
		b.WriteByte(0)
	}
	if b.Len() > maxImpliedFile {
		return nil // and it is found again the next time
	}
	f, err := os.CreateTemp(s.path("tmp"), "implied-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(b.Bytes())
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), file)
}

// forgetImplied removes what is remembered of a layer.
func (s *Store) forgetImplied(name string) error {
	err := os.Remove(s.path("implied", name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
