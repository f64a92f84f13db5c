package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containers/ocicrypt/blockcipher"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestUnprivileged runs all other tests again as an ordinary user.
func TestUnprivileged(t *testing.T) { testenv.RerunUnprivileged(t) }

// onceIsEnough is for slow tests to which privilege makes no difference.
func onceIsEnough(t testing.TB) {
	t.Helper()
	if testenv.Unprivileged() {
		t.Skip("has run as root")
	}
}

// mount mounts a file system for the length of the test.
func mount(t testing.TB, fstype, target, opts string) {
	t.Helper()
	testenv.Root(t)
	if err := unix.Mount(fstype, target, fstype, 0, opts); err != nil {
		testenv.Missing(t, fmt.Sprintf("needs to mount %s: %v", fstype, err))
	}
	t.Cleanup(func() { must(t, unix.Unmount(target, 0)) })
}

// tarOf makes a tar of regular files, name and content in turn.
func tarOf(t testing.TB, pairs ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := 0; i < len(pairs); i += 2 {
		must(t, w.WriteHeader(&tar.Header{Name: pairs[i], Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(pairs[i+1]))}))
		_, err := w.Write([]byte(pairs[i+1]))
		must(t, err)
	}
	must(t, w.Close())
	return b.Bytes()
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// noise is n bytes that hardly compress and are the same each time.
func noise(n int) string {
	b := make([]byte, n)
	x := uint32(1)
	for i := range b {
		x = x*1664525 + 1013904223
		b[i] = byte(x >> 24)
	}
	return string(b)
}

func gz(t testing.TB, raw []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, err := w.Write(raw)
	must(t, errors.Join(err, w.Close()))
	return b.Bytes()
}

func zst(t testing.TB, raw []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	must(t, err)
	return w.EncodeAll(raw, nil)
}

const oci = "application/vnd.oci.image.layer.v1.tar"

// sample is a layer with all that belongs to it.
type sample struct {
	blob []byte
	spec Spec
	key  *Key // nil for a plain layer
}

func plainLayer(mediaType string, blob, tar []byte) sample {
	return sample{blob: blob, spec: Spec{
		MediaType: mediaType, Digest: digest.FromBytes(blob).String(), Size: int64(len(blob)), DiffID: digest.FromBytes(tar).String(),
	}}
}

// private is the private options JSON of an encrypted layer.
type private struct {
	SymKey  []byte            `json:"symkey"`
	Digest  string            `json:"digest"`
	Options map[string][]byte `json:"cipheroptions"`
}

// seal encrypts a layer the way skopeo does.
func seal(t testing.TB, s sample) (sample, private) {
	t.Helper()
	h, err := blockcipher.NewLayerBlockCipherHandler()
	must(t, err)
	r, finish, err := h.Encrypt(bytes.NewReader(s.blob), blockcipher.AES256CTR)
	must(t, err)
	blob, err := io.ReadAll(r)
	must(t, err)
	opts, err := finish()
	must(t, err)
	p := private{opts.Private.SymmetricKey, s.spec.Digest, opts.Private.CipherOptions}
	pub, err := json.Marshal(opts.Public)
	must(t, err)
	raw, err := json.Marshal(p)
	must(t, err)
	out := plainLayer(s.spec.MediaType+"+encrypted", blob, nil)
	out.spec.DiffID = s.spec.DiffID
	out.spec.Annotations = map[string]string{
		pubOptsAnnotation:                    base64.StdEncoding.EncodeToString(pub),
		providerPrefix + "attestation-agent": base64.StdEncoding.EncodeToString(raw),
	}
	out.key, err = UnwrapKey(t.Context(), out.spec, Unwrappers{Provider: unwrapper(bare)})
	must(t, err)
	return out, p
}

type unwrapper func(packet []byte) (podvm.Secret, error)

func (u unwrapper) UnwrapKey(_ context.Context, packet []byte) (podvm.Secret, error) {
	return u(packet)
}

// bare takes packets that are not wrapped at all.
func bare(packet []byte) (podvm.Secret, error) { return podvm.Secret(bytes.Clone(packet)), nil }

func apply(t testing.TB, s sample) (map[string]string, Stats, error) {
	t.Helper()
	dir := t.TempDir()
	st, err := Apply(t.Context(), bytes.NewReader(s.blob), s.spec, s.key, dir, Options{Mode: Plain})
	return files(t, dir), st, err
}

// files maps the regular files below dir to their content, cut to 20 bytes.
func files(t testing.TB, dir string) map[string]string {
	t.Helper()
	m := map[string]string{}
	must(t, filepath.Walk(dir, func(p string, fi os.FileInfo, err error) error {
		if err != nil || !fi.Mode().IsRegular() {
			return err
		}
		b, err := os.ReadFile(p)
		m[strings.TrimPrefix(p, dir+"/")] = string(b[:min(len(b), 20)])
		return err
	}))
	return m
}

func (s sample) with(change func(*sample)) sample {
	s.blob = bytes.Clone(s.blob)
	s.spec.Annotations = maps.Clone(s.spec.Annotations)
	if s.key != nil {
		k := *s.key
		k.symKey, k.nonce, k.hmac = bytes.Clone(k.symKey), bytes.Clone(k.nonce), bytes.Clone(k.hmac)
		s.key = &k
	}
	change(&s)
	return s
}

// redigest gives the blob a descriptor that fits, as an attacker who controls
// the registry and an unsigned manifest would.
func (s *sample) redigest() {
	s.spec.Digest, s.spec.Size = digest.FromBytes(s.blob).String(), int64(len(s.blob))
}

func concat(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

func name(format string, args ...any) string { return fmt.Sprintf(format, args...) }
