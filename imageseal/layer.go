package imageseal

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"maps"
	"os"
	"slices"

	"github.com/containers/ocicrypt/blockcipher"
	"github.com/containers/ocicrypt/spec"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/sealpod/sealpod/podvm"
)

// plainType returns the OCI media type of a plain layer of any known type.
func plainType(mediaType string) (string, bool) {
	switch mediaType {
	case "application/vnd.docker.image.rootfs.diff.tar":
		return ocispec.MediaTypeImageLayer, true
	case "application/vnd.docker.image.rootfs.diff.tar.gzip":
		return ocispec.MediaTypeImageLayerGzip, true
	case "application/vnd.docker.image.rootfs.diff.tar.zstd":
		return ocispec.MediaTypeImageLayerZstd, true
	case "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip":
		return nonDistributable + "+gzip", true
	}
	_, ok := encryptedType(mediaType)
	return mediaType, ok
}

const nonDistributable = "application/vnd.oci.image.layer.nondistributable.v1.tar"

// encryptedType returns the media type of an OCI layer once it is encrypted.
func encryptedType(plain string) (string, bool) {
	switch plain {
	case ocispec.MediaTypeImageLayer:
		return spec.MediaTypeLayerEnc, true
	case ocispec.MediaTypeImageLayerGzip:
		return spec.MediaTypeLayerGzipEnc, true
	case ocispec.MediaTypeImageLayerZstd:
		return spec.MediaTypeLayerZstdEnc, true
	case nonDistributable:
		return spec.MediaTypeLayerNonDistributableEnc, true
	case nonDistributable + "+gzip":
		return spec.MediaTypeLayerNonDistributableGzipEnc, true
	case nonDistributable + "+zstd":
		return spec.MediaTypeLayerNonDistributableZstdEnc, true
	}
	return "", false
}

// isEncrypted reports whether mediaType is that of an encrypted layer.
func isEncrypted(mediaType string) bool {
	return slices.Contains([]string{
		spec.MediaTypeLayerEnc, spec.MediaTypeLayerGzipEnc, spec.MediaTypeLayerZstdEnc,
		spec.MediaTypeLayerNonDistributableEnc, spec.MediaTypeLayerNonDistributableGzipEnc, spec.MediaTypeLayerNonDistributableZstdEnc,
		"application/vnd.oci.image.layer.nondistributable.v1.tar+zsdt+encrypted", // as ocicrypt before v1.3 spelled it
	}, mediaType)
}

// encryptLayer encrypts the layer that desc describes, read from r, into the
// file at path and returns its new descriptor. The bytes read must match desc.
// Key and nonce are fresh; kek wraps them under the name kid.
func encryptLayer(ctx context.Context, r io.Reader, desc ocispec.Descriptor, path, kid string, kek podvm.Secret, forms Packets) (ocispec.Descriptor, error) {
	mediaType, ok := encryptedType(desc.MediaType)
	if !ok {
		return desc, fmt.Errorf("media type %q cannot be encrypted", podvm.Printable(desc.MediaType, 128))
	}
	handler, err := blockcipher.NewLayerBlockCipherHandler()
	if err != nil {
		return desc, fmt.Errorf("setting up the layer cipher: %w", err)
	}
	plain := &meter{ctx: ctx, r: r, hash: sha256.New()}
	if desc.Digest.Algorithm() != digest.SHA256 {
		return desc, fmt.Errorf("digest %s: only sha256 is supported", desc.Digest)
	}
	ciphertext, finish, err := handler.Encrypt(plain, blockcipher.AES256CTR)
	if err != nil {
		return desc, fmt.Errorf("starting the layer cipher: %w", err)
	}
	sum, size, err := spool(ciphertext, path)
	if err != nil {
		return desc, err
	}
	if got := plain.digest(); got != desc.Digest || plain.n != desc.Size {
		return desc, fmt.Errorf("the blob has digest %s and %d bytes, the manifest says %s and %d", got, plain.n, desc.Digest, desc.Size)
	}
	opts, err := finish()
	if err != nil {
		return desc, fmt.Errorf("ending the layer cipher: %w", err)
	}
	defer clear(opts.Private.SymmetricKey)
	opts.Private.Digest = desc.Digest
	packets, err := wrap(&opts.Private, kid, kek, forms)
	if err != nil {
		return desc, fmt.Errorf("wrapping the layer key: %w", err)
	}
	public, err := json.Marshal(opts.Public)
	if err != nil {
		return desc, fmt.Errorf("encoding the public options: %w", err)
	}
	out := desc
	out.MediaType, out.Digest, out.Size = mediaType, sum, size
	out.URLs = nil // they lead to the plain blob
	out.Annotations = maps.Clone(desc.Annotations)
	if out.Annotations == nil {
		out.Annotations = map[string]string{}
	}
	out.Annotations[keysAnnotation] = packets
	out.Annotations[pubOptsAnnotation] = base64.StdEncoding.EncodeToString(public)
	return out, nil
}

// spool writes r to a new file at path and returns the digest and size of it.
func spool(r io.Reader, path string) (digest.Digest, int64, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", 0, fmt.Errorf("creating a temporary file: %w", err)
	}
	h := sha256.New()
	// The wrapper keeps CopyBuffer from choosing a small buffer of its own;
	// the cipher is 1.7 times as fast with this one.
	n, err := io.CopyBuffer(struct{ io.Writer }{io.MultiWriter(f, h)}, r, make([]byte, 256<<10))
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return "", 0, fmt.Errorf("encrypting into %s: %w", path, err)
	}
	return digest.NewDigest(digest.SHA256, h), n, nil
}

// meter counts and hashes what passes and stops when ctx is done.
type meter struct {
	ctx  context.Context
	r    io.Reader
	hash hash.Hash
	n    int64
}

func (m *meter) Read(p []byte) (int, error) {
	if err := m.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := m.r.Read(p)
	m.n += int64(n)
	_, _ = m.hash.Write(p[:n]) // a hash never fails
	return n, err
}

func (m *meter) digest() digest.Digest { return digest.NewDigest(digest.SHA256, m.hash) }

// fileLayer is an encrypted layer in a temporary file.
type fileLayer struct {
	desc ocispec.Descriptor
	path string
}

func (l fileLayer) Digest() (v1.Hash, error) { return v1.NewHash(l.desc.Digest.String()) }
func (l fileLayer) Size() (int64, error)     { return l.desc.Size, nil }
func (l fileLayer) MediaType() (types.MediaType, error) {
	return types.MediaType(l.desc.MediaType), nil
}
func (l fileLayer) Compressed() (io.ReadCloser, error) { return os.Open(l.path) }

func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// hexDigest is the SHA-256 of b in lower-case hex.
func hexDigest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
