package imageseal

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// ErrReference says that a text names no image in a form understood here.
var ErrReference = errors.New("invalid image reference")

// ErrNotFound says that there is no such image.
var ErrNotFound = errors.New("image not found")

// Access says how registries are reached. Credentials come from the Docker
// configuration of the user (~/.docker/config.json and credential helpers).
type Access struct {
	// Insecure permits plain HTTP and unverified certificates. Addresses of
	// the loopback network are reached over plain HTTP in any case.
	Insecure bool
}

// place is one repository in a registry, or one OCI layout, with a reference
// into it.
type place interface {
	// open returns what the reference names; ErrNotFound when nothing.
	open(ctx context.Context) (entity, error)
	// openTag returns the image under another tag of the same repository, nil
	// when there is none.
	openTag(ctx context.Context, tag string) (v1.Image, error)
	// hasTag reports whether the repository has the tag.
	hasTag(ctx context.Context, tag string) (bool, error)
	// write stores e under the reference.
	write(ctx context.Context, e entity) error
	// writeTag stores img under another tag of the same repository.
	writeTag(ctx context.Context, tag string, img v1.Image) error
	// repository is the name signatures are made for, "" in a layout.
	repository() string
}

// entity is what a reference names: an image or an index, the other is nil.
type entity struct {
	image v1.Image
	index v1.ImageIndex
}

func (e entity) digest() (v1.Hash, error) {
	if e.index != nil {
		return e.index.Digest()
	}
	return e.image.Digest()
}

func (e entity) mediaType() (types.MediaType, error) {
	if e.index != nil {
		return e.index.MediaType()
	}
	return e.image.MediaType()
}

// layoutTag is the grammar of a tag, as registries have it too.
var layoutTag = regexp.MustCompile(`^[\w][\w.-]{0,127}$`)

// parsePlace reads "oci:DIR[:TAG]" or a registry reference in Docker's
// grammar. Errors: ErrReference.
func parsePlace(text string, a Access) (place, error) {
	if rest, ok := strings.CutPrefix(text, "oci:"); ok {
		dir, tag := rest, ""
		if i := strings.LastIndexByte(rest, ':'); i >= 0 {
			if !layoutTag.MatchString(rest[i+1:]) {
				return nil, fmt.Errorf("%w: %q: the part after the last colon is not a tag", ErrReference, text)
			}
			dir, tag = rest[:i], rest[i+1:]
		}
		if dir == "" {
			return nil, fmt.Errorf("%w: %q: want oci:DIRECTORY[:TAG]", ErrReference, text)
		}
		return layoutPlace{dir: dir, tag: tag}, nil
	}
	opts := []name.Option{name.WeakValidation}
	if a.Insecure {
		opts = append(opts, name.Insecure)
	}
	ref, err := name.ParseReference(strings.TrimPrefix(text, "docker://"), opts...)
	if err != nil {
		return nil, fmt.Errorf("%w: %q: %w", ErrReference, text, err)
	}
	return registryPlace{ref: ref, insecure: a.Insecure}, nil
}

// Publish stores an image under a reference, and returns its digest. Errors:
// ErrReference, and those of the registry or the file system.
func Publish(ctx context.Context, to string, img v1.Image, a Access) (v1.Hash, error) {
	p, err := parsePlace(to, a)
	if err != nil {
		return v1.Hash{}, err
	}
	e := entity{image: img}
	digest, err := e.digest()
	if err != nil {
		return v1.Hash{}, fmt.Errorf("naming the image: %w", err)
	}
	return digest, p.write(ctx, e)
}
