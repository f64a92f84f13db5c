package imageseal

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/sealpod/sealpod/imagepull/registry/registrytest"
	"github.com/sealpod/sealpod/kbs"
)

const (
	dockerGzip = "application/vnd.docker.image.rootfs.diff.tar.gzip"
	ociTar     = "application/vnd.oci.image.layer.v1.tar"
	testKID    = "kbs:///default/image-kek/app"
)

func TestEncryptEveryMediaType(t *testing.T) {
	want := map[string]string{
		ociTar:           ociTar + "+encrypted",
		ociTar + "+gzip": ociTar + "+gzip+encrypted",
		ociTar + "+zstd": ociTar + "+zstd+encrypted",
		"application/vnd.docker.image.rootfs.diff.tar": ociTar + "+encrypted",
		dockerGzip: ociTar + "+gzip+encrypted",
		"application/vnd.docker.image.rootfs.diff.tar.zstd": ociTar + "+zstd+encrypted",
		nonDistributable:           nonDistributable + "+encrypted",
		nonDistributable + "+gzip": nonDistributable + "+gzip+encrypted",
		nonDistributable + "+zstd": nonDistributable + "+zstd+encrypted",
	}
	src := newImage(t, types.OCIManifestSchema1, "amd64", sorted(want)...)
	dir := t.TempDir()
	if err := (layoutPlace{dir: dir, tag: "plain"}).write(t.Context(), entity{image: src}); err != nil {
		t.Fatal(err)
	}
	res, err := Encrypt(t.Context(), EncryptOptions{Source: "oci:" + dir + ":plain", Destination: "oci:" + dir + ":sealed", KeyID: testKID})
	if err != nil {
		t.Fatal(err)
	}
	got := opened(t, "oci:"+dir+":sealed")
	checkSealed(t, src, got.image, res.Keys, all)
	m, err := got.image.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	for i, plain := range sorted(want) {
		if string(m.Layers[i].MediaType) != want[plain] {
			t.Errorf("%s became %s", plain, m.Layers[i].MediaType)
		}
	}
	if d, err := got.digest(); err != nil || d.String() != res.Digest || res.Encrypted != len(want) {
		t.Errorf("%+v, %v, %v", res, d, err)
	}
}

func TestEncryptInRegistry(t *testing.T) {
	reg := registrytest.Debian(t)
	src := newImage(t, types.DockerManifestSchema2, "amd64", dockerGzip, dockerGzip, dockerGzip)
	push(t, reg+"/acme/app:1", src)
	tests := map[string]struct {
		options EncryptOptions
		chosen  func(int) bool
		keys    []string
		packets int
	}{
		"all layers, one key":   {EncryptOptions{}, all, []string{testKID}, 1},
		"a key per layer":       {EncryptOptions{KeyPerLayer: true}, all, []string{testKID + "-0", testKID + "-1", testKID + "-2"}, 1},
		"the top layer":         {EncryptOptions{Layers: []int{-1}}, func(i int) bool { return i == 2 }, []string{testKID}, 1},
		"two layers, once each": {EncryptOptions{Layers: []int{0, 2, -3}, KeyPerLayer: true}, func(i int) bool { return i != 1 }, []string{testKID + "-0", testKID + "-1"}, 1},
		"old packets":           {EncryptOptions{Packets: PacketsV1}, all, []string{testKID}, 1},
		"both packets":          {EncryptOptions{Packets: PacketsBoth}, all, []string{testKID}, 2},
		"a given key":           {EncryptOptions{KEK: bytes.Repeat([]byte{7}, 32)}, all, []string{testKID}, 1},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			o := tt.options
			dst := reg + "/acme/app:" + strings.NewReplacer(" ", "-", ",", "").Replace(name)
			o.Source, o.Destination, o.KeyID = reg+"/acme/app:1", "docker://"+dst, testKID
			var stored []string
			o.StoreKey = func(_ context.Context, k Key) error {
				stored = append(stored, k.ID)
				if _, err := remote.Head(mustRef(t, dst)); err == nil {
					t.Error("published before the key was stored")
				}
				return nil
			}
			var steps int
			o.Progress = func(Step) { steps++ }
			res, err := Encrypt(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.keys, stored); d != "" || steps != res.Encrypted {
				t.Errorf("keys %s, %d steps", d, steps)
			}
			got := opened(t, dst)
			checkSealed(t, src, got.image, res.Keys, tt.chosen)
			m, err := got.image.Manifest()
			if err != nil {
				t.Fatal(err)
			}
			for i, l := range m.Layers {
				if !tt.chosen(i) {
					continue
				}
				if n := strings.Count(l.Annotations[keysAnnotation], ",") + 1; n != tt.packets {
					t.Errorf("layer %d has %d packets", i, n)
				}
				for n := range tt.packets {
					if kid, _ := unwrapped(t, l.Annotations, n, res.Keys); kid == "" {
						t.Errorf("layer %d packet %d", i, n)
					}
				}
			}
			if o.KEK != nil && !bytes.Equal(res.Keys[0].KEK, o.KEK) {
				t.Error("another key than the given one")
			}
		})
	}
}

// No two layers share a key or nonce, and no two packets an iv: CTR and GCM
// both fall apart otherwise.
func TestEncryptNeverRepeatsKeyNonceOrIV(t *testing.T) {
	dir := t.TempDir()
	if err := (layoutPlace{dir: dir, tag: "plain"}).write(t.Context(), entity{index: newIndex(t, "amd64", "arm64")}); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	fresh := func(what string, b []byte) {
		if seen[what+string(b)] {
			t.Errorf("%s repeats", what)
		}
		seen[what+string(b)] = true
	}
	for range 2 {
		res, err := Encrypt(t.Context(), EncryptOptions{Source: "oci:" + dir + ":plain", Destination: "oci:" + dir + ":sealed", KeyID: testKID, Packets: PacketsBoth})
		if err != nil {
			t.Fatal(err)
		}
		fresh("KEK", res.Keys[0].KEK)
		m, err := opened(t, "oci:"+dir+":sealed").index.IndexManifest()
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range m.Manifests {
			img, err := opened(t, "oci:"+dir+":sealed").index.Image(d.Digest)
			if err != nil {
				t.Fatal(err)
			}
			im, err := img.Manifest()
			if err != nil {
				t.Fatal(err)
			}
			for _, l := range im.Layers {
				_, private := unwrapped(t, l.Annotations, 0, res.Keys)
				fresh("layer key", private.SymmetricKey)
				fresh("nonce", private.CipherOptions["nonce"])
				for packet := range strings.SplitSeq(l.Annotations[keysAnnotation], ",") {
					p, err := readPacket(packet)
					if err != nil {
						t.Fatal(err)
					}
					fresh("iv", p.IV)
				}
			}
		}
	}
}

func TestEncryptIndex(t *testing.T) {
	reg := registrytest.Debian(t)
	src := newIndex(t, "amd64", "arm64", "s390x")
	if err := remote.WriteIndex(mustRef(t, reg+"/acme/multi:1"), src); err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		platforms, want []string
		index           bool
	}{
		"all, without the attestation": {nil, []string{"linux/amd64", "linux/arm64", "linux/s390x"}, true},
		"two":                          {[]string{"linux/s390x", "linux/amd64"}, []string{"linux/amd64", "linux/s390x"}, true},
		"one becomes an image":         {[]string{"linux/arm64"}, []string{"linux/arm64"}, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			res, err := Encrypt(t.Context(), EncryptOptions{Source: reg + "/acme/multi:1", Destination: reg + "/acme/multi:sealed", KeyID: testKID, KeyPerLayer: true, Platforms: tt.platforms})
			if err != nil {
				t.Fatal(err)
			}
			if len(res.Keys) != 2*len(tt.want) {
				t.Errorf("%d keys", len(res.Keys))
			}
			report, err := Inspect(t.Context(), InspectOptions{Image: reg + "/acme/multi:sealed"})
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, i := range report.Images {
				got = append(got, i.Platform)
			}
			if d := cmp.Diff(tt.want, got); d != "" || report.Digest != res.Digest {
				t.Error(d, report.Digest, res.Digest)
			}
			e := opened(t, reg+"/acme/multi:sealed")
			if (e.index != nil) != tt.index {
				t.Fatalf("index: %v", e.index != nil)
			}
			if !tt.index {
				return
			}
			m, err := e.index.IndexManifest()
			if err != nil {
				t.Fatal(err)
			}
			if m.Annotations["org.example.index"] != "kept" || m.MediaType != types.OCIImageIndex {
				t.Errorf("%+v", m)
			}
			from, err := src.IndexManifest()
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range m.Manifests {
				for _, s := range from.Manifests {
					if !d.Platform.Equals(*s.Platform) {
						continue
					}
					plain, err := src.Image(s.Digest)
					if err != nil {
						t.Fatal(err)
					}
					sealed, err := e.index.Image(d.Digest)
					if err != nil {
						t.Fatal(err)
					}
					checkSealed(t, plain, sealed, res.Keys, all)
				}
			}
		})
	}
}

func TestEncryptRefuses(t *testing.T) {
	dir := t.TempDir()
	in := "oci:" + filepath.Join(dir, "in")
	for tag, e := range map[string]entity{
		"plain": {image: newImage(t, types.OCIManifestSchema1, "amd64", ociTar, ociTar)},
		"helm":  {image: newImage(t, types.OCIManifestSchema1, "amd64", "application/vnd.cncf.helm.chart.content.v1.tar+gzip")},
		"none":  {image: newImage(t, types.OCIManifestSchema1, "amd64")},
		"multi": {index: newIndex(t, "amd64")},
	} {
		if err := (layoutPlace{dir: filepath.Join(dir, "in"), tag: tag}).write(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Encrypt(t.Context(), EncryptOptions{Source: in + ":plain", Destination: in + ":sealed", KeyID: testKID, Layers: []int{1}}); err != nil {
		t.Fatal(err)
	}
	noRoom := errors.New("the broker refused")
	tests := map[string]struct {
		change func(*EncryptOptions)
		is     error
		want   string
	}{
		"a key id that is no URI":    {func(o *EncryptOptions) { o.KeyID = "/default/a/b" }, kbs.ErrURI, ""},
		"a key id of two parts":      {func(o *EncryptOptions) { o.KeyID = "kbs:///default/a" }, kbs.ErrURI, "want kbs:///repository/type/tag"},
		"a key id with a hole":       {func(o *EncryptOptions) { o.KeyID = "kbs:///default//a" }, kbs.ErrURI, ""},
		"a key id of another plugin": {func(o *EncryptOptions) { o.KeyID = "kbs+pkcs11:///a/b/c" }, kbs.ErrURI, ""},
		"a short key":                {func(o *EncryptOptions) { o.KEK = make([]byte, 16) }, nil, "16 bytes, want 32"},
		"one key for many":           {func(o *EncryptOptions) { o.KEK, o.KeyPerLayer = make([]byte, 32), true }, nil, "cannot be a key per layer"},
		"no such layer":              {func(o *EncryptOptions) { o.Layers = []int{2} }, nil, "there is no layer 2"},
		"no such layer from the top": {func(o *EncryptOptions) { o.Layers = []int{-3} }, nil, "there is no layer -3"},
		"no such image":              {func(o *EncryptOptions) { o.Source = in + ":other" }, ErrNotFound, ""},
		"no such layout":             {func(o *EncryptOptions) { o.Source = "oci:" + dir + "/nowhere" }, ErrNotFound, ""},
		"which image?":               {func(o *EncryptOptions) { o.Source = in }, ErrReference, "name one as oci:DIR:TAG"},
		"no source":                  {func(o *EncryptOptions) { o.Source = "" }, ErrReference, ""},
		"a destination by digest":    {func(o *EncryptOptions) { o.Destination = "127.0.0.1:1/a@sha256:" + strings.Repeat("a", 64) }, ErrReference, "needs a tag"},
		"encrypted already":          {func(o *EncryptOptions) { o.Source = in + ":sealed" }, ErrEncrypted, "layer 1"},
		"not an image":               {func(o *EncryptOptions) { o.Source = in + ":helm" }, nil, "is no image layer"},
		"no layers":                  {func(o *EncryptOptions) { o.Source = in + ":none" }, nil, "no layers"},
		"a platform of no index":     {func(o *EncryptOptions) { o.Platforms = []string{"linux/amd64"} }, nil, "not an index"},
		"no such platform":           {func(o *EncryptOptions) { o.Source, o.Platforms = in+":multi", []string{"linux/ppc64le"} }, nil, "no image for [linux/ppc64le]"},
		"the key cannot be stored":   {func(o *EncryptOptions) { o.StoreKey = func(context.Context, Key) error { return noRoom } }, noRoom, "storing the key " + testKID},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			out, temp := filepath.Join(t.TempDir(), "out"), t.TempDir()
			o := EncryptOptions{Source: in + ":plain", Destination: "oci:" + out, KeyID: testKID, TempDir: temp}
			tt.change(&o)
			_, err := Encrypt(t.Context(), o)
			if err == nil || tt.is != nil && !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error = %v, want %v and %q", err, tt.is, tt.want)
			}
			if _, err := os.Stat(out); err == nil {
				t.Error("something was written")
			}
			if left, err := os.ReadDir(temp); err != nil || len(left) > 0 {
				t.Errorf("temporary files left: %v, %v", left, err)
			}
		})
	}
}

// A layout whose blob was changed, and a pull that is cut short.
func TestEncryptChecksWhatItReads(t *testing.T) {
	dir := t.TempDir()
	src := newImage(t, types.OCIManifestSchema1, "amd64", ociTar)
	if err := (layoutPlace{dir: dir, tag: "a"}).write(t.Context(), entity{image: src}); err != nil {
		t.Fatal(err)
	}
	m, err := src.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	o := EncryptOptions{Source: "oci:" + dir + ":a", Destination: "oci:" + dir + ":b", KeyID: testKID}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Encrypt(ctx, o); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	path := filepath.Join(dir, "blobs", "sha256", m.Layers[0].Digest.Hex)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Encrypt(t.Context(), o); err == nil || !strings.Contains(err.Error(), "the manifest says") {
		t.Errorf("changed blob: %v", err)
	}
}

func TestEncryptLeavesForeignDirectoriesAlone(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "thesis.txt"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	err := layoutPlace{dir: dir}.write(t.Context(), entity{image: newImage(t, types.OCIManifestSchema1, "amd64", ociTar)})
	if err == nil || !strings.Contains(err.Error(), "neither empty nor an OCI layout") {
		t.Errorf("%v", err)
	}
}

func FuzzReadPacket(f *testing.F) {
	f.Add(base64.StdEncoding.EncodeToString([]byte(`{"kid":"kbs:///a/b/c","wrapped_data":"AA==","iv":"AA==","wrap_type":"A256GCM"}`)))
	f.Add(base64.StdEncoding.EncodeToString([]byte(`{"version":"0.1.0","provider":"aliyun","kid":"x","wrapped_data":"AA==","provider_settings":{"a":1},"annotations":{"b":[]}}`)))
	f.Add("!")
	f.Fuzz(func(t *testing.T, packet string) {
		for _, info := range readPackets(map[string]string{keysAnnotation: packet, keysPrefix + "jwe": packet}) {
			if strings.ContainsAny(info.KeyID+info.Provider+info.WrapType+info.Scheme, "\x1b\n\x00") {
				t.Errorf("%+v is not printable", info)
			}
		}
	})
}

func BenchmarkEncryptLayer(b *testing.B) {
	plain := tarball(b, "x", 32<<20)
	src, err := mutate.AppendLayers(newImage(b, types.OCIManifestSchema1, "amd64"), newLayer(b, ociTar, plain))
	if err != nil {
		b.Fatal(err)
	}
	dir := b.TempDir()
	if err := (layoutPlace{dir: dir, tag: "a"}).write(b.Context(), entity{image: src}); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(plain)))
	b.ReportAllocs()
	for b.Loop() {
		res, err := Encrypt(b.Context(), EncryptOptions{Source: "oci:" + dir + ":a", Destination: "oci:" + b.TempDir(), KeyID: testKID})
		if err != nil {
			b.Fatal(err)
		}
		for _, k := range res.Keys {
			k.KEK.Wipe()
		}
	}
}
