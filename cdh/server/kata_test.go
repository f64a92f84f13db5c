package server

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/base64"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/containers/ocicrypt/blockcipher"
	godigest "github.com/opencontainers/go-digest"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sealpod/sealpod/cdh/internal/cdhtest"
	"github.com/sealpod/sealpod/imagepull"
	"github.com/sealpod/sealpod/imagepull/registry"
	"github.com/sealpod/sealpod/imagepull/registry/registrytest"
)

// useRegistry makes the hub pull for real, unprivileged, from a new registry.
func (w *world) useRegistry(t *testing.T, change ...func(*imagepull.Config)) *registrytest.Server {
	t.Helper()
	reg := registrytest.New(t)
	conf := imagepull.DefaultConfig()
	conf.WorkDir = t.TempDir()
	conf.Registries = &registry.Rules{Registry: []registry.Rule{{Prefix: reg.Host, Location: reg.Host, Insecure: true}}}
	for _, f := range change {
		f(&conf)
	}
	w.hub.newPuller = func() (Puller, error) {
		return imagepull.New(imagepull.Deps{
			Config: conf, Resources: w.hub.resources, KeyUnwrapper: w.hub, Observer: w.hub.observer(), Log: cdhtest.Quiet, Host: w.host, Plain: true,
		})
	}
	return reg
}

// sealed encrypts l, with the layer key wrapped under kek as kid.
func sealed(t *testing.T, l registrytest.Layer, kek []byte, kid string) registrytest.Layer {
	t.Helper()
	h, err := blockcipher.NewLayerBlockCipherHandler()
	if err != nil {
		t.Fatal(err)
	}
	r, finish, err := h.Encrypt(bytes.NewReader(l.Blob), blockcipher.AES256CTR)
	if err != nil {
		t.Fatal(err)
	}
	blob, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	opts, err := finish()
	if err != nil {
		t.Fatal(err)
	}
	opts.Private.Digest = godigest.Digest(registrytest.Digest(l.Blob))
	block, err := aes.NewCipher(kek)
	if err != nil {
		t.Fatal(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	iv := make([]byte, 12)
	packet := mustJSON(t, map[string]any{"kid": kid, "wrap_type": "A256GCM", "iv": iv, "wrapped_data": gcm.Seal(nil, iv, mustJSON(t, opts.Private), nil)})
	return registrytest.Layer{
		Blob: blob, DiffID: l.DiffID, MediaType: l.MediaType + "+encrypted",
		Annotations: map[string]string{
			"org.opencontainers.image.enc.pubopts":                         base64.StdEncoding.EncodeToString(mustJSON(t, opts.Public)),
			"org.opencontainers.image.enc.keys.provider.attestation-agent": base64.StdEncoding.EncodeToString(packet),
		},
	}
}

// What kata's end-to-end tests look for in what the data hub answers.
// Source: kata-containers tests/integration/kubernetes/k8s-guest-pull-image*.bats
// at 7c6ba40c.
func TestErrorsThatKataLooksForComeOutOfTheSocket(t *testing.T) {
	const decrypt = "Failed to decrypt the image layer, please ensure that the decryption key is placed and correct"
	kek := bytes.Repeat([]byte{7}, 32)
	plain := registrytest.Files(t, map[string]string{"a": "b"})
	tests := map[string]struct {
		layer  registrytest.Layer
		config func(*imagepull.Config)
		hook   func(http.ResponseWriter, *http.Request) bool
		says   string // beside what every failure says; "" when the pull succeeds
	}{
		"an encrypted image with its key": {layer: sealed(t, plain, kek, "kbs:///default/kek/1")},
		"credentials missing": {
			layer: plain, says: "Not authorized",
			hook: func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(http.StatusUnauthorized); return true },
		},
		"policy rejects": {
			layer: plain, says: "Image policy rejected: Denied by policy",
			config: func(c *imagepull.Config) { c.Policy = `{"default":[{"type":"reject"}],"transports":{}}` },
		},
		"signature missing": {
			layer: plain, says: "Image policy rejected: Denied by policy",
			config: func(c *imagepull.Config) {
				c.Policy = `{"default":[{"type":"sigstoreSigned","keyPath":"kbs:///default/cosign/key"}],"transports":{}}`
			},
		},
		"key missing": {layer: sealed(t, plain, kek, "kbs:///default/kek/2"), says: decrypt},
		"key denied":  {layer: sealed(t, plain, kek, "kbs:///denied/kek/1"), says: decrypt},
		"wrong key":   {layer: sealed(t, plain, make([]byte, 32), "kbs:///default/kek/1"), says: decrypt},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.kbs.Set("default/kek/1", kek)
			w.kbs.Set("default/cosign/key", []byte("-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEqGbF2OBtATQ/qkYzwGS4zMAzNis7\n2397iSXOuWP54gqmCA5LRIXd0zYOBN9YhTyjjQ57aOCLnOHV+d1jisu3Aw==\n-----END PUBLIC KEY-----\n"))
			reg := w.useRegistry(t, func(c *imagepull.Config) {
				if tt.config != nil {
					tt.config(c)
				}
			})
			want := reg.Push(t, "app", "1", registrytest.NewImage(tt.layer))
			reg.Hook(tt.hook)
			got, st := w.pull(reg.Host+"/app:1", t.TempDir()+"/c1")
			if tt.says == "" {
				if got != want {
					t.Fatal(st)
				}
				return
			}
			if st.Code() != codes.Internal || !strings.HasPrefix(st.Message(), "[CDH] [ERROR]: Image Pull error: Failed to pull image "+reg.Host+"/app:1: ") ||
				!strings.Contains(st.Message(), tt.says) {
				t.Errorf("%v: %s", status.Code(st.Err()), st.Message())
			}
			if len(w.aa.Events) != 0 {
				t.Error("an image that is not there was measured")
			}
		})
	}
}
