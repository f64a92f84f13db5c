// Package oci reads models from images: modelcars, which have the model in the
// folder models of their layers.
//
// Data path: the storage initializer lists the layers with it and has it unpack
// them into the folder of the model. The registry's protocol, digests,
// decompression and decryption are those of package imagepull, which the guest binary
// has anyway: measured in it, this package costs 36,864 bytes more.
//
// Trust: the registry and the network are hostile: nothing of a layer is used
// before all of it had its digest, which the manifest binds; which manifest a tag
// means, the registry decides, unless the address has a digest. Of what layers have,
// files and folders below models are taken, and links that stay there.
package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"

	"github.com/sealpod/sealpod/imagepull/layer"
	"github.com/sealpod/sealpod/imagepull/registry"
	"github.com/sealpod/sealpod/model/room"
	"github.com/sealpod/sealpod/model/sealed"
	"github.com/sealpod/sealpod/model/source"
	"github.com/sealpod/sealpod/model/source/settings"
	"github.com/sealpod/sealpod/podvm"
)

// Prefix is how addresses of this kind begin: oci://REGISTRY/REPOSITORY[:TAG][@DIGEST].
const Prefix = "oci://"

const maxConfig = 1 << 20 // bytes of registry credentials

// Source is an image. It implements source.Unpacker; its user closes it.
type Source struct {
	at     registry.Candidate
	cred   registry.Credentials
	client *registry.Client
	log    *slog.Logger

	mu    sync.Mutex
	repo  *registry.Repository
	image *registry.Image // nil until it is listed
}

// New returns the source at address. It touches no network. Errors:
// source.ErrUsage.
// Source: kserve pkg/utils/storage.go at aaac4e2, for the variables.
func New(address string, env *settings.Env) (*Source, error) {
	text, ok := strings.CutPrefix(address, Prefix)
	if !ok {
		return nil, settings.Usage("%s: not oci://REGISTRY/REPOSITORY", podvm.Printable(address, 200))
	}
	ref, err := registry.ParseReference(text)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", source.ErrUsage, err)
	}
	s := &Source{at: registry.Candidate{Reference: ref, Insecure: env.True("KSERVE_OCI_INSECURE_REGISTRY")}, log: env.Log}
	if path := env.Host.Getenv("KSERVE_OCI_DOCKER_CONFIG"); path != "" {
		raw, err := podvm.ReadFileMax(env.Host.Path(path), maxConfig)
		if err != nil {
			return nil, podvm.Explain(errors.Join(source.ErrUsage, err), "the file that KSERVE_OCI_DOCKER_CONFIG names cannot be read")
		}
		defer clear(raw)
		auth, err := registry.ParseAuthFile(raw)
		if err == nil {
			s.cred, err = auth.For(ref)
		}
		if err != nil {
			return nil, podvm.Explain(errors.Join(source.ErrUsage, err), "the file that KSERVE_OCI_DOCKER_CONFIG names has no usable credentials")
		}
	}
	// KServe names the bundle of the cluster in this variable, too.
	pem, err := env.CABundle("REQUESTS_CA_BUNDLE")
	if err != nil {
		return nil, err
	}
	opts := registry.Options{Host: env.Host, Log: env.Log, Backoff: env.Backoff}
	if pem != nil {
		opts.Roots = []string{string(pem)}
	}
	if s.client, err = registry.NewClient(opts); err != nil {
		return nil, podvm.Explain(errors.Join(source.ErrUsage, err), "the CA bundle or the proxy is not usable")
	}
	return s, nil
}

// Close closes idle connections and forgets the credentials.
func (s *Source) Close() {
	s.client.Close()
	s.cred.Password.Wipe()
}

// String implements source.Source.
func (s *Source) String() string { return podvm.Printable(Prefix+s.at.Reference.String(), 400) }

// Pinned implements source.Unpacker.
func (s *Source) Pinned() bool { return s.at.Reference.Digest != "" }

// List implements source.Source: the layers, named after their place, with the
// sizes and digests they have in the registry.
func (s *Source) List(ctx context.Context) ([]source.Object, error) {
	_, image, err := s.resolve(ctx)
	if err != nil {
		return nil, err
	}
	var out []source.Object
	for i, l := range image.Layers {
		out = append(out, source.Object{Path: fmt.Sprintf("layers/%03d", i), Size: l.Size, Version: l.Digest})
	}
	return out, nil
}

// Open implements source.Source. There is nothing to open: see Unpack.
func (s *Source) Open(context.Context, source.Object, int64, int64) (io.ReadCloser, error) {
	return nil, podvm.Explain(source.ErrUnsupported, "layers of an image are unpacked, and not read")
}

// resolve asks once what the reference leads to: a tag may move.
func (s *Source) resolve(ctx context.Context) (*registry.Repository, *registry.Image, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.image != nil {
		return s.repo, s.image, nil
	}
	repo, err := s.client.Open(ctx, s.at, s.cred)
	if err != nil {
		return nil, nil, classify(ctx, err)
	}
	image, err := repo.Resolve(ctx)
	if err != nil {
		return nil, nil, classify(ctx, err)
	}
	if len(image.Layers) == 0 {
		return nil, nil, podvm.Explain(source.ErrNotFound, "the image has no layers")
	}
	s.repo, s.image = repo, image
	return repo, image, nil
}

// classify says what an error of package imagepull is here.
func classify(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	for _, c := range []struct{ is, class error }{
		{layer.ErrDecrypt, nil}, {source.ErrListing, nil},
		{registry.ErrUnauthorized, source.ErrRefused},
		{registry.ErrNotFound, source.ErrNotFound},
		{registry.ErrPlatform, source.ErrNotFound},
		{registry.ErrDigest, sealed.ErrIntegrity},
		{layer.ErrDigest, sealed.ErrIntegrity},
		{layer.ErrDiffID, sealed.ErrIntegrity},
		{registry.ErrManifest, source.ErrListing},
		{podvm.ErrTooLarge, source.ErrListing},
		{layer.ErrMediaType, source.ErrListing},
		{layer.ErrArchive, source.ErrListing},
		{layer.ErrTooLarge, source.ErrListing},
		{registry.ErrUnavailable, source.ErrUnreachable},
		{registry.ErrTruncated, source.ErrUnreachable},
		{layer.ErrTruncated, source.ErrUnreachable},
	} {
		if errors.Is(err, c.is) {
			if c.class == nil {
				return err
			}
			cause := podvm.Cause(err)
			if cause == "" {
				cause = c.is.Error()
			}
			return podvm.Explain(fmt.Errorf("%w: %w", c.class, err), cause)
		}
	}
	return room.Full(err)
}
