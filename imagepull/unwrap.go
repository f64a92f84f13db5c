package imagepull

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"time"

	"github.com/containerd/ttrpc"

	"github.com/sealpod/sealpod/api/keyprovider"
	"github.com/sealpod/sealpod/imagepull/layer"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/rpc"
)

// providersEnv names ocicrypt's key provider configuration.
// Source: containers/ocicrypt v1.3.2 config/keyprovider-config/config.go.
const providersEnv = "OCICRYPT_KEYPROVIDER_CONFIG"

const (
	maxProviders   = 64 << 10 // bytes of that file
	maxProviderKey = 256 << 10
	maxPrivateKey  = 64 << 10
	providerWait   = 10 * time.Second // for a socket to appear
	providerTime   = 50 * time.Second // for an answer, as upstream
)

// unwrappers are who opens the wrapped keys of layers.
func (p *Puller) unwrappers() layer.Unwrappers {
	u := layer.Unwrappers{Provider: providers{p}}
	if len(p.deps.Config.DecryptionKeys) > 0 {
		u.JWE = decryptionKeys{p}
	}
	return u
}

// decryptionKeys opens JWEs with the private keys of the configuration.
type decryptionKeys struct{ *Puller }

// UnwrapKey implements layer.Unwrapper.
func (p decryptionKeys) UnwrapKey(ctx context.Context, packet []byte) (podvm.Secret, error) {
	var failed []error
	for _, uri := range p.deps.Config.DecryptionKeys {
		private, err := p.read(ctx, uri, maxPrivateKey)
		if err != nil {
			failed = append(failed, err)
			continue
		}
		options, err := layer.OpenJWE(packet, private)
		private.Wipe()
		if err == nil {
			return options, nil
		}
		failed = append(failed, podvm.Explain(err, "the wrapped key does not open with the key at "+podvm.Printable(uri, 256)))
	}
	return nil, errors.Join(failed...)
}

// providers opens packets of the key provider protocol: in this process, unless
// the operator's key provider configuration names other sockets.
type providers struct{ *Puller }

// UnwrapKey implements layer.Unwrapper. The configuration is read each time;
// that it does not exist is no error, as with ocicrypt.
func (p providers) UnwrapKey(ctx context.Context, packet []byte) (podvm.Secret, error) {
	path := p.deps.Host.Getenv(providersEnv)
	if path == "" {
		return p.deps.KeyUnwrapper.UnwrapKey(ctx, packet)
	}
	raw, err := podvm.ReadFileMax(path, maxProviders)
	if errors.Is(err, fs.ErrNotExist) {
		return p.deps.KeyUnwrapper.UnwrapKey(ctx, packet)
	}
	var sockets []string
	if err == nil {
		sockets, err = parseProviders(raw)
	}
	if err != nil {
		return nil, podvm.Explain(fmt.Errorf("%w: reading %s: %w", ErrConfig, path, err),
			"the key provider configuration "+podvm.Printable(path, 200)+" is not usable: "+podvm.Printable(err.Error(), 200))
	}
	var failed []error
	for _, socket := range sockets {
		options, err := p.askProvider(ctx, socket, packet)
		if err == nil {
			return options, nil
		}
		failed = append(failed, err)
	}
	return nil, errors.Join(failed...)
}

// parseProviders returns the sockets of the providers, by their names. Kinds
// other than ttrpc are passed over; where there are no others they are an error.
func parseProviders(raw []byte) (sockets []string, err error) {
	var conf struct {
		Providers map[string]map[string]json.RawMessage `json:"key-providers"`
	}
	if err := json.Unmarshal(raw, &conf); err != nil {
		return nil, fmt.Errorf("decoding JSON: %w", err)
	}
	other := ""
	for _, name := range slices.Sorted(maps.Keys(conf.Providers)) {
		attrs := conf.Providers[name]
		address, ok := attrs["ttrpc"]
		if !ok {
			other = fmt.Sprintf("key provider %q is of kind %q, only ttrpc is supported", name, slices.Sorted(maps.Keys(attrs)))
			continue
		}
		var text string
		if err := json.Unmarshal(address, &text); err != nil {
			return nil, fmt.Errorf("key provider %q: ttrpc is not text", name)
		}
		socket, err := rpc.SocketPath(text)
		if err != nil {
			return nil, fmt.Errorf("key provider %q: %w", name, err)
		}
		sockets = append(sockets, socket)
	}
	switch {
	case len(sockets) > 0:
		return sockets, nil
	case other != "":
		return nil, errors.New(other)
	}
	return nil, errors.New("no key provider in it")
}

// askProvider has one provider open the packet. The data hub's own socket means
// this process.
func (p providers) askProvider(ctx context.Context, socket string, packet []byte) (podvm.Secret, error) {
	if socket == podvm.CDHSocket {
		return p.deps.KeyUnwrapper.UnwrapKey(ctx, packet)
	}
	return SocketKeys(socket).UnwrapKey(ctx, packet)
}

// SocketKeys is the path of the socket of a key provider, such as the data hub's of
// another process. It implements layer.Unwrapper.
type SocketKeys string

// UnwrapKey implements layer.Unwrapper. It waits 10 s for a socket that is not
// there yet, and 50 s in all for the answer.
func (socket SocketKeys) UnwrapKey(ctx context.Context, packet []byte) (_ podvm.Secret, err error) {
	request, err := unwrapRequest(packet)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, providerTime)
	defer cancel()
	c := rpc.NewClient(string(socket), providerWait)
	defer func() { err = errors.Join(err, c.Close()) }()
	var answer podvm.Secret
	err = c.Do(ctx, func(c *ttrpc.Client) error {
		resp, err := keyprovider.NewKeyProviderServiceClient(c).UnWrapKey(ctx,
			&keyprovider.KeyProviderKeyWrapProtocolInput{KeyProviderKeyWrapProtocolInput: request})
		answer = resp.GetKeyProviderKeyWrapProtocolOutput()
		return err
	})
	if err != nil {
		return nil, podvm.Explain(fmt.Errorf("asking the key provider at %s: %w", string(socket), err),
			"the key provider at "+podvm.Printable(string(socket), 200)+" did not open the wrapped key")
	}
	defer answer.Wipe()
	return unwrapAnswer(answer)
}

// unwrapRequest is the protocol's question. Upstream's Rust peer wants every
// member, and maps that are empty instead of null.
// Source: guest-components ocicrypt-rs/src/keywrap/keyprovider/mod.rs at 8246e5e.
func unwrapRequest(packet []byte) ([]byte, error) {
	type object = map[string]any
	return json.Marshal(object{
		"op":              "keyunwrap",
		"keywrapparams":   object{"ec": nil, "optsdata": nil},
		"keyunwrapparams": object{"dc": object{"Parameters": object{}}, "annotation": packet},
	})
}

// unwrapAnswer reads the private layer options, which are an array of integers
// from Rust and base64 from Go.
func unwrapAnswer(answer podvm.Secret) (podvm.Secret, error) {
	var out struct {
		Results struct {
			Options []byte `json:"optsdata"`
		} `json:"keyunwrapresults"`
	}
	if len(answer) > maxProviderKey || json.Unmarshal(answer, &out) != nil || len(out.Results.Options) == 0 {
		podvm.Secret(out.Results.Options).Wipe()
		const why = "the key provider's answer is not of the key provider protocol"
		return nil, podvm.Explain(errors.New(why), why)
	}
	return out.Results.Options, nil
}
