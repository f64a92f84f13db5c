package imageseal

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/sealpod/sealpod/kbs"
	"github.com/sealpod/sealpod/podvm"
)

// ErrEncrypted says that a layer chosen for encryption is encrypted already.
var ErrEncrypted = errors.New("already encrypted")

// EncryptOptions says what Encrypt does. Source, Destination and KeyID are
// mandatory.
type EncryptOptions struct {
	// Source and Destination are registry references or "oci:DIR[:TAG]". They
	// may be the same.
	Source, Destination string
	Access              Access
	// Layers are the positions of the layers to encrypt, 0 the base, -1 the
	// top. None means all of them. They apply to every image of an index.
	Layers []int
	// Platforms keeps only these images of an index, as os/arch[/variant]; the
	// others are left out of the destination. None means all of them.
	Platforms []string
	// KeyID is the resource the key-encryption key will be, as
	// kbs:///repository/type/tag. With KeyPerLayer it is the stem of several.
	KeyID string
	// KEK is the key-encryption key, 32 bytes; nil makes a fresh one. The
	// caller keeps ownership.
	KEK podvm.Secret
	// KeyPerLayer makes a fresh key for every layer; "-N" is appended to KeyID
	// for the N-th encrypted layer of all, from 0. KEK must be nil.
	KeyPerLayer bool
	// Packets is the form of the key packets; the zero value is PacketsV2.
	Packets Packets
	// StoreKey, if set, is given every key before anything is published, so
	// that no image exists whose key is lost. It must not keep the slice.
	StoreKey func(ctx context.Context, key Key) error
	// Progress, if set, is told of each layer before it is encrypted.
	Progress func(Step)
	// TempDir holds the encrypted layers until they are written; "" is the
	// system's. Space: the size of the layers chosen.
	TempDir string
}

// Key is a key-encryption key and the resource it must become.
type Key struct {
	ID  string       // kbs:///repository/type/tag
	KEK podvm.Secret // 32 bytes
}

// Step is one layer about to be encrypted.
type Step struct {
	Platform      string // "linux/amd64", "" when the source is not an index
	Layer, Layers int    // position and number of layers of the image
	SizeBytes     int64
}

// EncryptResult is what Encrypt made.
type EncryptResult struct {
	Digest    string `json:"digest"` // of what the destination now names
	MediaType string `json:"mediaType"`
	Encrypted int    `json:"encryptedLayers"`
	// Keys are the keys in order. The caller wipes them.
	Keys []Key `json:"-"`
}

// Encrypt copies an image from Source to Destination with layers encrypted.
// Docker manifests become OCI ones. An attestation attached to an image of an
// index (as BuildKit makes) is left out: it describes the plain image.
//
// Errors: ErrReference, ErrNotFound, ErrEncrypted, kbs.ErrURI, those of
// StoreKey. On an error nothing was written under the destination's tag.
func Encrypt(ctx context.Context, o EncryptOptions) (EncryptResult, error) {
	job, err := newEncryption(o)
	if err != nil {
		return EncryptResult{}, err
	}
	src, err := parsePlace(o.Source, o.Access)
	if err != nil {
		return EncryptResult{}, err
	}
	dst, err := parsePlace(o.Destination, o.Access)
	if err != nil {
		return EncryptResult{}, err
	}
	if job.dir, err = os.MkdirTemp(o.TempDir, "sealctl-encrypt-"); err != nil {
		return EncryptResult{}, fmt.Errorf("creating a temporary directory: %w", err)
	}
	res, err := job.run(ctx, src, dst)
	if rmErr := os.RemoveAll(job.dir); rmErr != nil {
		err = errors.Join(err, fmt.Errorf("removing temporary files: %w", rmErr))
	}
	if err != nil {
		for _, k := range job.keys {
			k.KEK.Wipe()
		}
		return EncryptResult{}, fmt.Errorf("encrypting %s: %w", o.Source, err)
	}
	return res, nil
}

// encryption is one run of Encrypt.
type encryption struct {
	EncryptOptions
	kid  string // canonical
	dir  string // temporary files
	keys []Key
	n    int // layers encrypted so far
}

func newEncryption(o EncryptOptions) (*encryption, error) {
	uri, err := kbs.ParseURI(o.KeyID)
	if err != nil {
		return nil, fmt.Errorf("reading the key id: %w", err)
	}
	parts := strings.Split(uri.Path(), "/")
	if uri.Plugin() != kbs.DefaultPlugin || len(parts) != 3 || slices.Contains(parts, "") || uri.Query() != "" {
		return nil, fmt.Errorf("key id %q: want kbs:///repository/type/tag: %w", o.KeyID, kbs.ErrURI)
	}
	if o.KEK != nil && o.KeyPerLayer {
		return nil, errors.New("a given key cannot be a key per layer")
	}
	if o.KEK != nil && len(o.KEK) != kekSize {
		return nil, fmt.Errorf("the key-encryption key has %d bytes, want %d", len(o.KEK), kekSize)
	}
	return &encryption{EncryptOptions: o, kid: uri.String()}, nil
}

func (e *encryption) run(ctx context.Context, src, dst place) (EncryptResult, error) {
	in, err := src.open(ctx)
	if err != nil {
		return EncryptResult{}, err
	}
	var out entity
	if in.index != nil {
		out, err = e.encryptIndex(ctx, in.index)
	} else {
		if len(e.Platforms) > 0 {
			return EncryptResult{}, errors.New("a platform was chosen, but the image is not an index")
		}
		var img v1.Image
		img, err = e.encryptImage(ctx, in.image, "")
		out = entity{image: img}
	}
	if err != nil {
		return EncryptResult{}, err
	}
	if e.StoreKey != nil {
		for _, k := range e.keys {
			if err := e.StoreKey(ctx, k); err != nil {
				return EncryptResult{}, fmt.Errorf("storing the key %s: %w", k.ID, err)
			}
		}
	}
	if err := dst.write(ctx, out); err != nil {
		return EncryptResult{}, err
	}
	digest, err := out.digest()
	if err != nil {
		return EncryptResult{}, fmt.Errorf("naming the result: %w", err)
	}
	mediaType, err := out.mediaType()
	if err != nil {
		return EncryptResult{}, fmt.Errorf("naming the result: %w", err)
	}
	return EncryptResult{Digest: digest.String(), MediaType: string(mediaType), Encrypted: e.n, Keys: e.keys}, nil
}

// nextKey returns the key for the next layer.
func (e *encryption) nextKey() Key {
	if len(e.keys) > 0 && !e.KeyPerLayer {
		return e.keys[0]
	}
	k := Key{ID: e.kid, KEK: make(podvm.Secret, kekSize)}
	if e.KeyPerLayer {
		k.ID = fmt.Sprintf("%s-%d", e.kid, len(e.keys))
	}
	if e.KEK != nil {
		copy(k.KEK, e.KEK)
	} else {
		_, _ = rand.Read(k.KEK) // never fails: crypto/rand ends the program instead
	}
	e.keys = append(e.keys, k)
	return k
}
