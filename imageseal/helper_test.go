package imageseal

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"math/rand/v2"
	"os/exec"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"

	"github.com/sealpod/sealpod/podvm/testenv"
)

// tarball returns a tar archive with one file of random bytes.
func tarball(t testing.TB, name string, size int) []byte {
	t.Helper()
	body := make([]byte, size)
	r := rand.NewChaCha8([32]byte{byte(size)})
	_, _ = r.Read(body)
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(size), Typeflag: tar.TypeReg}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(body); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// testLayer is a layer of any media type whose diffID is right.
type testLayer struct {
	v1.Layer
	diffID v1.Hash
}

func (l testLayer) DiffID() (v1.Hash, error) { return l.diffID, nil }

func newLayer(t testing.TB, mediaType string, plain []byte) v1.Layer {
	t.Helper()
	diffID, _, err := v1.SHA256(bytes.NewReader(plain))
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	var w io.WriteCloser
	switch {
	case bytes.HasSuffix([]byte(mediaType), []byte("gzip")):
		w = gzip.NewWriter(&b)
	case bytes.HasSuffix([]byte(mediaType), []byte("zstd")):
		if w, err = zstd.NewWriter(&b); err != nil {
			t.Fatal(err)
		}
	default:
		return testLayer{static.NewLayer(plain, types.MediaType(mediaType)), diffID}
	}
	if _, err := w.Write(plain); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return testLayer{static.NewLayer(b.Bytes(), types.MediaType(mediaType)), diffID}
}

// newImage returns an image with one layer per media type.
func newImage(t testing.TB, manifestType types.MediaType, arch string, mediaTypes ...string) v1.Image {
	t.Helper()
	img := mutate.MediaType(empty.Image, manifestType)
	if manifestType == types.OCIManifestSchema1 {
		img = mutate.ConfigMediaType(img, types.OCIConfigJSON)
	}
	for i, mt := range mediaTypes {
		var err error
		img, err = mutate.Append(img, mutate.Addendum{
			Layer: newLayer(t, mt, tarball(t, fmt.Sprintf("%s-%d", arch, i), 3000+700*i)), MediaType: types.MediaType(mt),
			Annotations: map[string]string{"org.example.layer": fmt.Sprint(i)},
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	cf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cf = cf.DeepCopy()
	cf.OS, cf.Architecture = "linux", arch
	cf.Config.Env = []string{"PATH=/bin"}
	if img, err = mutate.ConfigFile(img, cf); err != nil {
		t.Fatal(err)
	}
	return img
}

// newIndex returns an index with an image per architecture and an attestation.
func newIndex(t testing.TB, archs ...string) v1.ImageIndex {
	t.Helper()
	idx := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, arch := range append(archs, "unknown") {
		os := "linux"
		if arch == "unknown" {
			os = "unknown"
		}
		idx = mutate.AppendManifests(idx, mutate.IndexAddendum{
			Add:        newImage(t, types.OCIManifestSchema1, arch, string(types.OCILayer), string(types.OCILayer)),
			Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: os, Architecture: arch}},
		})
	}
	annotated, ok := mutate.Annotations(idx, map[string]string{"org.example.index": "kept"}).(v1.ImageIndex)
	if !ok {
		t.Fatal("annotating the index")
	}
	return annotated
}

func push(t testing.TB, ref string, img v1.Image) {
	t.Helper()
	if err := remote.Write(mustRef(t, ref), img); err != nil {
		t.Fatal(err)
	}
}

func mustRef(t testing.TB, ref string) name.Reference {
	t.Helper()
	r, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// opened returns the image or index at ref.
func opened(t testing.TB, ref string) entity {
	t.Helper()
	p, err := parsePlace(ref, Access{})
	if err != nil {
		t.Fatal(err)
	}
	e, err := p.open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// run runs a program and returns what it printed.
func run(t *testing.T, program string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), testenv.Tool(t, program), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", program, args, err, out)
	}
	return string(out)
}
