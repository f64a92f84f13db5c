package imageseal

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/sealpod/sealpod/podvm"
)

// registryPlace is a reference into a registry.
type registryPlace struct {
	ref      name.Reference
	insecure bool
}

func (p registryPlace) options(ctx context.Context) []remote.Option {
	opts := []remote.Option{
		remote.WithContext(ctx),
		remote.WithAuthFromKeychain(authn.DefaultKeychain),
		remote.WithUserAgent("sealctl/" + podvm.Version()),
	}
	if base, ok := remote.DefaultTransport.(*http.Transport); ok && p.insecure {
		t := base.Clone()
		t.TLSClientConfig = &tls.Config{InsecureSkipVerify: true} //nolint:gosec // --insecure asks for it
		opts = append(opts, remote.WithTransport(t))
	}
	return opts
}

func (p registryPlace) repository() string { return p.ref.Context().Name() }

func (p registryPlace) open(ctx context.Context) (entity, error) {
	d, err := remote.Get(p.ref, p.options(ctx)...)
	if err != nil {
		return entity{}, fmt.Errorf("reading %s: %w", p.ref, notFound(err))
	}
	if d.MediaType.IsIndex() {
		idx, err := d.ImageIndex()
		if err != nil {
			return entity{}, fmt.Errorf("reading the index %s: %w", p.ref, err)
		}
		return entity{index: idx}, nil
	}
	if !d.MediaType.IsImage() {
		return entity{}, fmt.Errorf("reading %s: %w: media type %q is no image", p.ref, ErrReference, podvm.Printable(string(d.MediaType), 128))
	}
	img, err := d.Image()
	if err != nil {
		return entity{}, fmt.Errorf("reading the image %s: %w", p.ref, err)
	}
	return entity{image: img}, nil
}

func (p registryPlace) openTag(ctx context.Context, tag string) (v1.Image, error) {
	ref := p.ref.Context().Tag(tag)
	img, err := remote.Image(ref, p.options(ctx)...)
	if err = notFound(err); errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", ref, err)
	}
	return img, nil
}

func (p registryPlace) hasTag(ctx context.Context, tag string) (bool, error) {
	ref := p.ref.Context().Tag(tag)
	_, err := remote.Head(ref, p.options(ctx)...)
	if err = notFound(err); errors.Is(err, ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("looking for %s: %w", ref, err)
	}
	return true, nil
}

func (p registryPlace) write(ctx context.Context, e entity) error {
	if _, ok := p.ref.(name.Tag); !ok {
		return fmt.Errorf("writing %s: %w: a destination needs a tag, not a digest", p.ref, ErrReference)
	}
	var err error
	if e.index != nil {
		err = remote.WriteIndex(p.ref, e.index, p.options(ctx)...)
	} else {
		err = remote.Write(p.ref, e.image, p.options(ctx)...)
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", p.ref, err)
	}
	return nil
}

func (p registryPlace) writeTag(ctx context.Context, tag string, img v1.Image) error {
	ref := p.ref.Context().Tag(tag)
	if err := remote.Write(ref, img, p.options(ctx)...); err != nil {
		return fmt.Errorf("writing %s: %w", ref, err)
	}
	return nil
}

// notFound marks a registry's 404 as ErrNotFound.
func notFound(err error) error {
	var te *transport.Error
	if errors.As(err, &te) && te.StatusCode == http.StatusNotFound {
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	return err
}
