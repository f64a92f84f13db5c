package resource

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/sealpod/sealpod/kbs"
	"github.com/sealpod/sealpod/podvm"
)

// freshToken is the age below which a token's verdict counts as current: a
// policy denial with a younger one is final. It bounds how often a container
// that keeps asking for what it may not have makes the guest attest.
const freshToken = 10 * time.Second

// errUnauthorized is upstream's text for a KBS that refuses a new token too.
var errUnauthorized = errors.New("request unauthorized")

// attested asks a KBS, proving the guest with the attestation agent's token.
type attested struct {
	client  *kbs.Client // nil when initErr says why
	initErr error
	tokens  *tokens
	log     *slog.Logger
}

func newAttested(cfg Config) *attested {
	a := &attested{log: cfg.Log, tokens: newTokens(cfg.AASocket, cfg.Log, cfg.now)}
	client, err := kbs.NewClient(kbs.ClientConfig{URL: cfg.URL, CertPEM: cfg.CertPEM, Log: cfg.Log})
	if err != nil {
		a.initErr = podvm.Explain(fmt.Errorf("%w: %w", ErrInit, err),
			"the configured KBS URL or certificate is not usable")
		cfg.Log.Warn("No resource can be fetched", "err", a.initErr)
		return a
	}
	a.client = client
	return a
}

// Resource implements Provider. A token the KBS refuses is replaced once.
// Errors: ErrInit, ErrNotFound, and those of package kbs.
func (a *attested) Resource(ctx context.Context, uri string) (podvm.Secret, error) {
	u, err := kbs.ParseURI(uri)
	if err != nil {
		return nil, err
	}
	if a.initErr != nil {
		return nil, a.initErr
	}
	tok, err := a.tokens.get(ctx, nil)
	if err != nil {
		return nil, fmt.Errorf("fetching %s: %w", u, err)
	}
	content, err := a.client.Resource(ctx, tok, u)
	if a.worthAnother(tok, err) {
		a.log.Info("Token refused, getting another", "err", err)
		if tok, err = a.tokens.get(ctx, tok); err != nil {
			return nil, fmt.Errorf("fetching %s: %w", u, err)
		}
		content, err = a.client.Resource(ctx, tok, u)
	}
	if err != nil {
		return nil, explain(u, err)
	}
	return content, nil
}

// worthAnother tells whether err may be the fault of this token and a new one
// could do better.
func (a *attested) worthAnother(tok *kbs.Token, err error) bool {
	switch {
	case !errors.Is(err, kbs.ErrUnauthorized), errors.Is(err, kbs.ErrNotFound):
		return false
	case errors.Is(err, kbs.ErrDenied):
		return a.tokens.stale(tok, freshToken)
	}
	return true
}

// explain puts err in words for whoever asked for u.
func explain(u kbs.URI, err error) error {
	err = fmt.Errorf("fetching %s: %w", u, err)
	switch {
	case errors.Is(err, kbs.ErrNotFound):
		return notFound(u, err)
	case errors.Is(err, kbs.ErrDenied):
		cause := "access denied by the resource policy at the KBS"
		if why := kbs.Reasons(err); why != "" {
			cause += ": " + why
		}
		return podvm.Explain(err, cause)
	case errors.Is(err, kbs.ErrUnauthorized):
		return podvm.Explain(fmt.Errorf("%w: %w", errUnauthorized, err), "request unauthorized: the KBS refused the token")
	}
	return err // package kbs explains the rest
}

// Close implements io.Closer.
func (a *attested) Close() error {
	err := a.tokens.close()
	if a.client != nil {
		a.client.Close()
	}
	return err
}
