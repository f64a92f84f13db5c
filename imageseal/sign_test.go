package imageseal

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	ggcrstatic "github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/sigstore/cosign/v2/pkg/cosign"
	cosignmutate "github.com/sigstore/cosign/v2/pkg/oci/mutate"
	ociremote "github.com/sigstore/cosign/v2/pkg/oci/remote"
	"github.com/sigstore/cosign/v2/pkg/oci/static"
	"github.com/sigstore/sigstore/pkg/cryptoutils"
	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/sigstore/sigstore/pkg/signature/payload"

	"github.com/sealpod/sealpod/imagepull/policy"
	"github.com/sealpod/sealpod/imagepull/registry/registrytest"
	"github.com/sealpod/sealpod/podvm"
)

func password(text string) Password {
	return func(bool) (podvm.Secret, error) { return podvm.Secret(text), nil }
}

// newSigner makes a signer of a kind and the PEM of its private key.
func newSigner(t *testing.T, kind string) (*Signer, []byte) {
	t.Helper()
	var key crypto.PrivateKey
	var err error
	switch kind {
	case "P-256":
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "P-384":
		key, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "P-521":
		key, err = ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	case "RSA":
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	case "Ed25519":
		_, key, err = ed25519.GenerateKey(rand.Reader)
	}
	if err != nil {
		t.Fatal(err)
	}
	text, err := cryptoutils.MarshalPrivateKeyToPEM(key)
	if err != nil {
		t.Fatal(err)
	}
	s, err := LoadSigner(text, nil)
	if err != nil {
		return nil, text
	}
	return s, text
}

// guest asks the policy a pod would have about the image at ref, with what is
// in the registry now.
func guest(t *testing.T, ref string, publicPEM []byte) (policy.Decision, error) {
	t.Helper()
	p, err := parsePlace(ref, Access{})
	if err != nil {
		t.Fatal(err)
	}
	e, err := p.open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	digest, err := e.digest()
	if err != nil {
		t.Fatal(err)
	}
	doc, err := json.Marshal(map[string]any{
		"default": []any{map[string]any{"type": "reject"}},
		"transports": map[string]any{"docker": map[string]any{"": []any{map[string]any{
			"type": "sigstoreSigned", "keyPath": "kbs:///default/key/1", "signedIdentity": map[string]any{"type": "matchRepository"},
		}}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	pol, err := policy.Parse(doc)
	if err != nil {
		t.Fatal(err)
	}
	r := mustRef(t, ref).Context()
	return pol.Check(t.Context(), policy.Image{Registry: r.RegistryStr(), Repository: r.RepositoryStr(), Tag: "1", TopDigest: digest.String(), PlatformDigest: digest.String()}, policy.Sources{
		Key: func(context.Context, string) ([]byte, error) { return publicPEM, nil },
		Signatures: func(ctx context.Context) ([]policy.Signature, error) {
			img, err := p.openTag(ctx, signatureTag(digest))
			if err != nil || img == nil {
				return nil, err
			}
			return readSignatures(img)
		},
	})
}

// cosignVerify is cosign's own verification of the image at ref, as
// `cosign verify --key --insecure-ignore-tlog` does it.
func cosignVerify(t *testing.T, ref string, publicPEM []byte, hash crypto.Hash) (int, error) {
	t.Helper()
	pub, err := cryptoutils.UnmarshalPEMToPublicKey(publicPEM)
	if err != nil {
		t.Fatal(err)
	}
	v, err := signature.LoadVerifier(pub, hash)
	if err != nil {
		t.Fatal(err)
	}
	sigs, _, err := cosign.VerifyImageSignatures(t.Context(), mustRef(t, ref), &cosign.CheckOpts{
		SigVerifier: v, ClaimVerifier: cosign.SimpleClaimVerifier, IgnoreTlog: true, IgnoreSCT: true, Offline: true,
	})
	return len(sigs), err
}

// What we sign, cosign verifies and a guest accepts.
func TestSignIsReadByCosignAndGuests(t *testing.T) {
	reg := registrytest.Debian(t)
	for kind, hash := range map[string]crypto.Hash{"P-256": crypto.SHA256, "P-384": crypto.SHA384, "RSA": crypto.SHA256, "Ed25519": crypto.SHA256} {
		t.Run(kind, func(t *testing.T) {
			ref := reg + "/acme/" + strings.ToLower(kind) + ":1"
			push(t, ref, newImage(t, types.OCIManifestSchema1, "amd64", ociTar))
			s, _ := newSigner(t, kind)
			if _, err := guest(t, ref, s.PublicKey()); !errors.Is(err, policy.ErrRejected) {
				t.Errorf("unsigned: %v", err)
			}
			res, err := Sign(t.Context(), SignOptions{Image: ref, Signer: s, Annotations: map[string]string{"build": "7"}})
			if err != nil || !res.Appended {
				t.Fatalf("%+v, %v", res, err)
			}
			if n, err := cosignVerify(t, ref, s.PublicKey(), hash); err != nil || n != 1 {
				t.Errorf("cosign: %d, %v", n, err)
			}
			if d, err := guest(t, ref, s.PublicKey()); err != nil || !d.Allowed {
				t.Errorf("guest: %+v, %v", d, err)
			}
			other, _ := newSigner(t, kind)
			if _, err := cosignVerify(t, ref, other.PublicKey(), hash); err == nil {
				t.Error("cosign accepts another key")
			}
			if _, err := guest(t, ref, other.PublicKey()); !errors.Is(err, policy.ErrRejected) {
				t.Errorf("another key: %v", err)
			}
		})
	}
}

// What cosign signs, through the library calls of its sign command, a guest
// accepts, with every default cosign has for that kind of key.
func TestCosignSignatureIsAcceptedByGuests(t *testing.T) {
	reg := registrytest.Debian(t)
	for _, kind := range []string{"P-256", "P-384", "RSA", "Ed25519"} {
		t.Run(kind, func(t *testing.T) {
			ref := reg + "/acme/" + strings.ToLower(kind) + ":1"
			push(t, ref, newImage(t, types.OCIManifestSchema1, "amd64", ociTar))
			ours, plain := newSigner(t, kind)
			private, err := cryptoutils.UnmarshalPEMToPrivateKey(plain, nil)
			if err != nil {
				t.Fatal(err)
			}
			theirs, err := signature.LoadDefaultSignerVerifier(private, *cosign.GetDefaultLoadOptions(nil)...)
			if err != nil {
				t.Fatal(err)
			}
			cosignSign(t, ref, theirs)
			if d, err := guest(t, ref, ours.PublicKey()); err != nil || !d.Allowed {
				t.Errorf("guest: %+v, %v", d, err)
			}
			r, err := Inspect(t.Context(), InspectOptions{Image: ref, Keys: map[string][]byte{"cosign.pub": ours.PublicKey()}})
			if err != nil || len(r.Signatures) != 1 || len(r.Signatures[0].VerifiedBy) != 1 {
				t.Errorf("inspect: %+v, %v", r.Signatures, err)
			}
			// Ours goes beside theirs and both stay readable.
			other, _ := newSigner(t, "P-256")
			if _, err := Sign(t.Context(), SignOptions{Image: ref, Signer: other}); err != nil {
				t.Fatal(err)
			}
			for _, pub := range [][]byte{ours.PublicKey(), other.PublicKey()} {
				if d, err := guest(t, ref, pub); err != nil || !d.Allowed {
					t.Errorf("beside each other: %+v, %v", d, err)
				}
			}
		})
	}
}

// cosignSign is what cosign's sign command does for a key and no log.
func cosignSign(t *testing.T, ref string, key signature.SignerVerifier) {
	t.Helper()
	digest, err := ociremote.ResolveDigest(mustRef(t, ref))
	if err != nil {
		t.Fatal(err)
	}
	body, err := json.Marshal(payload.Cosign{Image: digest})
	if err != nil {
		t.Fatal(err)
	}
	raw, err := key.SignMessage(bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	sig, err := static.NewSignature(body, base64.StdEncoding.EncodeToString(raw))
	if err != nil {
		t.Fatal(err)
	}
	se, err := ociremote.SignedEntity(digest)
	if err != nil {
		t.Fatal(err)
	}
	if se, err = cosignmutate.AttachSignatureToEntity(se, sig); err != nil {
		t.Fatal(err)
	}
	if err := ociremote.WriteSignatures(digest.Repository, se); err != nil {
		t.Fatal(err)
	}
}

func TestSignIndexCoversEveryPlatform(t *testing.T) {
	dir := t.TempDir()
	idx := newIndex(t, "amd64", "arm64")
	if err := (layoutPlace{dir: dir}).write(t.Context(), entity{index: idx}); err != nil {
		t.Fatal(err)
	}
	s, _ := newSigner(t, "P-256")
	res, err := Sign(t.Context(), SignOptions{Image: "oci:" + dir, Signer: s, Identity: "quay.io/acme/app"})
	if err != nil {
		t.Fatal(err)
	}
	want, err := idx.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if res.Digest != want.String() || res.Tag != "sha256-"+want.Hex+".sig" || res.Identity != "quay.io/acme/app" {
		t.Errorf("%+v", res)
	}
	// The signature in the layout does not make "the only image" ambiguous.
	r, err := Inspect(t.Context(), InspectOptions{Image: "oci:" + dir, Keys: map[string][]byte{"k": s.PublicKey()}})
	if err != nil || len(r.Signatures) != 1 || r.Signatures[0].Identity != "quay.io/acme/app" || len(r.Signatures[0].VerifiedBy) != 1 {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestSignTwice(t *testing.T) {
	dir := t.TempDir()
	if err := (layoutPlace{dir: dir, tag: "a"}).write(t.Context(), entity{image: newImage(t, types.OCIManifestSchema1, "amd64", ociTar)}); err != nil {
		t.Fatal(err)
	}
	a, _ := newSigner(t, "P-256")
	b, _ := newSigner(t, "Ed25519")
	sign := func(s *Signer, identity string) bool {
		res, err := Sign(t.Context(), SignOptions{Image: "oci:" + dir + ":a", Signer: s, Identity: identity})
		if err != nil {
			t.Fatal(err)
		}
		return res.Appended
	}
	got := []bool{sign(a, "quay.io/x/y"), sign(a, "quay.io/x/y"), sign(b, "quay.io/x/y"), sign(a, "quay.io/x/z"), sign(a, "quay.io/x/y")}
	if d := cmp.Diff([]bool{true, false, true, true, false}, got); d != "" {
		t.Error(d)
	}
	r, err := Inspect(t.Context(), InspectOptions{Image: "oci:" + dir + ":a", Keys: map[string][]byte{"a": a.PublicKey(), "b": b.PublicKey()}})
	if err != nil {
		t.Fatal(err)
	}
	want := []SignatureInfo{
		{Identity: "quay.io/x/y", Digest: r.Digest, VerifiedBy: []string{"a"}},
		{Identity: "quay.io/x/y", Digest: r.Digest, VerifiedBy: []string{"b"}},
		{Identity: "quay.io/x/z", Digest: r.Digest, VerifiedBy: []string{"a"}},
	}
	if d := cmp.Diff(want, r.Signatures); d != "" {
		t.Error(d)
	}
}

func TestSignRefuses(t *testing.T) {
	dir := t.TempDir()
	if err := (layoutPlace{dir: dir, tag: "a"}).write(t.Context(), entity{image: newImage(t, types.OCIManifestSchema1, "amd64", ociTar)}); err != nil {
		t.Fatal(err)
	}
	s, _ := newSigner(t, "P-256")
	for name, tt := range map[string]struct {
		o  SignOptions
		is error
	}{
		"a layout without a name": {SignOptions{Image: "oci:" + dir + ":a"}, ErrReference},
		"a name that is none":     {SignOptions{Image: "oci:" + dir + ":a", Identity: "A B"}, ErrReference},
		"no such image":           {SignOptions{Image: "oci:" + dir + ":b", Identity: "quay.io/a/b"}, ErrNotFound},
		"no image at all":         {SignOptions{Image: "oci:"}, ErrReference},
		"a huge annotation":       {SignOptions{Image: "oci:" + dir + ":a", Identity: "quay.io/a/b", Annotations: map[string]string{"a": strings.Repeat("x", policy.MaxPayload)}}, podvm.ErrTooLarge},
	} {
		tt.o.Signer = s
		if _, err := Sign(t.Context(), tt.o); !errors.Is(err, tt.is) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestSignDoesNotLockGuestsOut: a guest refuses a signature manifest with too
// many entries as a whole, whatever they are.
func TestSignDoesNotLockGuestsOut(t *testing.T) {
	dir := t.TempDir()
	if err := (layoutPlace{dir: dir, tag: "a"}).write(t.Context(), entity{image: newImage(t, types.OCIManifestSchema1, "amd64", ociTar)}); err != nil {
		t.Fatal(err)
	}
	s, _ := newSigner(t, "P-256")
	o := SignOptions{Image: "oci:" + dir + ":a", Signer: s, Identity: "quay.io/a/b"}
	res, err := Sign(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := mutate.AppendLayers(empty.Image, slices.Repeat([]v1.Layer{ggcrstatic.NewLayer([]byte("x"), types.OCILayer)}, policy.MaxSignatures)...)
	if err != nil {
		t.Fatal(err)
	}
	if err := (layoutPlace{dir: dir}).writeTag(t.Context(), res.Tag, foreign); err != nil {
		t.Fatal(err)
	}
	if _, err := Sign(t.Context(), o); !errors.Is(err, ErrTooMany) {
		t.Errorf("%v", err)
	}
}

func TestKeyPairIsCosigns(t *testing.T) {
	pair, err := GenerateKeyPair(password("secret"))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(pair.Private)
	if block == nil || block.Type != "ENCRYPTED SIGSTORE PRIVATE KEY" {
		t.Fatalf("private key block %+v", block)
	}
	theirs, err := cosign.LoadPrivateKey(pair.Private, []byte("secret"), nil)
	if err != nil {
		t.Fatal(err)
	}
	pub, err := theirs.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	text, err := cryptoutils.MarshalPublicKeyToPEM(pub)
	if err != nil || !bytes.Equal(text, pair.Public) {
		t.Errorf("%s, %v", text, err)
	}
	s, err := LoadSigner(pair.Private, password("secret"))
	if err != nil || !bytes.Equal(s.PublicKey(), pair.Public) {
		t.Errorf("%v", err)
	}
	if _, err := LoadSigner(pair.Private, password("other")); !errors.Is(err, ErrKey) {
		t.Errorf("a wrong password: %v", err)
	}
}

func TestLoadSignerRefuses(t *testing.T) {
	signer, _ := newSigner(t, "P-256")
	locked := pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED SIGSTORE PRIVATE KEY", Bytes: []byte("{}")})
	noTerminal := errors.New("no terminal")
	_, p521 := newSigner(t, "P-521")
	for name, tt := range map[string]struct {
		text     []byte
		password Password
		is       error
	}{
		"no PEM":         {[]byte("hello"), nil, ErrKey},
		"nothing":        {nil, nil, ErrKey},
		"a public key":   {signer.PublicKey(), nil, ErrKey},
		"broken, locked": {locked, password("x"), ErrKey},
		"no password":    {locked, func(bool) (podvm.Secret, error) { return nil, noTerminal }, noTerminal},
		"P-521":          {p521, nil, ErrKey},
		"broken":         {[]byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"), nil, ErrKey},
	} {
		if s, err := LoadSigner(tt.text, tt.password); s != nil || !errors.Is(err, tt.is) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A `.sig` tag may hold anything: foreign layers are passed over.
func TestReadSignaturesPassesOverForeignLayers(t *testing.T) {
	img := newImage(t, types.OCIManifestSchema1, "amd64", ociTar, string(signatureType))
	sigs, err := readSignatures(img)
	if err != nil || len(sigs) != 0 {
		t.Errorf("%d, %v", len(sigs), err)
	}
}

func TestSignatureTagIsCosigns(t *testing.T) {
	ref, err := name.NewDigest("quay.io/a/b@sha256:" + strings.Repeat("a", 64))
	if err != nil {
		t.Fatal(err)
	}
	want, err := ociremote.SignatureTag(ref)
	if err != nil {
		t.Fatal(err)
	}
	h, err := v1.NewHash(ref.DigestStr())
	if err != nil || signatureTag(h) != want.TagStr() {
		t.Errorf("%s, %s, %v", signatureTag(h), want.TagStr(), err)
	}
}
