package secret

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/sealpod/sealpod/cdh/internal/datakey"
	"github.com/sealpod/sealpod/cdh/internal/strict"
	"github.com/sealpod/sealpod/cdh/kms"
	"github.com/sealpod/sealpod/cdh/resource"
	"github.com/sealpod/sealpod/podvm"
)

// KMS opens key management services by name; *kms.Client is the one in use.
type KMS interface {
	Open(ctx context.Context, provider string, settings kms.Object) (kms.Provider, error)
}

// Config is what an Unsealer works with.
type Config struct {
	// Resources fetches signing keys, and the secrets of the provider kbs.
	// nil: neither can be had.
	Resources resource.Provider
	// KMS opens every other provider. nil: there is none.
	KMS KMS
	// Host is the machine with the signing keys that are files.
	Host podvm.Host
	// SkipVerification takes secrets without a look at who signed them.
	SkipVerification bool
	Log              *slog.Logger // nil: slog.Default
}

// Unsealer unseals secrets. It keeps nothing between calls and is safe for
// concurrent use.
type Unsealer struct {
	resources resource.Provider
	kms       KMS
	host      podvm.Host
	skip      bool
	log       *slog.Logger
}

// New returns an Unsealer.
func New(cfg Config) *Unsealer {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.SkipVerification {
		cfg.Log.Warn("Sealed secrets are taken whoever has signed them: the host can choose what they name")
	}
	return &Unsealer{resources: cfg.Resources, kms: cfg.KMS, host: cfg.Host, skip: cfg.SkipVerification, log: cfg.Log}
}

// Unseal returns the secret in a sealed secret, fetched for this call: raw
// bytes, which the caller wipes. Every error is one of this package's and
// carries a podvm.Cause.
func (u *Unsealer) Unseal(ctx context.Context, sealed []byte) (podvm.Secret, error) {
	start := time.Now()
	c, kid, err := u.open(ctx, sealed)
	if err != nil {
		return nil, err
	}
	var plain podvm.Secret
	if c.kind == kindVault {
		plain, err = u.vault(ctx, c)
	} else {
		plain, err = u.envelope(ctx, c)
	}
	if err != nil {
		return nil, err
	}
	u.log.Info("Secret unsealed", "type", c.kind, "provider", podvm.Printable(c.provider, 64),
		"signed_by", podvm.Printable(kid, 200), "verified", !u.skip, "dur", time.Since(start))
	return plain, nil
}

// open returns the payload, verified unless that is to be skipped, and the id of
// the key that has signed it.
func (u *Unsealer) open(ctx context.Context, sealed []byte) (c content, kid string, err error) {
	if u.skip {
		payload, err := unverifiedPayload(sealed)
		if err != nil {
			return c, "", err
		}
		c, err = parsePayload(payload)
		return c, "", err
	}
	m, err := parseMessage(sealed)
	if err != nil {
		return c, "", err
	}
	if err := u.verify(ctx, m); err != nil {
		return c, "", err
	}
	c, err = parsePayload(m.payload)
	return c, m.kid, err
}

func (u *Unsealer) vault(ctx context.Context, c content) (podvm.Secret, error) {
	plain, err := u.fetch(ctx, c)
	if err != nil {
		return nil, failed(ErrVault, err)
	}
	return plain, nil
}

// fetch gets a vault's secret. The settings and annotations mean nothing to kbs.
func (u *Unsealer) fetch(ctx context.Context, c content) (podvm.Secret, error) {
	if c.provider == providerKBS {
		return u.resource(ctx, c.name)
	}
	p, err := u.provider(ctx, c.provider, c.settings)
	if err != nil {
		return nil, err
	}
	return p.Secret(ctx, c.name, c.annotations)
}

func (u *Unsealer) envelope(ctx context.Context, c content) (podvm.Secret, error) {
	plain, err := u.decrypt(ctx, c)
	if err != nil {
		return nil, failed(ErrEnvelope, err)
	}
	return plain, nil
}

// decrypt opens an envelope; c.data is used up.
func (u *Unsealer) decrypt(ctx context.Context, c content) (podvm.Secret, error) {
	if c.provider == providerKBS {
		return nil, podvm.Explain(fmt.Errorf("%w: %s decrypts no keys", ErrProvider, providerKBS),
			"the provider kbs holds secrets but decrypts none: seal it as a vault secret")
	}
	p, err := u.provider(ctx, c.provider, c.settings)
	if err != nil {
		return nil, err
	}
	key, err := p.Decrypt(ctx, c.keyID, c.key, c.annotations)
	if err != nil {
		return nil, fmt.Errorf("decrypting the data key: %w", err)
	}
	defer key.Wipe()
	if len(key) != datakey.Size {
		return nil, podvm.Explain(fmt.Errorf("the data key has %d bytes", len(key)),
			fmt.Sprintf("the decrypted data key is not %d bytes", datakey.Size))
	}
	plain, err := datakey.Open(key, c.wrap, c.iv, c.data)
	if err != nil {
		return nil, podvm.Explain(fmt.Errorf("opening the secret: %w", err), "the secret does not open with its data key")
	}
	return plain, nil
}

// provider opens a key management service.
func (u *Unsealer) provider(ctx context.Context, name string, settings strict.Object) (kms.Provider, error) {
	if u.kms == nil {
		name = podvm.Printable(name, 64)
		return nil, podvm.Explain(fmt.Errorf("%w: %q", ErrProvider, name), fmt.Sprintf("there is no provider %q here", name))
	}
	return u.kms.Open(ctx, name, settings)
}

func (u *Unsealer) resource(ctx context.Context, uri string) (podvm.Secret, error) {
	if u.resources == nil {
		return nil, podvm.Explain(fmt.Errorf("%w: %s", ErrProvider, providerKBS), "no key broker is configured")
	}
	return u.resources.Resource(ctx, uri)
}
