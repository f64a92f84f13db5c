package registrytest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// Media types in use.
const (
	ManifestType = "application/vnd.oci.image.manifest.v1+json"
	IndexType    = "application/vnd.oci.image.index.v1+json"
	ConfigType   = "application/vnd.oci.image.config.v1+json"
	GzipType     = "application/vnd.oci.image.layer.v1.tar+gzip"
)

// Digest returns "sha256:<hex>" of b.
func Digest(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// Layer is one layer blob.
type Layer struct {
	Blob        []byte
	MediaType   string
	DiffID      string
	Annotations map[string]string
}

// Files makes a gzip layer. Names ending in / are directories; a content
// "-> x" makes a symbolic link to x.
func Files(tb testing.TB, files map[string]string) Layer {
	tb.Helper()
	var plain, packed bytes.Buffer
	w := tar.NewWriter(&plain)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		h := &tar.Header{Name: name, Mode: 0o644, Typeflag: tar.TypeReg, Size: int64(len(files[name]))}
		switch link, isLink := strings.CutPrefix(files[name], "-> "); {
		case strings.HasSuffix(name, "/"):
			h.Typeflag, h.Mode, h.Size = tar.TypeDir, 0o755, 0
			if mode := files[name]; mode != "" {
				var err error
				h.Mode, err = strconv.ParseInt(mode, 8, 64)
				must(tb, err)
			}
		case isLink:
			h.Typeflag, h.Linkname, h.Size = tar.TypeSymlink, link, 0
		}
		must(tb, w.WriteHeader(h))
		if h.Size > 0 {
			_, err := w.Write([]byte(files[name]))
			must(tb, err)
		}
	}
	must(tb, w.Close())
	z, err := gzip.NewWriterLevel(&packed, gzip.BestSpeed)
	must(tb, err)
	_, err = z.Write(plain.Bytes())
	must(tb, err)
	must(tb, z.Close())
	return Layer{Blob: packed.Bytes(), MediaType: GzipType, DiffID: Digest(plain.Bytes())}
}

// Object is JSON to be.
type Object = map[string]any

// Descriptor describes b.
func Descriptor(mediaType string, b []byte) Object {
	return Object{"mediaType": mediaType, "digest": Digest(b), "size": len(b)}
}

// Image is what Push pushes, open to changes before that.
type Image struct {
	Config   Object
	Manifest Object // without config and layers, which Push fills in unless present
	Layers   []Layer
}

// NewImage returns an image for Linux on this machine.
func NewImage(layers ...Layer) *Image {
	diffIDs := []string{}
	for _, l := range layers {
		diffIDs = append(diffIDs, l.DiffID)
	}
	return &Image{
		Layers: layers,
		Config: Object{
			"os": "linux", "architecture": runtime.GOARCH,
			"config": Object{"Env": []string{"PATH=/bin"}, "Entrypoint": []string{"/bin/sh"}, "Cmd": []string{"-c", "true"}},
			"rootfs": Object{"type": "layers", "diff_ids": diffIDs},
		},
		Manifest: Object{"schemaVersion": 2, "mediaType": ManifestType},
	}
}

// Push stores the image as repo:tag and returns the manifest's digest.
func (s *Server) Push(tb testing.TB, repo, tag string, img *Image) string {
	tb.Helper()
	return s.PutManifest(tb, repo, tag, ManifestType, s.push(tb, repo, img))
}

func (s *Server) push(tb testing.TB, repo string, img *Image) []byte {
	tb.Helper()
	conf := JSON(tb, img.Config)
	s.PutBlob(tb, repo, conf)
	if img.Manifest["config"] == nil {
		img.Manifest["config"] = Descriptor(ConfigType, conf)
	}
	layers := []Object{}
	for _, l := range img.Layers {
		s.PutBlob(tb, repo, l.Blob)
		d := Descriptor(l.MediaType, l.Blob)
		if l.Annotations != nil {
			d["annotations"] = l.Annotations
		}
		layers = append(layers, d)
	}
	if img.Manifest["layers"] == nil {
		img.Manifest["layers"] = layers
	}
	return JSON(tb, img.Manifest)
}

// PushIndex stores an index of one entry per platform "os/arch[/variant]", all
// for images of their own, and returns the digests of index and entries.
func (s *Server) PushIndex(tb testing.TB, repo, tag string, platforms []string, images []*Image) (index string, entries []string) {
	tb.Helper()
	list := []Object{}
	for i, p := range platforms {
		m := s.push(tb, repo, images[i])
		entries = append(entries, s.PutManifest(tb, repo, fmt.Sprintf("%s-%d", tag, i), ManifestType, m))
		d := Descriptor(ManifestType, m)
		parts := append(strings.Split(p, "/"), "")
		d["platform"] = Object{"os": parts[0], "architecture": parts[1], "variant": parts[2]}
		list = append(list, d)
	}
	raw := JSON(tb, Object{"schemaVersion": 2, "mediaType": IndexType, "manifests": list})
	return s.PutManifest(tb, repo, tag, IndexType, raw), entries
}

// JSON encodes v.
func JSON(tb testing.TB, v any) []byte {
	tb.Helper()
	b, err := json.Marshal(v)
	must(tb, err)
	return b
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}
