package demo

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/sealpod/sealpod/imageseal"
)

// The images of BenchmarkPullImages. Their layers are made once, as files in the
// registry's own directory, so that nobody ever holds one in memory.

// fileLayer is a layer whose blob is in the registry, with its plain tar beside.
type fileLayer struct {
	digest, diffID v1.Hash
	mediaType      types.MediaType
	size           int64
	blob, tar      string // paths
}

// These make it a v1.Layer; the blob is never asked for.
func (l *fileLayer) Digest() (v1.Hash, error)             { return l.digest, nil }
func (l *fileLayer) DiffID() (v1.Hash, error)             { return l.diffID, nil }
func (l *fileLayer) Compressed() (io.ReadCloser, error)   { return os.Open(l.blob) }
func (l *fileLayer) Uncompressed() (io.ReadCloser, error) { return os.Open(l.tar) }
func (l *fileLayer) Size() (int64, error)                 { return l.size, nil }
func (l *fileLayer) MediaType() (types.MediaType, error)  { return l.mediaType, nil }
func (l *fileLayer) compressor(w io.Writer) (io.WriteCloser, error) {
	if l.mediaType == types.OCILayerZStd {
		return zstd.NewWriter(w)
	}
	return gzip.NewWriter(w), nil
}

// quickBlobs answers from a file's size; the handler it wraps hashes the whole
// blob before each answer, which no other registry does.
type quickBlobs struct {
	registry.BlobHandler
	dir string
}

func (q quickBlobs) Stat(_ context.Context, _ string, h v1.Hash) (int64, error) {
	fi, err := os.Stat(filepath.Join(q.dir, h.Algorithm, h.Hex))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, registry.ErrNotFound
	}
	if err != nil {
		return 0, err
	}
	return fi.Size(), nil
}

func (q quickBlobs) Put(ctx context.Context, repo string, h v1.Hash, r io.ReadCloser) error {
	return q.BlobHandler.(registry.BlobPutHandler).Put(ctx, repo, h, r)
}

// quickRegistry replaces the handler of w's registry, which is still unused, and
// returns the directory of its blobs.
func quickRegistry(b *testing.B, w *world) (blobs string) {
	b.Helper()
	dir := filepath.Join(w.dir, "registry")
	blobs = filepath.Join(dir, "sha256")
	must(b, os.MkdirAll(blobs, 0o700))
	w.reg.Handler = registry.New(registry.Logger(log.New(io.Discard, "", 0)),
		registry.WithBlobHandler(quickBlobs{registry.NewDiskBlobHandler(dir), dir}))
	return blobs
}

// errEnough ends what fills a tar.
var errEnough = errors.New("enough")

// makeLayer has fill write a tar until enough compressed bytes came of it, or to
// its own end.
func makeLayer(b *testing.B, blobs string, mediaType types.MediaType, enough int64, fill func(tw *tar.Writer, full func() bool) error) *fileLayer {
	b.Helper()
	l := &fileLayer{mediaType: mediaType}
	plain, err := os.CreateTemp(filepath.Dir(blobs), "tar-")
	must(b, err)
	defer plain.Close()
	packed, err := os.CreateTemp(filepath.Dir(blobs), "blob-")
	must(b, err)
	defer packed.Close()
	blobHash, tarHash := sha256.New(), sha256.New()
	counted := &counter{w: io.MultiWriter(packed, blobHash)}
	zw, err := l.compressor(counted)
	must(b, err)
	buffered := bufio.NewWriterSize(io.MultiWriter(plain, tarHash, zw), 1<<20)
	tw := tar.NewWriter(buffered)
	if err := fill(tw, func() bool { return counted.n >= enough }); !errors.Is(err, errEnough) {
		must(b, err)
	}
	must(b, errors.Join(tw.Close(), buffered.Flush(), zw.Close()))
	l.size, l.tar = counted.n, plain.Name()
	l.digest = v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(blobHash.Sum(nil))}
	l.diffID = v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(tarHash.Sum(nil))}
	l.blob = filepath.Join(blobs, l.digest.Hex)
	must(b, os.Rename(packed.Name(), l.blob))
	return l
}

// goTree fills a tar with the Go installation, again and again, each time from
// another directory and with every 32 KiB of a file stamped with the number of
// the pass. It depends on nothing but the version of Go.
func goTree(goroot string, pass uint32) func(*tar.Writer, func() bool) error {
	return func(tw *tar.Writer, full func() bool) error {
		// As builders do, all directories are described.
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "opt/", Mode: 0o755}); err != nil {
			return err
		}
		for ; ; pass++ {
			if err := filepath.WalkDir(goroot, func(path string, d fs.DirEntry, err error) error {
				switch {
				case err != nil || d.Type()&^fs.ModeDir != 0:
					return err
				case full():
					return errEnough
				}
				fi, err := d.Info()
				if err != nil {
					return err
				}
				h := &tar.Header{
					Typeflag: tar.TypeReg, Mode: int64(fi.Mode().Perm()), Size: fi.Size(), Format: tar.FormatPAX,
					Name: fmt.Sprintf("opt/go%d%s", pass, strings.TrimPrefix(path, goroot)),
				}
				if d.IsDir() {
					h.Typeflag, h.Size, h.Name = tar.TypeDir, 0, h.Name+"/"
					return tw.WriteHeader(h)
				}
				body, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				for off := 0; off+8 <= len(body); off += 32 << 10 {
					binary.LittleEndian.PutUint32(body[off:], pass*2654435761)
				}
				if err := tw.WriteHeader(h); err != nil {
					return err
				}
				_, err = tw.Write(body)
				return err
			}); err != nil {
				return err
			}
		}
	}
}

// smallFiles fills a tar with that many files of up to 4 KiB of Go source, 20 in
// a directory.
func smallFiles(goroot string, files int) func(*tar.Writer, func() bool) error {
	return func(tw *tar.Writer, _ func() bool) error {
		paths, err := filepath.Glob(filepath.Join(goroot, "src/net/http/*.go"))
		if err != nil {
			return err
		}
		var text bytes.Buffer
		for _, p := range paths {
			raw, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			text.Write(raw)
		}
		last := ""
		for i := range files {
			dir := fmt.Sprintf("d%d/e%d/", i/400, i/20)
			if dir != last {
				for _, d := range []string{fmt.Sprintf("d%d/", i/400), dir} {
					if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: d, Mode: 0o755}); err != nil {
						return err
					}
				}
				last = dir
			}
			size := i * 7 % 4097
			if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("%sfile-%d", dir, i), Mode: 0o644, Size: int64(size)}); err != nil {
				return err
			}
			off := i * 1013 % (text.Len() - size)
			if _, err := tw.Write(text.Bytes()[off : off+size]); err != nil {
				return err
			}
		}
		return nil
	}
}

// goRoot is where the Go installation is.
func goRoot(b *testing.B) string {
	b.Helper()
	out, err := exec.CommandContext(b.Context(), "go", "env", "GOROOT").Output()
	must(b, err)
	return strings.TrimSpace(string(out))
}

// sealCopy encrypts all layers of the image at ref and pushes the result as
// repo. It goes through an OCI layout, since the registry keeps uploads in memory
// and a layout's blobs can be moved to where the registry's are.
func sealCopy(b *testing.B, w *world, blobs, ref, repo string) string {
	b.Helper()
	dir := filepath.Join(w.dir, "sealed-"+repo)
	defer os.RemoveAll(dir)
	res, err := imageseal.Encrypt(b.Context(), imageseal.EncryptOptions{
		Source: ref, Destination: "oci:" + dir + ":1", KeyID: "kbs:///" + kekPath,
		StoreKey: func(ctx context.Context, k imageseal.Key) error { return w.admin.SetResource(ctx, kekPath, k.KEK) },
	})
	for _, k := range res.Keys {
		k.KEK.Wipe()
	}
	must(b, err)
	index, err := layout.ImageIndexFromPath(dir)
	must(b, err)
	digest, err := v1.NewHash(res.Digest)
	must(b, err)
	img, err := index.Image(digest)
	must(b, err)
	layers, err := img.Layers()
	must(b, err)
	for _, l := range layers {
		d, err := l.Digest()
		must(b, err)
		must(b, os.Link(filepath.Join(dir, "blobs/sha256", d.Hex), filepath.Join(blobs, d.Hex)))
	}
	return push(b, w, repo, img)
}

func must(b *testing.B, err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}
