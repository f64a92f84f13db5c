package model

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sealpod/sealpod/model/source"
	"github.com/sealpod/sealpod/model/source/settings"
)

// image is a source that has its files in archives, and one of them.
type image struct{ source.Source }

func (image) String() string { return "image://x" }

func (image) Pinned() bool { return false }

func (image) List(context.Context) ([]source.Object, error) {
	return []source.Object{{Path: "sealed-model", Size: 7}}, nil // not a manifest: a layer
}

func (image) Unpack(_ context.Context, dir string, _ source.Keys) error {
	return os.WriteFile(filepath.Join(dir, "weights"), []byte("weights"), 0o600)
}

func TestImagesAreUnpacked(t *testing.T) {
	before := kinds
	defer func() { kinds = before }()
	kinds = append([]kind{{form("image://"), func(string, *settings.Env) (source.Source, error) { return image{}, nil }}}, before...)
	w := newWorld(t)
	if err := w.run("image://x"); err != nil {
		t.Fatal(err)
	}
	holds(t, w.dest, map[string]string{"weights": "weights"})
	if !strings.Contains(w.log.String(), "image://x") {
		t.Error(w.log.String())
	}
	if err := w.run("image://x", w.dest, folderOf(t, map[string]string{"a": "b"}), w.dest); !errors.Is(err, ErrCollision) {
		t.Error(err)
	}
	w.env["MODEL_STRICT"] = "true"
	if err := w.run("image://x"); !errors.Is(err, ErrUnauthenticated) {
		t.Error(err)
	}
}
