package model

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"

	"github.com/sealpod/sealpod/model/fetch"
	"github.com/sealpod/sealpod/model/sealed"
	"github.com/sealpod/sealpod/model/source"
	"github.com/sealpod/sealpod/podvm"
)

// readManifest reads the stored manifest of a sealed model. Errors:
// sealed.ErrIntegrity when it is too long to be one, those of the source.
func readManifest(ctx context.Context, src source.Source, o source.Object) ([]byte, error) {
	body, err := src.Open(ctx, o, 0, -1)
	if err != nil {
		return nil, fmt.Errorf("reading the manifest: %w", err)
	}
	defer body.Close()
	stored, err := podvm.ReadMax(body, sealed.MaxManifest)
	if errors.Is(err, podvm.ErrTooLarge) {
		return nil, fmt.Errorf("%w: manifest: %w", sealed.ErrIntegrity, err)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the manifest: %w", err)
	}
	return stored, nil
}

func byPath(objects []source.Object) map[string]source.Object {
	out := make(map[string]source.Object, len(objects))
	for _, o := range objects {
		out[o.Path] = o
	}
	return out
}

// Unlisted counts the objects beside a manifest that it does not list. They are
// not of the model and nobody takes notice of them.
func Unlisted(objects []source.Object, m *sealed.Manifest) int {
	rest := byPath(objects)
	delete(rest, sealed.ManifestObject)
	for _, f := range m.Files {
		delete(rest, f.Object)
	}
	return len(rest)
}

// sealedFile is how to fetch a file of a manifest. Errors: sealed.ErrIntegrity
// when its object is not there.
func sealedFile(k *sealed.Key, m *sealed.Manifest, f sealed.File, objects map[string]source.Object) (fetch.File, error) {
	o, ok := objects[f.Object]
	if !ok {
		// Object stores leave out what is empty.
		if f.Sealed || f.Size > 0 {
			return fetch.File{}, podvm.Explain(fmt.Errorf("%w: object %q is missing", sealed.ErrIntegrity, podvm.Printable(f.Object, 200)),
				"an object of the sealed model is missing: "+podvm.Printable(f.Object, 200))
		}
		o = source.Object{Path: f.Object}
	}
	file := fetch.File{Path: f.Path, Mode: fs.FileMode(f.Mode), Size: f.Size, Object: o}
	if f.Sealed {
		file.Cipher = func(h sealed.Header) (*sealed.Cipher, error) { return k.Content(h, m.ID, f.Path) }
		return file, nil
	}
	sum, err := hex.DecodeString(f.SHA256)
	if err != nil {
		return fetch.File{}, fmt.Errorf("%w: %w", sealed.ErrManifest, err)
	}
	file.SHA256 = sum
	return file, nil
}
