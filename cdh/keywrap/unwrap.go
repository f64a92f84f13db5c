package keywrap

import (
	"context"
	"errors"
	"fmt"

	"github.com/sealpod/sealpod/cdh/internal/datakey"
	"github.com/sealpod/sealpod/cdh/kms"
	"github.com/sealpod/sealpod/cdh/resource"
	"github.com/sealpod/sealpod/podvm"
)

// KMS opens key management services by name; *kms.Client is the one in use.
type KMS interface {
	Open(ctx context.Context, provider string, settings kms.Object) (kms.Provider, error)
}

// Keys is where the keys that open packets are.
type Keys struct {
	// Resources fetches the KEKs of the provider kbs.
	Resources resource.Provider
	// KMS opens every other provider. nil: there is none.
	KMS KMS
}

// ErrUnwrap says that a packet does not open with the KEK it names.
var ErrUnwrap = errors.New("the wrapped key does not open")

// Unwrap opens an annotation packet and returns what was wrapped: the private
// layer options of ocicrypt as JSON. The caller wipes it. A packet of the
// provider kbs is opened here, with the KEK it names; any other is decrypted by
// the key management service it names.
//
// Errors: ErrPacket, ErrUnwrap, and those of keys.
func Unwrap(ctx context.Context, keys Keys, raw []byte) (podvm.Secret, error) {
	p, err := parsePacket(raw)
	if err != nil {
		return nil, err
	}
	if p.provider != providerKBS {
		return p.decrypt(ctx, keys.KMS)
	}
	kek, err := keys.Resources.Resource(ctx, p.kid)
	if err != nil {
		return nil, fmt.Errorf("fetching the key encryption key: %w", err)
	}
	defer kek.Wipe()
	if len(kek) != datakey.Size {
		return nil, podvm.Explain(fmt.Errorf("%w: the KEK has %d bytes", ErrUnwrap, len(kek)),
			fmt.Sprintf("the key at %s is not 32 raw bytes", podvm.Printable(p.kid, 200)))
	}
	plain, err := datakey.Open(kek, p.wrap, p.iv, p.wrapped)
	if err != nil {
		return nil, podvm.Explain(fmt.Errorf("%w: %w", ErrUnwrap, err),
			fmt.Sprintf("the wrapped key does not open with the key at %s", podvm.Printable(p.kid, 200)))
	}
	return plain, nil
}

// decrypt has the service the packet names decrypt it.
func (p packet) decrypt(ctx context.Context, services KMS) (podvm.Secret, error) {
	if services == nil {
		name := podvm.Printable(p.provider, 64)
		return nil, podvm.Explain(fmt.Errorf("%w: provider %q", ErrPacket, name),
			fmt.Sprintf("the key provider %q is not available here, only %s", name, providerKBS))
	}
	service, err := services.Open(ctx, p.provider, p.settings)
	if err != nil {
		return nil, err
	}
	plain, err := service.Decrypt(ctx, p.kid, p.wrapped, p.annotations)
	if err != nil {
		return nil, fmt.Errorf("unwrapping the key: %w", err)
	}
	return plain, nil
}
