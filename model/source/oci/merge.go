package oci

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/sealpod/sealpod/model/sealed"
	"github.com/sealpod/sealpod/model/source/internal/listing"
	"github.com/sealpod/sealpod/podvm"
)

// What a layer says of layers below it.
// Source: OCI image-spec v1.1 layer.md, "Whiteouts".
const (
	whiteout = ".wh."
	opaque   = ".wh..wh..opq"
	models   = "models"
)

// merge moves what is below models in the layers, base first, over each other into
// the folder model, which does not exist and exists afterwards if any layer has it.
// Unlike layer.Merge it copies nothing: models are large, and their disk is often
// memory.
func merge(ctx context.Context, layers []string, model string) error {
	for _, l := range layers {
		for _, mark := range []string{opaque, whiteout + models} {
			if _, err := os.Lstat(filepath.Join(l, mark)); err == nil {
				if err := os.RemoveAll(model); err != nil {
					return err
				}
			}
		}
		st, err := os.Lstat(filepath.Join(l, models))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return err
		case !st.IsDir():
			return listing.Unacceptable("models is no folder")
		}
		if err := mergeDir(ctx, filepath.Join(l, models), model, ""); err != nil {
			return err
		}
	}
	return nil
}

// mergeDir merges the folder from over to, which is rel below the model.
func mergeDir(ctx context.Context, from, to, rel string) error {
	if st, err := os.Lstat(to); err == nil && !st.IsDir() {
		if err := os.Remove(to); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	// Whiteouts speak of lower layers only, whatever order names come in.
	for _, e := range entries {
		if hidden, ok := strings.CutPrefix(e.Name(), whiteout); ok {
			if err := hide(to, e.Name(), hidden); err != nil {
				return err
			}
		}
	}
	for _, e := range entries {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if strings.HasPrefix(e.Name(), whiteout) {
			continue
		}
		if err := mergeEntry(ctx, e, filepath.Join(from, e.Name()), filepath.Join(to, e.Name()), path.Join(rel, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// hide removes what a whiteout in the folder to is about.
func hide(to, mark, hidden string) error {
	if mark != opaque {
		if hidden == "" || hidden == "." || hidden == ".." {
			return listing.Unacceptable("a whiteout of nothing")
		}
		return os.RemoveAll(filepath.Join(to, hidden))
	}
	entries, err := os.ReadDir(to)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(to, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// mergeEntry merges one entry. Model servers run as any user: what they get is for
// all to read.
func mergeEntry(ctx context.Context, e fs.DirEntry, from, to, rel string) error {
	if err := sealed.CheckPath(rel); err != nil {
		return listing.Unacceptable("file %q: %v", podvm.Printable(rel, 200), err)
	}
	if e.IsDir() {
		return mergeDir(ctx, from, to, rel)
	}
	switch e.Type() {
	case fs.ModeSymlink:
		target, err := os.Readlink(from)
		if err != nil {
			return err
		}
		if !staysWithin(rel, target) {
			return listing.Unacceptable("link %q leads out of the model", podvm.Printable(rel, 200))
		}
	case 0:
		st, err := e.Info()
		if err != nil {
			return err
		}
		if err := os.Chmod(from, st.Mode().Perm()&0o755|0o644); err != nil {
			return err
		}
	default:
		return listing.Unacceptable("file %q: neither a file nor a folder nor a link", podvm.Printable(rel, 200))
	}
	if err := os.RemoveAll(to); err != nil {
		return err
	}
	return os.Rename(from, to)
}

// staysWithin tells whether the link rel leads to something below the model. After
// a name, which may be a link itself, ".." could lead anywhere.
func staysWithin(rel, target string) bool {
	rest := target
	for strings.HasPrefix(rest, "../") {
		rest = strings.TrimLeft(rest[2:], "/")
	}
	up := strings.HasSuffix("/"+rest, "/..") && rest != ".." || strings.Contains("/"+rest, "/../")
	return target != "" && !path.IsAbs(target) && !up && filepath.IsLocal(path.Join(path.Dir(rel), target))
}
