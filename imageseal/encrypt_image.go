package imageseal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/types"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/sealpod/sealpod/podvm"
)

// encryptImage returns img with the chosen layers encrypted into temporary
// files. The configuration, and with it every diffID, stays as it is.
func (e *encryption) encryptImage(ctx context.Context, img v1.Image, platform string) (v1.Image, error) {
	raw, err := img.RawManifest()
	if err != nil {
		return nil, fmt.Errorf("reading the manifest: %w", err)
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, fmt.Errorf("parsing the manifest: %w", err)
	}
	layers, err := img.Layers()
	if err != nil {
		return nil, fmt.Errorf("reading the layers: %w", err)
	}
	if len(layers) != len(m.Layers) {
		return nil, fmt.Errorf("the manifest lists %d layers, %d can be read", len(m.Layers), len(layers))
	}
	chosen, err := choose(e.Layers, len(m.Layers))
	if err != nil {
		return nil, err
	}
	out := &sealedImage{Image: img, layers: map[v1.Hash]partial.CompressedLayer{}}
	for i := range m.Layers {
		desc := &m.Layers[i]
		if isEncrypted(desc.MediaType) && slices.Contains(chosen, i) {
			return nil, fmt.Errorf("layer %d: %w", i, ErrEncrypted)
		}
		if !isEncrypted(desc.MediaType) {
			mediaType, ok := plainType(desc.MediaType)
			if !ok {
				return nil, fmt.Errorf("layer %d: media type %q is no image layer", i, podvm.Printable(desc.MediaType, 128))
			}
			desc.MediaType = mediaType
		}
		var blob partial.CompressedLayer = layers[i]
		if slices.Contains(chosen, i) {
			if e.Progress != nil {
				e.Progress(Step{Platform: platform, Layer: i, Layers: len(m.Layers), SizeBytes: desc.Size})
			}
			l, err := e.encryptOne(ctx, layers[i], *desc)
			if err != nil {
				return nil, fmt.Errorf("layer %d: %w", i, err)
			}
			blob, *desc = l, l.desc
		}
		digest, err := v1.NewHash(desc.Digest.String())
		if err != nil {
			return nil, fmt.Errorf("layer %d: %w", i, err)
		}
		out.layers[digest] = blob
	}
	m.MediaType = ocispec.MediaTypeImageManifest
	if m.Config.MediaType == string(types.DockerConfigJSON) {
		m.Config.MediaType = ocispec.MediaTypeImageConfig
	}
	if out.manifest, err = json.Marshal(m); err != nil {
		return nil, fmt.Errorf("encoding the manifest: %w", err)
	}
	sealed, err := partial.CompressedToImage(out)
	if err != nil {
		return nil, fmt.Errorf("putting the image together: %w", err)
	}
	return sealed, nil
}

func (e *encryption) encryptOne(ctx context.Context, layer v1.Layer, desc ocispec.Descriptor) (l fileLayer, err error) {
	r, err := layer.Compressed()
	if err != nil {
		return l, fmt.Errorf("reading %s: %w", desc.Digest, err)
	}
	defer func() {
		if cerr := r.Close(); err == nil && cerr != nil {
			err = fmt.Errorf("reading %s: %w", desc.Digest, cerr)
		}
	}()
	key := e.nextKey()
	l.path = filepath.Join(e.dir, strconv.Itoa(e.n))
	e.n++
	l.desc, err = encryptLayer(ctx, r, desc, l.path, key.ID, key.KEK, e.Packets)
	return l, err
}

// encryptIndex encrypts the chosen images of an index. One chosen image alone
// becomes the result by itself.
func (e *encryption) encryptIndex(ctx context.Context, idx v1.ImageIndex) (entity, error) {
	m, err := idx.IndexManifest()
	if err != nil {
		return entity{}, fmt.Errorf("parsing the index: %w", err)
	}
	left := slices.Clone(e.Platforms)
	var adds []mutate.IndexAddendum
	for _, d := range m.Manifests {
		if d.Platform == nil || !d.MediaType.IsImage() {
			return entity{}, fmt.Errorf("%s in the index is not an image of one platform", d.Digest)
		}
		platform := platformName(d.Platform)
		if d.Platform.OS == "unknown" {
			continue // an attestation about a plain image
		}
		if len(e.Platforms) > 0 {
			if !slices.Contains(e.Platforms, platform) {
				continue
			}
			left = slices.DeleteFunc(left, func(s string) bool { return s == platform })
		}
		img, err := idx.Image(d.Digest)
		if err != nil {
			return entity{}, fmt.Errorf("reading the image for %s: %w", platform, err)
		}
		if img, err = e.encryptImage(ctx, img, platform); err != nil {
			return entity{}, fmt.Errorf("image for %s: %w", platform, err)
		}
		adds = append(adds, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: d.Platform, Annotations: d.Annotations}})
	}
	if len(left) > 0 {
		return entity{}, fmt.Errorf("the index has no image for %v", left)
	}
	if len(adds) == 0 {
		return entity{}, errors.New("the index holds no image")
	}
	if len(e.Platforms) == 1 && len(adds) == 1 {
		img, ok := adds[0].Add.(v1.Image)
		if ok {
			return entity{image: img}, nil
		}
	}
	out := mutate.IndexMediaType(mutate.AppendManifests(empty.Index, adds...), types.OCIImageIndex)
	if len(m.Annotations) > 0 {
		annotated, ok := mutate.Annotations(out, m.Annotations).(v1.ImageIndex)
		if !ok {
			return entity{}, errors.New("annotating the index")
		}
		out = annotated
	}
	return entity{index: out}, nil
}

// platformName is os/arch[/variant].
func platformName(p *v1.Platform) string {
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return s
}

// choose turns positions, negative ones from the top, into indexes below n.
// No positions mean all.
func choose(positions []int, n int) ([]int, error) {
	if n == 0 {
		return nil, errors.New("the image has no layers")
	}
	var out []int
	for i := range n {
		if len(positions) == 0 {
			out = append(out, i)
		}
	}
	for _, p := range positions {
		i := p
		if i < 0 {
			i += n
		}
		if i < 0 || i >= n {
			return nil, fmt.Errorf("there is no layer %d: the image has %d, from 0 (or -%d) to %d (or -1)", p, n, n, n-1)
		}
		if !slices.Contains(out, i) {
			out = append(out, i)
		}
	}
	return out, nil
}

// sealedImage is an image with another manifest and other layers; it feeds
// partial.CompressedToImage, which asks it for nothing else.
type sealedImage struct {
	v1.Image
	manifest []byte
	layers   map[v1.Hash]partial.CompressedLayer
}

func (s *sealedImage) RawManifest() ([]byte, error)        { return s.manifest, nil }
func (s *sealedImage) MediaType() (types.MediaType, error) { return types.OCIManifestSchema1, nil }

func (s *sealedImage) LayerByDigest(h v1.Hash) (partial.CompressedLayer, error) {
	l, ok := s.layers[h]
	if !ok {
		return nil, fmt.Errorf("layer %s: %w", h, ErrNotFound)
	}
	return l, nil
}
