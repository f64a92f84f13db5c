package imageseal

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/match"
)

// refName is the annotation that names a manifest in an OCI layout.
// Source: OCI image-spec v1.1 image-layout.md.
const refName = "org.opencontainers.image.ref.name"

// attachedTag is the tag of what is attached to an image, as cosign names it.
var attachedTag = regexp.MustCompile(`^sha256-[0-9a-f]{64}(\.(sig|att|sbom))?$`)

// layoutPlace is an OCI layout in a directory, with the tag of one image in it
// or "" for its only image.
type layoutPlace struct{ dir, tag string }

func (p layoutPlace) repository() string { return "" }

func (p layoutPlace) open(context.Context) (entity, error) {
	return p.lookup(p.tag)
}

func (p layoutPlace) lookup(tag string) (entity, error) {
	idx, err := layout.ImageIndexFromPath(p.dir)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	if err != nil {
		return entity{}, fmt.Errorf("reading the layout %s: %w", p.dir, err)
	}
	m, err := idx.IndexManifest()
	if err != nil {
		return entity{}, fmt.Errorf("reading the layout %s: %w", p.dir, err)
	}
	var found []v1.Descriptor
	for _, d := range m.Manifests {
		name := d.Annotations[refName]
		if name == tag || tag == "" && !attachedTag.MatchString(name) {
			found = append(found, d)
		}
	}
	switch {
	case len(found) == 0:
		return entity{}, fmt.Errorf("reading the layout %s: tag %q: %w", p.dir, tag, ErrNotFound)
	case len(found) > 1:
		return entity{}, fmt.Errorf("reading the layout %s: %w: it holds %d images for tag %q, name one as oci:DIR:TAG", p.dir, ErrReference, len(found), tag)
	}
	var e entity
	if found[0].MediaType.IsIndex() {
		e.index, err = idx.ImageIndex(found[0].Digest)
	} else {
		e.image, err = idx.Image(found[0].Digest)
	}
	if err != nil {
		return entity{}, fmt.Errorf("reading %s in the layout %s: %w", found[0].Digest, p.dir, err)
	}
	return e, nil
}

func (p layoutPlace) openTag(_ context.Context, tag string) (v1.Image, error) {
	e, err := p.lookup(tag)
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	if err == nil && e.image == nil {
		err = fmt.Errorf("reading the layout %s: tag %q is not an image", p.dir, tag)
	}
	return e.image, err
}

func (p layoutPlace) hasTag(_ context.Context, tag string) (bool, error) {
	_, err := p.lookup(tag)
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

func (p layoutPlace) write(_ context.Context, e entity) error { return p.put(p.tag, e) }

func (p layoutPlace) writeTag(_ context.Context, tag string, img v1.Image) error {
	return p.put(tag, entity{image: img})
}

func (p layoutPlace) put(tag string, e entity) error {
	path, err := p.create()
	if err != nil {
		return fmt.Errorf("opening the layout %s: %w", p.dir, err)
	}
	digest, err := e.digest()
	if err != nil {
		return fmt.Errorf("naming the image: %w", err)
	}
	var opts []layout.Option
	same := match.Digests(digest)
	if tag != "" {
		opts = append(opts, layout.WithAnnotations(map[string]string{refName: tag}))
		same = match.Name(tag)
	}
	if e.index != nil {
		err = path.ReplaceIndex(e.index, same, opts...)
	} else {
		err = path.ReplaceImage(e.image, same, opts...)
	}
	if err != nil {
		return fmt.Errorf("writing the layout %s: %w", p.dir, err)
	}
	return nil
}

// create opens the layout, making an empty one where there is none yet. A
// directory with other things in it is left alone.
func (p layoutPlace) create() (layout.Path, error) {
	if _, err := os.Stat(filepath.Join(p.dir, "index.json")); err == nil {
		return layout.FromPath(p.dir)
	}
	entries, err := os.ReadDir(p.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if len(entries) > 0 {
		return "", errors.New("the directory is neither empty nor an OCI layout")
	}
	return layout.Write(p.dir, empty.Index)
}
