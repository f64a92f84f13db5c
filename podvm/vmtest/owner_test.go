package vmtest

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net"
	"net/http/httptest"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/sealpod/sealpod/attester/tpm"
	"github.com/sealpod/sealpod/attester/vtpmtest"
	"github.com/sealpod/sealpod/imageseal"
	"github.com/sealpod/sealpod/kbs/admin"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/image"
	"github.com/sealpod/sealpod/podvm/testenv"
	"github.com/sealpod/sealpod/relyingparty"
	"github.com/sealpod/sealpod/relyingparty/verifier"
	verifytpm "github.com/sealpod/sealpod/relyingparty/verifier/tpm"
)

// Where the resources of the owner are.
const (
	ownersSecret = "vm/secret/password"
	ownersKEK    = "vm/kek/app"
	signingKey   = "vm/cosign/key.pub"
	imagePolicy  = "vm/policy/images"
	volumeKey    = "vm/volume/data"
)

// What the owner's secret and image say.
const (
	secretText = "correct-horse-battery-staple"
	weightsAt  = "model/weights.bin"
	weights    = "what nobody but the pod may read"
)

// owner is who the pod belongs to: a relying party and a registry on loopback,
// which the machine sees at hostIP.
type owner struct {
	admin         *admin.Client
	kbs, registry string // ports
}

func newOwner(t *testing.T) *owner {
	t.Helper()
	rp, err := relyingparty.Open(relyingparty.Config{StoreDir: filepath.Join(t.TempDir(), "store"), Verifiers: []verifier.Verifier{verifytpm.New()}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := rp.Close(); err != nil {
			t.Error(err)
		}
	})
	web := httptest.NewServer(rp.Handler())
	t.Cleanup(web.Close)
	images := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(images.Close)
	o := &owner{kbs: port(t, web), registry: port(t, images)}
	if o.admin, err = admin.New(web.URL, nil, rp.AdminToken()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(o.admin.Close)
	for path, content := range map[string]string{ownersSecret: secretText, volumeKey: "the passphrase of a volume"} {
		if err := o.admin.SetResource(t.Context(), path, podvm.Secret(content)); err != nil {
			t.Fatal(err)
		}
	}
	o.seal(t)
	return o
}

func port(t *testing.T, s *httptest.Server) string {
	t.Helper()
	_, port, err := net.SplitHostPort(s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// image is what the machine calls the sealed image.
func (o *owner) image() string { return net.JoinHostPort(hostIP, o.registry) + "/app:sealed" }

// seal pushes an image, encrypts it, signs it, and allows no other.
func (o *owner) seal(t *testing.T) {
	t.Helper()
	ctx, here := t.Context(), net.JoinHostPort("127.0.0.1", o.registry)
	plain, sealed := here+"/build/app:1", here+"/app:sealed"
	push(t, plain)
	if _, err := imageseal.Encrypt(ctx, imageseal.EncryptOptions{
		Source: plain, Destination: sealed, KeyID: "kbs:///" + ownersKEK,
		StoreKey: func(_ context.Context, k imageseal.Key) error { return o.admin.SetResource(ctx, ownersKEK, k.KEK) },
	}); err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := imageseal.LoadSigner(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := imageseal.Sign(ctx, imageseal.SignOptions{Image: sealed, Signer: signer}); err != nil {
		t.Fatal(err)
	}
	policy := fmt.Sprintf(`{"default": [{"type": "reject"}], "transports": {"docker": {%q: [{"type": "sigstoreSigned",
		"keyPath": "kbs:///%s", "signedIdentity": {"type": "exactRepository", "dockerRepository": %q}}]}}}`,
		net.JoinHostPort(hostIP, o.registry), signingKey, here+"/app")
	for path, content := range map[string]podvm.Secret{signingKey: signer.PublicKey(), imagePolicy: podvm.Secret(policy)} {
		if err := o.admin.SetResource(ctx, path, content); err != nil {
			t.Fatal(err)
		}
	}
}

// push pushes an image with one file.
func push(t *testing.T, at string) {
	t.Helper()
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	if err := w.WriteHeader(&tar.Header{Name: weightsAt, Mode: 0o400, Size: int64(len(weights))}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, weights); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(layer.Bytes())), nil }
	l, err := tarball.LayerFromOpener(open, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(mutate.MediaType(mutate.ConfigMediaType(empty.Image, types.OCIConfigJSON), types.OCIManifestSchema1), l)
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", runtime.GOARCH
	if img, err = mutate.ConfigFile(img, config); err != nil {
		t.Fatal(err)
	}
	ref, err := name.ParseReference(at)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img, remote.WithContext(t.Context())); err != nil {
		t.Fatal(err)
	}
}

// expect has the relying party release its resources to machines with this TPM
// that have booted this image with this init data, and to nobody else.
func (o *owner) expect(t *testing.T, m *image.Measurements, key []byte, initData string) {
	t.Helper()
	values := map[string]any{"trusted_aks": []string{base64.StdEncoding.EncodeToString(key)}, "init_data": []string{initData}}
	for name, v := range m.ReferenceValues() {
		values[name] = v
	}
	if err := o.admin.SetReferenceValues(t.Context(), values); err != nil {
		t.Fatal(err)
	}
	if err := o.admin.SetResourcePolicy(t.Context(), `package policy
default allow := false
allow if {
	data.plugin == "resource"
	input.submods.cpu0["ear.status"] == "affirming"
}
`); err != nil {
		t.Fatal(err)
	}
}

// attestationHandle is where attesters look for the attestation key.
const attestationHandle = 0x81010002

// newAttestingTPM makes a TPM with an attestation key, as whoever has provisioned
// the machine has left it, and returns the key as DER.
func newAttestingTPM(t *testing.T) (*TPM, []byte) {
	t.Helper()
	p := testenv.Tool(t, "swtpm")
	chip := vtpmtest.Start(t, p)
	chip.Key(t, attestationHandle)
	raw, err := tpm.New(chip.Machine(t)).Evidence(t.Context(), []byte("any"))
	if err != nil {
		t.Fatal(err)
	}
	var e tpm.Evidence
	if err := json.Unmarshal(raw, &e); err != nil {
		t.Fatal(err)
	}
	return &TPM{p, chip.Unplug()}, e.AKPublic
}
