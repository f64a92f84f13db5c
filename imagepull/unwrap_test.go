package imagepull

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/ttrpc"
	"github.com/containers/ocicrypt/config"
	"github.com/containers/ocicrypt/keywrap/jwe"

	"github.com/sealpod/sealpod/api/keyprovider"
	"github.com/sealpod/sealpod/imagepull/layer"
	"github.com/sealpod/sealpod/imagepull/registry/registrytest"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/rpc"
)

const jweAnnotation = "org.opencontainers.image.enc.keys.jwe"

// pemPair is a private key and its public half, in PEM.
func pemPair(t testing.TB, private, public any) (string, []byte) {
	t.Helper()
	a, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	b, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: a})), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: b})
}

// forJWE exchanges the provider's packet of an encrypted layer for a JWE.
func forJWE(t testing.TB, l registrytest.Layer, packet string, broker *keyBroker, public []byte) registrytest.Layer {
	t.Helper()
	raw, err := jwe.NewKeyWrapper().WrapKeys(&config.EncryptConfig{Parameters: map[string][][]byte{"pubkeys": {public}}}, broker.known[packet])
	if err != nil {
		t.Fatal(err)
	}
	l.Annotations = map[string]string{
		"org.opencontainers.image.enc.pubopts": l.Annotations["org.opencontainers.image.enc.pubopts"],
		jweAnnotation:                          base64.StdEncoding.EncodeToString(raw),
	}
	return l
}

// TestSeveralKeysAndPartlyEncrypted pulls an image of a plain layer, one whose
// key the broker has, one for an RSA key in a file and one for an EC key at the
// key broker.
func TestSeveralKeysAndPartlyEncrypted(t *testing.T) {
	m := newMachine(t)
	r, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	e, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, rsaPublic := pemPair(t, r, &r.PublicKey)
	ecKey, ecPublic := pemPair(t, e, &e.PublicKey)
	inFile := filepath.Join(t.TempDir(), "key.pem")
	if err := os.WriteFile(inFile, []byte(rsaKey), 0o600); err != nil {
		t.Fatal(err)
	}
	broker := &keyBroker{known: map[string]podvm.Secret{}}
	plain := func(name string) registrytest.Layer {
		return registrytest.Files(t, map[string]string{name: name})
	}
	img := registrytest.NewImage(plain("a"),
		encrypt(t, plain("b"), "b", broker),
		forJWE(t, encrypt(t, plain("c"), "c", broker), "c", broker, rsaPublic),
		forJWE(t, encrypt(t, plain("d"), "d", broker), "d", broker, ecPublic))
	m.Push(t, "a", "1", img)
	m.deps.KeyUnwrapper = broker
	m.deps.Resources = resources{"kbs:///acme/key/ec": ecKey}
	m.deps.Config.DecryptionKeys = []string{"kbs:///acme/key/ec", "file://" + inFile}
	if _, err := m.puller(t).Pull(deadline(t), m.ref("a:1"), m.bundle("c")); err != nil {
		t.Fatal(err)
	}
	wantFiles(t, filepath.Join(m.bundle("c"), "rootfs"), map[string]string{"a": "a", "b": "b", "c": "c", "d": "d"})

	// Without the key, whether none is named, it is another or it is gone.
	for name, keys := range map[string][]string{"none": nil, "another": {"kbs:///acme/key/ec"}, "gone": {inFile + ".gone"}} {
		m := newMachine(t)
		m.deps.KeyUnwrapper, m.deps.Resources, m.deps.Config.DecryptionKeys = broker, resources{"kbs:///acme/key/ec": ecKey}, keys
		m.Push(t, "a", "1", registrytest.NewImage(img.Layers[0], img.Layers[2]))
		_, err := m.puller(t).Pull(deadline(t), m.ref("a:1"), m.bundle("c"))
		if !errors.Is(err, layer.ErrDecrypt) {
			t.Errorf("%s: %v", name, err)
		}
		wantCause(t, err, "Failed to decrypt the image layer, please ensure that the decryption key is placed and correct")
		m.wantNothingLeft(t)
	}
}

// operatorsProvider answers as the Rust peer does, or as Go does.
type operatorsProvider struct {
	broker *keyBroker
	rust   bool
	asked  []map[string]any
}

func (o *operatorsProvider) WrapKey(context.Context, *keyprovider.KeyProviderKeyWrapProtocolInput) (*keyprovider.KeyProviderKeyWrapProtocolOutput, error) {
	return nil, errors.New("not here")
}

func (o *operatorsProvider) UnWrapKey(ctx context.Context, in *keyprovider.KeyProviderKeyWrapProtocolInput) (*keyprovider.KeyProviderKeyWrapProtocolOutput, error) {
	var req map[string]any
	if err := json.Unmarshal(in.GetKeyProviderKeyWrapProtocolInput(), &req); err != nil {
		return nil, err
	}
	o.asked = append(o.asked, req)
	packet, err := base64.StdEncoding.DecodeString(req["keyunwrapparams"].(map[string]any)["annotation"].(string))
	if err != nil {
		return nil, err
	}
	options, err := o.broker.UnwrapKey(ctx, packet)
	if err != nil {
		return nil, err
	}
	answer := any([]byte(options))
	if o.rust {
		list := []int{}
		for _, b := range options {
			list = append(list, int(b))
		}
		answer = list
	}
	raw, err := json.Marshal(map[string]any{"keyunwrapresults": map[string]any{"optsdata": answer}})
	return &keyprovider.KeyProviderKeyWrapProtocolOutput{KeyProviderKeyWrapProtocolOutput: raw}, err
}

// serveProvider listens on a socket until the test ends.
func serveProvider(t *testing.T, o *operatorsProvider) (socket string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "kp") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	socket = filepath.Join(dir, "s")
	ctx, cancel := context.WithCancel(context.Background())
	l, err := rpc.Listen(ctx, socket)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		done <- rpc.Serve(ctx, l, newMachine(t).deps.Log, func(s *ttrpc.Server) { keyprovider.RegisterKeyProviderServiceService(s, o) })
	}()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-done, os.RemoveAll(dir)); err != nil {
			t.Error(err)
		}
	})
	return socket
}

// withProviders gives the machine a key provider configuration.
func (m *machine) withProviders(t testing.TB, text string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ocicrypt.json")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	m.deps.Host.LookupEnv = func(name string) (string, bool) {
		if name != providersEnv {
			return "", false
		}
		return path, true
	}
}

func TestOperatorsKeyProviderIsAsked(t *testing.T) {
	for name, rust := range map[string]bool{"answering as Rust does": true, "answering as Go does": false} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			img, broker := encryptedImage(t)
			m.Push(t, "a", "1", img)
			o := &operatorsProvider{broker: broker, rust: rust}
			m.withProviders(t, `{"key-providers":{"a":{"cmd":{"path":"/bin/false"}},"b":{"ttrpc":"unix://`+serveProvider(t, o)+`"}}}`)
			m.deps.KeyUnwrapper = crashing{} // not to be asked
			if _, err := m.puller(t).Pull(deadline(t), m.ref("a:1"), m.bundle("c")); err != nil {
				t.Fatal(err)
			}
			if len(o.asked) != 1 || o.asked[0]["op"] != "keyunwrap" || o.asked[0]["keywrapparams"] == nil {
				t.Errorf("asked %v", o.asked)
			}
		})
	}
}

func TestKeyProviderConfiguration(t *testing.T) {
	own := `"ttrpc":"unix://` + podvm.CDHSocket + `"`
	tests := map[string]struct {
		text  string
		cause string // "" if the key is opened in this process
	}{
		"the data hub itself":           {`{"key-providers":{"attestation-agent":{` + own + `}}}`, ""},
		"the data hub and a command":    {`{"key-providers":{"a":{"cmd":{"path":"x"}},"b":{` + own + `}}}`, ""},
		"a command only":                {`{"key-providers":{"a":{"cmd":{"path":"x","args":[]}}}}`, `key provider "a" is of kind ["cmd"], only ttrpc is supported`},
		"gRPC only":                     {`{"key-providers":{"a":{"grpc":"localhost:1"}}}`, `of kind ["grpc"]`},
		"none":                          {`{"key-providers":{}}`, "no key provider in it"},
		"another file":                  {`[]`, "decoding JSON"},
		"an address that is not a path": {`{"key-providers":{"a":{"ttrpc":"tcp://x"}}}`, "want unix://PATH"},
		"too long":                      {strings.Repeat(" ", maxProviders+1), "is not usable"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			img, broker := encryptedImage(t)
			m.Push(t, "a", "1", img)
			m.deps.KeyUnwrapper = broker
			m.withProviders(t, tt.text)
			_, err := m.puller(t).Pull(deadline(t), m.ref("a:1"), m.bundle("c"))
			if tt.cause == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if !errors.Is(err, layer.ErrDecrypt) {
				t.Errorf("Pull: %v", err)
			}
			wantCause(t, err, "Failed to decrypt the image layer", tt.cause)
		})
	}
}

func TestRefusingKeyProvider(t *testing.T) {
	m := newMachine(t)
	img, broker := encryptedImage(t)
	m.Push(t, "a", "1", img)
	m.withProviders(t, `{"key-providers":{"b":{"ttrpc":"unix://`+serveProvider(t, &operatorsProvider{broker: broker})+`"}}}`)
	clear(broker.known)
	_, err := m.puller(t).Pull(deadline(t), m.ref("a:1"), m.bundle("c"))
	wantCause(t, err, "Failed to decrypt the image layer", "did not open the wrapped key")
}

func FuzzUnwrapAnswer(f *testing.F) {
	f.Add([]byte(`{"keyunwrapresults":{"optsdata":[123,34]}}`))
	f.Add([]byte(`{"keyunwrapresults":{"optsdata":"e30="}}`))
	f.Add([]byte(`{"keyunwrapresults":null}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		options, err := unwrapAnswer(bytes.Clone(raw))
		if (err == nil) != (len(options) > 0) {
			t.Errorf("%q, %v", options, err)
		}
	})
}

func FuzzParseProviders(f *testing.F) {
	f.Add([]byte(`{"key-providers":{"a":{"ttrpc":"unix:///x"}}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if sockets, err := parseProviders(raw); (err == nil) != (len(sockets) > 0) {
			t.Errorf("%q, %v", sockets, err)
		}
	})
}
