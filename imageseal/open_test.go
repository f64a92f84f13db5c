package imageseal

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/base64"
	"encoding/json"
	"io"
	"strings"
	"testing"

	"github.com/containers/ocicrypt/blockcipher"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// unwrapped decrypts packet n of a layer, by hand, as the format says.
func unwrapped(t *testing.T, annotations map[string]string, n int, keys []Key) (kid string, opts blockcipher.PrivateLayerBlockCipherOptions) {
	t.Helper()
	packets := strings.Split(annotations[keysAnnotation], ",")
	text, err := base64.StdEncoding.DecodeString(packets[n])
	if err != nil {
		t.Fatal(err)
	}
	var p map[string]any
	if err := json.Unmarshal(text, &p); err != nil {
		t.Fatal(err)
	}
	field := func(name string) []byte {
		b, err := base64.StdEncoding.DecodeString(p[name].(string))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for _, k := range keys {
		if k.ID != p["kid"] {
			continue
		}
		block, err := aes.NewCipher(k.KEK)
		if err != nil {
			t.Fatal(err)
		}
		gcm, err := cipher.NewGCM(block)
		if err != nil {
			t.Fatal(err)
		}
		plain, err := gcm.Open(nil, field("iv"), field("wrapped_data"), nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(plain, &opts); err != nil {
			t.Fatal(err)
		}
		return k.ID, opts
	}
	t.Fatalf("no key %v", p["kid"])
	return "", opts
}

// decrypted returns the plain bytes of an encrypted layer through ocicrypt.
func decrypted(t *testing.T, layer v1.Layer, desc v1.Descriptor, keys []Key) []byte {
	t.Helper()
	_, private := unwrapped(t, desc.Annotations, 0, keys)
	text, err := base64.StdEncoding.DecodeString(desc.Annotations[pubOptsAnnotation])
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), `"cipheroptions":{}`) {
		t.Errorf("public options %s", text)
	}
	opts := blockcipher.LayerBlockCipherOptions{Private: private}
	if err := json.Unmarshal(text, &opts.Public); err != nil {
		t.Fatal(err)
	}
	r, err := layer.Compressed()
	if err != nil {
		t.Fatal(err)
	}
	h, err := blockcipher.NewLayerBlockCipherHandler()
	if err != nil {
		t.Fatal(err)
	}
	plain, _, err := h.Decrypt(r, opts)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(plain)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if got := "sha256:" + hexDigest(b); got != private.Digest.String() {
		t.Errorf("digest of the plain layer is %s, the key packet says %s", got, private.Digest)
	}
	return b
}

// checkSealed compares an encrypted image with its source: configuration and
// annotations the same, chosen layers encrypted and decryptable, others equal.
func checkSealed(t *testing.T, src, got v1.Image, keys []Key, chosen func(int) bool) {
	t.Helper()
	wantConfig, err := src.RawConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	gotConfig, err := got.RawConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(wantConfig, gotConfig) {
		t.Errorf("the configuration changed")
	}
	m, err := got.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	if m.MediaType != types.OCIManifestSchema1 || m.Config.MediaType != types.OCIConfigJSON {
		t.Errorf("types %s, %s", m.MediaType, m.Config.MediaType)
	}
	plain, err := src.Layers()
	if err != nil {
		t.Fatal(err)
	}
	for i, desc := range m.Layers {
		want := blob(t, plain[i])
		layer, err := got.LayerByDigest(desc.Digest)
		if err != nil {
			t.Fatal(err)
		}
		if !chosen(i) {
			if isEncrypted(string(desc.MediaType)) || !bytes.Equal(blob(t, layer), want) {
				t.Errorf("layer %d was touched: %s", i, desc.MediaType)
			}
			continue
		}
		if !isEncrypted(string(desc.MediaType)) {
			t.Errorf("layer %d has type %s", i, desc.MediaType)
		}
		if bytes.Equal(blob(t, layer), want) || !bytes.Equal(decrypted(t, layer, desc, keys), want) {
			t.Errorf("layer %d does not come back", i)
		}
		if desc.Annotations["org.example.layer"] == "" {
			t.Errorf("layer %d lost its annotation", i)
		}
	}
}

func blob(t *testing.T, l v1.Layer) []byte {
	t.Helper()
	r, err := l.Compressed()
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	return b
}

func all(int) bool { return true }
