// Package initializer builds the image of the storage initializer: the static
// guest binary, the certificates of public authorities, and nothing else.
//
// Data path: a platform engineer builds it once per release and puts it into a
// registry; KServe runs it as init container in every pod with a model.
//
// Trust: it runs on the builder's machine, on a binary it takes as it is. The
// same binary gives the same image, byte for byte, so that others can check it.
//
// Certificates come from a Go module, which go.sum fixes, and not from the machine
// that builds. They are a file, and not linked into the guest binary by the module's
// own means: no other applet needs them, parsing them would cost each its start, and
// a cluster can mount its own over the file.
package initializer

import (
	"archive/tar"
	"bytes"
	"debug/buildinfo"
	"debug/elf"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	"golang.org/x/crypto/x509roots/fallback/bundle"
)

// User is who the image runs as unless the pod says otherwise, as upstream's.
// Source: kserve python/storage-initializer.Dockerfile at aaac4e2.
const User = "1000"

const (
	command  = "github.com/sealpod/sealpod/cmd/sealpod"
	rootsAt  = "etc/ssl/certs/ca-certificates.crt"
	revision = "org.opencontainers.image.revision"
)

// ErrBinary says that a file is not the guest binary as an image needs it.
var ErrBinary = errors.New("not a static build of cmd/sealpod for Linux")

// architectures are those that the guest binary is built for.
var architectures = map[elf.Machine]string{elf.EM_X86_64: "amd64", elf.EM_AARCH64: "arm64"}

// Image makes the image with the guest binary in it. Errors: ErrBinary.
func Image(binary []byte) (v1.Image, error) {
	arch, err := architecture(binary)
	if err != nil {
		return nil, err
	}
	info, err := buildinfo.Read(bytes.NewReader(binary))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBinary, err)
	}
	if info.Path != command {
		return nil, fmt.Errorf("%w: it is a build of %q", ErrBinary, info.Path)
	}
	labels := map[string]string{
		"org.opencontainers.image.title":       "storage-initializer",
		"org.opencontainers.image.description": "Fetches models for KServe, decrypted and checked",
		"org.opencontainers.image.source":      "https://github.com/sealpod/sealpod",
	}
	created := time.Unix(0, 0).UTC()
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			labels[revision] = s.Value
		case "vcs.time":
			if t, err := time.Parse(time.RFC3339, s.Value); err == nil {
				created = t.UTC()
			}
		}
	}
	content, err := archive(binary)
	if err != nil {
		return nil, fmt.Errorf("making the layer: %w", err)
	}
	l, err := newLayer(content)
	if err != nil {
		return nil, fmt.Errorf("making the layer: %w", err)
	}
	img, err := mutate.Append(
		mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON),
		mutate.Addendum{
			Layer:   l,
			History: v1.History{Created: v1.Time{Time: created}, CreatedBy: "sealctl model image"},
		})
	if err != nil {
		return nil, fmt.Errorf("making the image: %w", err)
	}
	file, err := img.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("making the image: %w", err)
	}
	file = file.DeepCopy()
	file.OS, file.Architecture, file.Created = "linux", arch, v1.Time{Time: created}
	file.Config = v1.Config{
		User:       User,
		Entrypoint: []string{"/sealpod", "storage-initializer"},
		WorkingDir: "/",
		Labels:     labels,
	}
	img, err = mutate.ConfigFile(img, file)
	if err != nil {
		return nil, fmt.Errorf("making the image: %w", err)
	}
	return img, nil
}

// architecture finds out for which machine a binary is, and that it needs no
// other file.
func architecture(binary []byte) (string, error) {
	f, err := elf.NewFile(bytes.NewReader(binary))
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrBinary, err)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return "", fmt.Errorf("%w: it needs a dynamic linker: build it with CGO_ENABLED=0", ErrBinary)
		}
	}
	arch, ok := architectures[f.Machine]
	if !ok {
		return "", fmt.Errorf("%w: %s is no machine that pods run on", ErrBinary, f.Machine)
	}
	return arch, nil
}

// archive is the layer, as an uncompressed tar.
func archive(binary []byte) ([]byte, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, f := range []struct {
		name    string
		mode    int64
		content []byte
	}{
		{"etc/", 0o755, nil},
		{"etc/ssl/", 0o755, nil},
		{"etc/ssl/certs/", 0o755, nil},
		{rootsAt, 0o644, roots()},
		{"sealpod", 0o755, binary},
		{"tmp/", 0o1777, nil},
	} {
		h := &tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.content)), Typeflag: tar.TypeReg, ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR}
		if f.content == nil {
			h.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := io.Copy(w, bytes.NewReader(f.content)); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// layer is a compressed layer that knows what it was made of.
type layer struct {
	v1.Layer
	diffID v1.Hash
}

func (l layer) DiffID() (v1.Hash, error) { return l.diffID, nil }

// newLayer compresses an archive. The compressor is a module, which go.sum fixes:
// that of the standard library may change with the toolchain, and so would digests.
func newLayer(archive []byte) (v1.Layer, error) {
	diffID, _, err := v1.SHA256(bytes.NewReader(archive))
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	w, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if err == nil {
		_, err = w.Write(archive)
	}
	if err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return layer{static.NewLayer(out.Bytes(), types.OCILayer), diffID}, nil
}

// roots are the certificates of public authorities, in PEM. Those with conditions
// that a file cannot state are left out.
func roots() []byte {
	var out []byte
	for r := range bundle.Roots() {
		if r.Constraint == nil {
			out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.Certificate})...)
		}
	}
	return out
}
