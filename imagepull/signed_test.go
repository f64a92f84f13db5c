package imagepull

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/sealpod/sealpod/imagepull/layer"
	"github.com/sealpod/sealpod/imagepull/policy"
	"github.com/sealpod/sealpod/imagepull/registry/registrytest"
	"github.com/sealpod/sealpod/podvm"
)

const bundleType = "application/vnd.dev.sigstore.bundle.v0.3+json"

// bundle makes what cosign 3 makes for a digest, as JSON.
func (s *signer) bundle(t *testing.T, digest string) []byte {
	t.Helper()
	_, hex, _ := strings.Cut(digest, ":")
	const kind = "application/vnd.in-toto+json"
	body := fmt.Sprintf(`{"_type":"https://in-toto.io/Statement/v1","subject":[{"digest":{"sha256":%q},"annotations":{}}],"predicateType":"https://sigstore.dev/cosign/sign/v1","predicate":{}}`, hex)
	sum := sha256.Sum256(fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(kind), kind, len(body), body))
	sig, err := ecdsa.SignASN1(rand.Reader, s.key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	return registrytest.JSON(t, registrytest.Object{
		"mediaType":            bundleType,
		"verificationMaterial": registrytest.Object{"publicKey": registrytest.Object{"hint": "x"}, "tlogEntries": []any{7}},
		"dsseEnvelope":         registrytest.Object{"payload": []byte(body), "payloadType": kind, "signatures": []any{registrytest.Object{"sig": base64.StdEncoding.EncodeToString(sig)}}},
	})
}

// attach stores blobs as bundles and returns the list of referrers that names
// them and more. This registry would not take the list: one of them is missing.
func attach(t *testing.T, m *machine, repo string, blobs ...[]byte) []byte {
	t.Helper()
	list := []any{
		registrytest.Object{"mediaType": registrytest.ManifestType, "artifactType": "application/spdx+json", "digest": registrytest.Digest(nil), "size": 1},
		registrytest.Object{"mediaType": registrytest.ManifestType, "artifactType": bundleType, "digest": registrytest.Digest([]byte("missing")), "size": 1},
	}
	for i, b := range blobs {
		img := &registrytest.Image{
			Config:   registrytest.Object{},
			Manifest: registrytest.Object{"schemaVersion": 2, "mediaType": registrytest.ManifestType, "artifactType": bundleType},
			Layers:   []registrytest.Layer{{Blob: b, MediaType: bundleType}},
		}
		d := m.Push(t, repo, fmt.Sprintf("bundle-%d", i), img)
		list = append(list, registrytest.Object{"mediaType": registrytest.ManifestType, "artifactType": bundleType, "digest": d, "size": 1})
	}
	return registrytest.JSON(t, registrytest.Object{"schemaVersion": 2, "mediaType": registrytest.IndexType, "manifests": list})
}

// TestBundleOfCosign3 finds bundles by the referrers tag and by the API, among
// others that are of no use.
func TestBundleOfCosign3(t *testing.T) {
	missing := func(w http.ResponseWriter, _ []byte) { w.WriteHeader(http.StatusNotFound) }
	list := func(w http.ResponseWriter, index []byte) { _, _ = w.Write(index) }
	for name, tt := range map[string]struct {
		api, tag func(w http.ResponseWriter, index []byte)
		says     string
	}{
		"referrers tag":      {missing, list, ""},
		"referrers API":      {list, missing, ""},
		"an API of no use":   {func(w http.ResponseWriter, _ []byte) { _, _ = w.Write([]byte("<html>")) }, list, ""},
		"an API not allowed": {func(w http.ResponseWriter, _ []byte) { w.WriteHeader(http.StatusMethodNotAllowed) }, list, ""},
		"API out of order":   {func(w http.ResponseWriter, _ []byte) { w.WriteHeader(http.StatusBadGateway) }, list, "could not be fetched"},
		"neither":            {missing, missing, "no signature found"},
		"tag of no use":      {missing, func(w http.ResponseWriter, _ []byte) { _, _ = w.Write([]byte("{}")) }, "could not be fetched"},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			digest := m.Push(t, "a", "1", twoLayers(t))
			key := newSigner(t)
			index := attach(t, m, "a", newSigner(t).bundle(t, digest), []byte("junk"), make([]byte, policy.MaxBundle+1), key.bundle(t, digest))
			m.Hook(func(w http.ResponseWriter, r *http.Request) bool {
				switch r.URL.Path {
				case "/v2/a/referrers/" + digest:
					tt.api(w, index)
				case "/v2/a/manifests/" + strings.Replace(digest, ":", "-", 1):
					tt.tag(w, index)
				default:
					return false
				}
				return true
			})
			m.deps.Config.Policy = `{"default":[{"type":"sigstoreSigned","keyPath":"kbs:///k/k/k"}],"transports":{}}`
			m.deps.Resources = resources{"kbs:///k/k/k": key.public(t)}
			_, err := m.puller(t).Pull(deadline(t), m.ref("a:1"), m.bundle("c"))
			if (err == nil) != (tt.says == "") || err != nil && !errors.Is(err, policy.ErrRejected) {
				t.Errorf("Pull: %v", err)
			}
			wantCause(t, err, tt.says)
		})
	}
}

// TestAttackFloodOfBundles: more than are looked at are refused as a whole.
func TestAttackFloodOfBundles(t *testing.T) {
	m := newMachine(t)
	digest := m.Push(t, "a", "1", twoLayers(t))
	key := newSigner(t)
	flood := make([][]byte, policy.MaxBundles)
	for i := range flood {
		flood[i] = []byte(fmt.Sprint(i))
	}
	flood[0] = key.bundle(t, digest)
	index := attach(t, m, "a", flood...)
	m.Hook(hooked("/referrers/"+digest, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(index) }))
	m.deps.Config.Policy = `{"default":[{"type":"sigstoreSigned","keyPath":"kbs:///k/k/k"}],"transports":{}}`
	m.deps.Resources = resources{"kbs:///k/k/k": key.public(t)}
	_, err := m.puller(t).Pull(deadline(t), m.ref("a:1"), m.bundle("c"))
	if !errors.Is(err, policy.ErrRejected) || !errors.Is(err, podvm.ErrTooLarge) {
		t.Errorf("Pull: %v", err)
	}
	m.wantNothingLeft(t)
}

// TestAttackTenThousandSignatures: a signature manifest longer than anybody
// needs ends the pull, within its limits.
func TestAttackTenThousandSignatures(t *testing.T) {
	m := newMachine(t)
	digest := m.Push(t, "a", "1", twoLayers(t))
	key := newSigner(t)
	entry := registrytest.Object{"mediaType": "application/vnd.dev.cosign.simplesigning.v1+json", "digest": registrytest.Digest([]byte("x")), "size": 1, "annotations": registrytest.Object{"dev.cosignproject.cosign/signature": "AA=="}}
	for _, n := range []int{policy.MaxSignatures + 1, 10_000} {
		list := make([]any, n)
		for i := range list {
			list[i] = entry
		}
		raw := registrytest.JSON(t, registrytest.Object{"schemaVersion": 2, "mediaType": registrytest.ManifestType, "config": registrytest.Descriptor(registrytest.ConfigType, nil), "layers": list})
		m.PutManifest(t, "a", strings.Replace(digest, ":", "-", 1)+".sig", registrytest.ManifestType, raw)
		m.deps.Config.Policy = `{"default":[{"type":"sigstoreSigned","keyPath":"kbs:///k/k/k"}],"transports":{}}`
		m.deps.Resources = resources{"kbs:///k/k/k": key.public(t)}
		p := m.puller(t)
		_, err := p.Pull(deadline(t), m.ref("a:1"), m.bundle("c"))
		if !errors.Is(err, policy.ErrRejected) || m.Seen(registrytest.Digest([]byte("x"))) > 0 {
			t.Errorf("%d: %v", n, err)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestForeignEntriesDoNotHideAGoodSignature: entries of other types, huge
// payloads and payloads that are gone, and then the good one. Upstream gives
// up at the first.
func TestForeignEntriesDoNotHideAGoodSignature(t *testing.T) {
	m := newMachine(t)
	digest := m.Push(t, "a", "1", twoLayers(t))
	key := newSigner(t)
	good := key.signature(t, m, "a", digest)
	kind, sig := good.MediaType, map[string]string{"dev.cosignproject.cosign/signature": "AA=="}
	img := &registrytest.Image{
		Config:   registrytest.Object{},
		Manifest: registrytest.Object{"schemaVersion": 2, "mediaType": registrytest.ManifestType},
		Layers: []registrytest.Layer{
			{Blob: []byte("{}"), MediaType: "application/vnd.dsse.envelope.v1+json", Annotations: sig},
			{Blob: make([]byte, policy.MaxPayload+1), MediaType: kind, Annotations: sig},
			{Blob: []byte("gone"), MediaType: kind, Annotations: sig},
			{Blob: []byte("unsigned"), MediaType: kind},
			good,
		},
	}
	m.Hook(hooked(registrytest.Digest([]byte("gone")), func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) }))
	m.Push(t, "a", strings.Replace(digest, ":", "-", 1)+".sig", img)
	m.deps.Config.Policy = `{"default":[{"type":"sigstoreSigned","keyPath":"kbs:///k/k/k"}],"transports":{}}`
	m.deps.Resources = resources{"kbs:///k/k/k": key.public(t)}
	if _, err := m.puller(t).Pull(deadline(t), m.ref("a:1"), m.bundle("c")); err != nil {
		t.Error(err)
	}
}

// TestAttackTagMovesDuringThePull: the registry shows a signed image first and
// another one whenever the tag is asked for again.
func TestAttackTagMovesDuringThePull(t *testing.T) {
	m := newMachine(t)
	signed, evil := twoLayers(t), registrytest.NewImage(registrytest.Files(t, map[string]string{"evil": "x"}))
	m.Push(t, "a", "evil", evil)
	want := m.Push(t, "a", "1", signed)
	key := newSigner(t)
	key.sign(t, m, "a", want)
	var asked atomic.Int32
	m.Hook(func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, "/manifests/1") && asked.Add(1) > 1 {
			r.URL.Path = "/v2/a/manifests/evil"
		}
		return false
	})
	m.deps.Config.Policy = `{"default":[{"type":"sigstoreSigned","keyPath":"kbs:///k/k/k"}],"transports":{}}`
	m.deps.Resources = resources{"kbs:///k/k/k": key.public(t)}
	p := m.puller(t)
	got, err := p.Pull(deadline(t), m.ref("a:1"), m.bundle("c"))
	if err != nil || got != want || asked.Load() != 1 {
		t.Errorf("Pull = %s, %v after %d looks at the tag", got, err, asked.Load())
	}
	if _, err := p.Pull(deadline(t), m.ref("a:1"), m.bundle("d")); !errors.Is(err, policy.ErrRejected) {
		t.Errorf("once it has moved: %v", err)
	}
}

// TestKeySwapCountsAtOnce: the key behind a URI is another one at the next
// pull, cached image or not.
func TestKeySwapCountsAtOnce(t *testing.T) {
	m := newMachine(t)
	digest := m.Push(t, "a", "1", twoLayers(t))
	one, two := newSigner(t), newSigner(t)
	one.sign(t, m, "a", digest)
	kbs := resources{"kbs:///k/k/k": one.public(t)}
	m.deps.Config.Policy = `{"default":[{"type":"sigstoreSigned","keyPath":"kbs:///k/k/k"}],"transports":{}}`
	m.deps.Resources = kbs
	p := m.puller(t)
	if _, err := p.Pull(deadline(t), m.ref("a:1"), m.bundle("c")); err != nil {
		t.Fatal(err)
	}
	kbs["kbs:///k/k/k"] = two.public(t)
	if _, err := p.Pull(deadline(t), m.ref("a:1"), m.bundle("d")); !errors.Is(err, policy.ErrRejected) {
		t.Errorf("after the swap: %v", err)
	}
}

const allEncrypted = `{"default":[{"type":"sealpodEncrypted"}],"transports":{}}`

// TestMustBeEncrypted decides by the manifest, before a layer is fetched, and
// again for an image that is cached.
func TestMustBeEncrypted(t *testing.T) {
	m := newMachine(t)
	img, broker := encryptedImage(t)
	img.Layers[0] = encrypt(t, img.Layers[0], "packet zero", broker)
	img = registrytest.NewImage(img.Layers...)
	m.Push(t, "sealed", "1", img)
	plain := twoLayers(t)
	m.Push(t, "plain", "1", plain)
	kbs := resources{"kbs:///p/p/p": allEncrypted}
	m.deps.KeyUnwrapper, m.deps.Resources, m.deps.Config.PolicyURI = broker, kbs, "kbs:///p/p/p"
	p := m.puller(t)
	if _, err := p.Pull(deadline(t), m.ref("sealed:1"), m.bundle("c")); err != nil {
		t.Error(err)
	}
	_, err := p.Pull(deadline(t), m.ref("plain:1"), m.bundle("d"))
	wantCause(t, err, "Image policy rejected: Denied by policy: layer "+registrytest.Digest(plain.Layers[0].Blob)+" is not encrypted")
	if m.Seen(registrytest.Digest(plain.Layers[0].Blob)) > 0 {
		t.Error("a layer of a rejected image was fetched")
	}
	kbs["kbs:///p/p/p"] = `{"default":[{"type":"insecureAcceptAnything"}],"transports":{}}`
	if _, err := p.Pull(deadline(t), m.ref("plain:1"), m.bundle("e")); err != nil {
		t.Error(err)
	}
	kbs["kbs:///p/p/p"] = allEncrypted
	if _, err := p.Pull(deadline(t), m.ref("plain:1"), m.bundle("f")); !errors.Is(err, policy.ErrRejected) {
		t.Errorf("cached: %v", err)
	}
}

// TestAttackPlainLayerPassedOffAsEncrypted: a plain layer is in the store from
// another pull. A manifest that calls it encrypted, with a wrapped key from a
// real encrypted layer, must not get by without decrypting it.
func TestAttackPlainLayerPassedOffAsEncrypted(t *testing.T) {
	inBothModes(t, func(t *testing.T, m *machine) {
		img, broker := encryptedImage(t)
		evil := registrytest.Files(t, map[string]string{"evil": "x"})
		m.Push(t, "evil", "1", registrytest.NewImage(evil))
		kbs := resources{"kbs:///p/p/p": `{"default":[{"type":"insecureAcceptAnything"}],"transports":{}}`}
		m.deps.KeyUnwrapper, m.deps.Resources, m.deps.Config.PolicyURI = broker, kbs, "kbs:///p/p/p"
		p := m.puller(t)
		if _, err := p.Pull(deadline(t), m.ref("evil:1"), m.bundle("c")); err != nil {
			t.Fatal(err)
		}
		kbs["kbs:///p/p/p"] = allEncrypted
		evil.MediaType += "+encrypted"
		evil.Annotations = img.Layers[1].Annotations
		m.Push(t, "evil", "2", registrytest.NewImage(evil))
		if _, err := p.Pull(deadline(t), m.ref("evil:2"), m.bundle("d")); !errors.Is(err, layer.ErrDecrypt) {
			t.Errorf("Pull: %v", err)
		}
	})
}
