package demo

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/sealpod/sealpod/imageseal"
	"github.com/sealpod/sealpod/kbs/admin"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/relyingparty"
	"github.com/sealpod/sealpod/relyingparty/verifier"
)

// owner is everything outside the pod: relying party, registry, keys.
type owner struct {
	rp      *relyingparty.Server
	rpHTTP  *server
	admin   *admin.Client
	signer  *imageseal.Signer
	secret  string
	reg     *hostileRegistry
	regHTTP *server
}

// startOwner opens a relying party with those verifiers, nil for its default,
// and an empty store in dir, and serves it.
func startOwner(ctx context.Context, dir string, verifiers []verifier.Verifier) (*owner, error) {
	rp, err := relyingparty.Open(relyingparty.Config{StoreDir: filepath.Join(dir, "relying-party"), Verifiers: verifiers})
	if err != nil {
		return nil, err
	}
	o := &owner{rp: rp, secret: "correct-horse-battery-staple"}
	if o.rpHTTP, err = serve(ctx, rp.Handler()); err != nil {
		return o, err
	}
	if o.admin, err = admin.New(o.url(), nil, rp.AdminToken()); err != nil {
		return o, err
	}
	o.signer, err = newSigner()
	return o, err
}

func newSigner() (*imageseal.Signer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	defer clear(der)
	return imageseal.LoadSigner(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil)
}

func (o *owner) url() string { return "http://" + o.rpHTTP.addr }

// stop ends the servers; parts that never started are passed over.
func (o *owner) stop() error {
	var errs []error
	if o.admin != nil {
		o.admin.Close()
	}
	for _, s := range []*server{o.regHTTP, o.rpHTTP} {
		if s != nil {
			errs = append(errs, s.stop())
		}
	}
	return errors.Join(append(errs, o.rp.Close())...)
}

// setPolicies says who gets what: reference values, resource policy, the
// secret and the key images must be signed with.
func (o *owner) setPolicies(ctx context.Context) error {
	return errors.Join(
		o.admin.SetReferenceValues(ctx, referenceValues),
		o.admin.SetResourcePolicy(ctx, resourcePolicy),
		o.admin.SetResource(ctx, secretPath, podvm.Secret(o.secret)),
		o.admin.SetResource(ctx, signKeyPath, o.signer.PublicKey()),
	)
}

// startRegistry serves a registry with its blobs in dir and places the policy
// that trusts it for nothing but signed images.
func (o *owner) startRegistry(ctx context.Context, dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	o.reg = newRegistry(dir)
	var err error
	if o.regHTTP, err = serve(ctx, o.reg); err != nil {
		return err
	}
	return o.admin.SetResource(ctx, imagePolicy, imagePolicyJSON(o.regHTTP.addr))
}

// ref names an image in the owner's registry.
func (o *owner) ref(repo, tag string) string { return o.regHTTP.addr + "/" + repo + ":" + tag }

// buildImage builds the demo's image and pushes it unencrypted.
func (o *owner) buildImage(ctx context.Context, repo string) (ref string, weights []byte, err error) {
	img, weights, err := newImage()
	if err != nil {
		return "", nil, err
	}
	ref = o.ref("build/"+repo, "1")
	r, err := name.ParseReference(ref)
	if err != nil {
		return "", nil, err
	}
	return ref, weights, remote.Write(r, img, remote.WithContext(ctx))
}

// sealedImage is an encrypted image in the owner's registry.
type sealedImage struct {
	ref    string
	layers int // encrypted ones
}

func (s sealedImage) note(kek string) string {
	return fmt.Sprintf("%d layers; released only as kbs:///%s", s.layers, kek)
}

// encrypt copies source into repo with its layers encrypted, all but the base
// unless all is set, under a fresh key that is placed at kekPath.
func (o *owner) encrypt(ctx context.Context, source, repo, kekPath string, all bool) (sealedImage, error) {
	s := sealedImage{ref: o.ref(repo, "sealed")}
	layers := []int{1, 2}
	if all {
		layers = nil
	}
	res, err := imageseal.Encrypt(ctx, imageseal.EncryptOptions{
		Source: source, Destination: s.ref, Layers: layers, KeyID: "kbs:///" + kekPath,
		StoreKey: func(ctx context.Context, k imageseal.Key) error { return o.admin.SetResource(ctx, kekPath, k.KEK) },
	})
	for _, k := range res.Keys {
		k.KEK.Wipe()
	}
	s.layers = res.Encrypted
	return s, err
}

func (o *owner) sign(ctx context.Context, ref string) error {
	_, err := imageseal.Sign(ctx, imageseal.SignOptions{Image: ref, Signer: o.signer})
	return err
}

// guestConfig writes the configuration of a pod that attests at kbsURL below
// dir. Further registries on loopback may be named.
func (o *owner) guestConfig(ctx context.Context, dir, kbsURL string, registries ...string) (*guest, error) {
	rest, err := freeAddr(ctx)
	if err != nil {
		return nil, err
	}
	g, err := newGuest(dir, rest)
	if err != nil {
		return nil, err
	}
	return g, g.writeConfig(kbsURL, append(registries, o.regHTTP.addr)...)
}
