package demo

import (
	"archive/tar"
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"runtime"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// file is one entry of the demo image.
type file struct {
	name string
	body []byte
	link string // a hard link to this name instead of a body
	mode int64
}

// weightsPath is where the image keeps what nobody but the pod may read.
const weightsPath = "model/weights.bin"

// newImage returns an image of three layers: a public base, and two worth
// encrypting. Base and weights are different each time, so that no layer of an
// image is in a pod's store before it is pulled.
func newImage() (v1.Image, []byte, error) {
	weights := make([]byte, 4<<20)
	_, _ = rand.Read(weights) // never fails
	build := []byte(rand.Text() + "\n")
	layers := [][]file{
		{
			{name: "etc/os-release", body: []byte("NAME=\"Sealpod demo\"\nID=sealpod\n"), mode: 0o644},
			{name: "etc/build-id", body: build, mode: 0o644},
			{name: "etc/os-release.copy", link: "etc/os-release"},
			{name: "tmp/build-leftover", body: []byte("removed by a later layer\n"), mode: 0o600},
		},
		{{name: weightsPath, body: weights, mode: 0o400}},
		{
			{name: "app/serve", body: []byte("#!/bin/sh\necho serving\n"), mode: 0o755},
			{name: "tmp/.wh.build-leftover"},
		},
	}
	img := mutate.MediaType(mutate.ConfigMediaType(empty.Image, types.OCIConfigJSON), types.OCIManifestSchema1)
	for i, files := range layers {
		raw, err := archive(files)
		if err != nil {
			return nil, nil, fmt.Errorf("building layer %d: %w", i, err)
		}
		open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(raw)), nil }
		layer, err := tarball.LayerFromOpener(open, tarball.WithMediaType(types.OCILayer))
		if err != nil {
			return nil, nil, fmt.Errorf("building layer %d: %w", i, err)
		}
		if img, err = mutate.AppendLayers(img, layer); err != nil {
			return nil, nil, fmt.Errorf("adding layer %d: %w", i, err)
		}
	}
	cf, err := img.ConfigFile()
	if err != nil {
		return nil, nil, fmt.Errorf("reading the config: %w", err)
	}
	cf = cf.DeepCopy()
	platform := v1.Platform{OS: "linux", Architecture: runtime.GOARCH}
	cf.OS, cf.Architecture = platform.OS, platform.Architecture
	cf.Config.Entrypoint = []string{"/app/serve"}
	cf.Config.Env = []string{"PATH=/usr/bin:/bin", "MODEL=/" + weightsPath}
	if img, err = mutate.ConfigFile(img, cf); err != nil {
		return nil, nil, fmt.Errorf("writing the config: %w", err)
	}
	return img, weights, nil
}

func archive(files []file) ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range files {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: f.name, Mode: f.mode, Size: int64(len(f.body)), ModTime: time.Unix(1700000000, 0)}
		if f.link != "" {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, f.link, 0
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.body); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}
