package demo

import (
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sealpod/sealpod/api/datahub"
	"github.com/sealpod/sealpod/cdh/secret/seal"
	"github.com/sealpod/sealpod/podvm"
)

const signingKeyPath = "demo/signing/key"

// sealSecret seals what is at path, a resource, as an owner does for the
// environment of a container.
func (w *world) sealSecret(t testing.TB, path string) string {
	t.Helper()
	private, public, err := seal.NewKey("demo")
	if err != nil {
		t.Fatal(err)
	}
	defer private.Wipe()
	key, err := seal.ParseKey(private)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.admin.SetResource(t.Context(), signingKeyPath, podvm.Secret(public)); err != nil {
		t.Fatal(err)
	}
	sealed, err := seal.Vault{Name: "kbs:///" + path, Provider: "kbs"}.Seal(seal.Signer{Key: key, KeyID: "kbs:///" + signingKeyPath})
	if err != nil {
		t.Fatal(err)
	}
	return sealed
}

// kataAgent calls the data hub as kata-agent does: over one connection, made
// once and never again.
// Source: kata-containers src/agent/src/{rpc.rs,confidential_data_hub/mod.rs} at 7c6ba40.
type kataAgent struct {
	hub *ttrpc.Client
}

func startKataAgent(t testing.TB, socket string) *kataAgent {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	k := &kataAgent{ttrpc.NewClient(conn)}
	t.Cleanup(func() { _ = k.hub.Close() })
	return k
}

// unsealed is a value of a container's environment, unsealed if it has to be.
func (k *kataAgent) unsealed(ctx context.Context, value string) (string, error) {
	if !strings.HasPrefix(value, "sealed.") {
		return value, nil
	}
	ctx, cancel := context.WithTimeout(ctx, callersDeadline)
	defer cancel()
	out, err := datahub.NewSealedSecretServiceClient(k.hub).UnsealSecret(ctx, &datahub.UnsealSecretInput{Secret: []byte(value)})
	return string(out.GetPlaintext()), err
}

func TestKataAgentCreatesAContainer(t *testing.T) {
	w := newWorld(t)
	image, weights := signedImage(t, w)
	sealed := w.sealSecret(t, secretPath)
	agent := startKataAgent(t, w.cdhSock)

	// The values of the environment, of which one cannot be unsealed: the agent
	// leaves it as it is and goes on.
	for value, want := range map[string]string{"plain": "plain", sealed: w.secret} {
		if got, err := agent.unsealed(t.Context(), value); err != nil || got != want {
			t.Errorf("%.20s…: %q, %v", value, got, err)
		}
	}
	if _, err := agent.unsealed(t.Context(), "sealed.x.y.z"); status.Code(err) != codes.Internal {
		t.Error(err)
	}
	// A file whose content is sealed is sent as it is, its line end included,
	// which a signature does not survive.
	if _, err := agent.unsealed(t.Context(), sealed+"\n"); status.Code(err) != codes.Internal {
		t.Error(err)
	}
	// A device with secrets of a mainframe asks for resources.
	r, err := datahub.NewGetResourceServiceClient(agent.hub).GetResource(t.Context(), &datahub.GetResourceRequest{ResourcePath: "kbs:///" + secretPath})
	if err := w.check(r.GetResource(), err); err != nil {
		t.Error(err)
	}
	// The trusted image store on a device that is not there: an error, and the
	// connection goes on.
	if err := agent.mount(t.Context(), map[string]string{
		"deviceId": "259:65535", "sourceType": "empty", "targetType": "fileSystem", "filesystemType": "ext4",
		"mkfsOpts": "-E lazy_journal_init", "encryptionType": "luks2", "dataIntegrity": "true",
	}, t.TempDir()); status.Code(err) != codes.Internal || !strings.HasPrefix(status.Convert(err).Message(), "[CDH] [ERROR]: Secure Mount failed: ") {
		t.Error(err)
	}
	bundle := w.bundles + "/kata"
	if err := os.Mkdir(bundle, 0o700); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 1200*time.Second)
	defer cancel()
	if _, err := datahub.NewImagePullServiceClient(agent.hub).PullImage(ctx, &datahub.ImagePullRequest{ImageUrl: image, BundlePath: bundle}); err != nil {
		t.Fatal(err)
	}
	_, err = checkRootfs(bundle, weights)
	if err := errors.Join(err, unmount(bundle)); err != nil {
		t.Error(err)
	}
	if n := w.rp.Attestations(); n != 1 {
		t.Errorf("%d attestations", n)
	}
}

func (k *kataAgent) mount(ctx context.Context, options map[string]string, point string) error {
	_, err := datahub.NewSecureMountServiceClient(k.hub).SecureMount(ctx, &datahub.SecureMountRequest{
		VolumeType: "block-device", Options: options, MountPoint: point,
	})
	return err
}
