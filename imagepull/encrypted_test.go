package imagepull

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/sealpod/sealpod/imagepull/layer"
	"github.com/sealpod/sealpod/imagepull/registry/registrytest"
	"github.com/sealpod/sealpod/podvm"
)

// keyBroker hands out private options for packets it knows.
type keyBroker struct {
	known map[string]podvm.Secret
	asked atomic.Int64
}

func (k *keyBroker) UnwrapKey(_ context.Context, packet []byte) (podvm.Secret, error) {
	k.asked.Add(1)
	if s, ok := k.known[string(packet)]; ok {
		return podvm.Secret(bytes.Clone(s)), nil
	}
	return nil, podvm.Explain(errors.New("unknown packet"), "the KBS refused the key")
}

// encrypt seals l the way ocicrypt does; packet stands for the wrapped key.
func encrypt(t *testing.T, l registrytest.Layer, packet string, broker *keyBroker) registrytest.Layer {
	t.Helper()
	l, broker.known[packet] = registrytest.Encrypt(t, l, packet)
	return l
}

func encryptedImage(t *testing.T) (*registrytest.Image, *keyBroker) {
	t.Helper()
	broker := &keyBroker{known: map[string]podvm.Secret{}}
	img := twoLayers(t)
	img.Layers[1] = encrypt(t, img.Layers[1], "packet one", broker)
	return registrytest.NewImage(img.Layers...), broker
}

func TestEncryptedLayer(t *testing.T) {
	inBothModes(t, func(t *testing.T, m *machine) {
		img, broker := encryptedImage(t)
		m.Push(t, "a", "1", img)
		m.deps.KeyUnwrapper = broker
		p := m.puller(t)
		for _, bundle := range []string{"c1", "c2"} {
			if _, err := p.Pull(deadline(t), m.ref("a:1"), m.bundle(bundle)); err != nil {
				t.Fatal(err)
			}
			wantFiles(t, filepath.Join(m.bundle(bundle), "rootfs"), map[string]string{"etc/name": "top"})
		}
		if n := broker.asked.Load(); n != 1 {
			t.Errorf("the key was asked for %d times", n)
		}
	})
}

// TestEncryptedLayerThatDoesNotOpen: whatever the reason, users read the same
// sentence, and a refused key costs no download. Where the manifest is pushed
// again, digest and size fit, as an attacker would have it who owns the registry
// of an unsigned image.
func TestEncryptedLayerThatDoesNotOpen(t *testing.T) {
	const key, pub = "org.opencontainers.image.enc.keys.provider.attestation-agent", "org.opencontainers.image.enc.pubopts"
	pushedAgain := func(change func(blob []byte) []byte) func(*testing.T, *machine, *registrytest.Image, *keyBroker) {
		return func(t *testing.T, m *machine, img *registrytest.Image, _ *keyBroker) {
			l := img.Layers[1]
			l.Blob = change(bytes.Clone(l.Blob))
			m.Push(t, "a", "1", registrytest.NewImage(img.Layers[0], l))
		}
	}
	flipped := func(at func(n int) int) func([]byte) []byte {
		return func(b []byte) []byte { b[at(len(b))] ^= 1; return b }
	}
	swapped := func(annotation string) func(*testing.T, *machine, *registrytest.Image, *keyBroker) {
		return func(t *testing.T, m *machine, img *registrytest.Image, broker *keyBroker) {
			other := encrypt(t, twoLayers(t).Layers[1], "packet two", broker)
			img.Layers[1].Annotations[annotation] = other.Annotations[annotation]
			m.Push(t, "a", "1", registrytest.NewImage(img.Layers...))
		}
	}
	tests := map[string]func(t *testing.T, m *machine, img *registrytest.Image, broker *keyBroker){
		"the key is refused": func(_ *testing.T, _ *machine, _ *registrytest.Image, broker *keyBroker) { clear(broker.known) },
		"the key is another": func(_ *testing.T, _ *machine, _ *registrytest.Image, broker *keyBroker) {
			key := broker.known["packet one"]
			broker.known["packet one"] = bytes.Replace(key, []byte(`"symkey":"`), []byte(`"symkey":"AAAA`), 1)
		},
		"the nonce is another": func(t *testing.T, _ *machine, _ *registrytest.Image, broker *keyBroker) {
			var p map[string]any
			if err := json.Unmarshal(broker.known["packet one"], &p); err != nil {
				t.Fatal(err)
			}
			p["cipheroptions"] = map[string][]byte{"nonce": make([]byte, 16)}
			broker.known["packet one"] = registrytest.JSON(t, p)
		},
		"the ciphertext is changed": func(_ *testing.T, m *machine, img *registrytest.Image, _ *keyBroker) {
			b := bytes.Clone(img.Layers[1].Blob)
			b[len(b)/2] ^= 1
			m.Hook(hooked(registrytest.Digest(img.Layers[1].Blob), raw(b, len(b))))
		},
		"its first bit is flipped, pushed again": pushedAgain(flipped(func(int) int { return 0 })),
		"a bit in its middle, pushed again":      pushedAgain(flipped(func(n int) int { return n / 2 })),
		"its last bit, pushed again":             pushedAgain(flipped(func(n int) int { return n - 1 })),
		"truncated, pushed again":                pushedAgain(func(b []byte) []byte { return b[:len(b)-1] }),
		"extended, pushed again":                 pushedAgain(func(b []byte) []byte { return append(b, 0) }),
		"another layer's HMAC, pushed again":     swapped(pub),
		"another layer's key, pushed again":      swapped(key),
	}
	for name, change := range tests {
		t.Run(name, func(t *testing.T) {
			inBothModes(t, func(t *testing.T, m *machine) {
				img, broker := encryptedImage(t)
				m.Push(t, "a", "1", img)
				m.deps.KeyUnwrapper = broker
				change(t, m, img, broker)
				unharmed, p := m.guarded(t), m.puller(t)
				_, err := p.Pull(deadline(t), m.ref("a:1"), m.bundle("c"))
				if !errors.Is(err, layer.ErrDecrypt) {
					t.Errorf("Pull: %v", err)
				}
				wantCause(t, err, "Failed to decrypt the image layer, please ensure that the decryption key is placed and correct")
				unharmed(p)
				if n := m.Seen(http.MethodGet + " /v2/a/blobs/" + registrytest.Digest(img.Layers[0].Blob)); n > 0 && len(broker.known) == 0 {
					t.Error("a layer was fetched though a key was refused")
				}
			})
		})
	}
}

// crashing panics on every packet.
type crashing struct{}

func (crashing) UnwrapKey(context.Context, []byte) (podvm.Secret, error) { panic("boom") }

// TestPanicOnAPacketFailsThePullAlone: packets come from the image and are
// parsed in goroutines whose panic would end every container's data hub.
func TestPanicOnAPacketFailsThePullAlone(t *testing.T) {
	m := newMachine(t)
	img, _ := encryptedImage(t)
	m.Push(t, "a", "1", img)
	m.deps.KeyUnwrapper = crashing{}
	_, err := m.puller(t).Pull(deadline(t), m.ref("a:1"), m.bundle("c"))
	if err == nil || !strings.Contains(err.Error(), "boom") {
		t.Errorf("Pull: %v", err)
	}
	wantCause(t, err, "Failed to pull image")
	m.wantNothingLeft(t)
}
