// Package resource fetches the secrets a guest is entitled to, by resource
// URI, from a Key Broker Service or from files baked into the image.
//
// Data path: the data hub's GetResource, its key unwrapping and the image
// puller ask here; cc_kbc gets a token from the attestation agent over its
// socket, keeps it, and sends it with each request to the KBS.
//
// Trust: URIs come from containers and images and are hostile, and so is every
// byte of the KBS until package kbs has decrypted it. The attestation agent is
// another process of this guest: trusted to hand out tokens, not to be up.
//
// It never keeps a resource: a changed or withdrawn secret takes effect with
// the next call. It verifies no token; the KBS does.
package resource

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/sealpod/sealpod/podvm"
)

// Names of the two providers, as in `[kbc] name`.
// Source: guest-components confidential-data-hub/kms/src/plugins/kbs/mod.rs at 8246e5e.
const (
	// CC asks a KBS with an attestation token.
	CC = "cc_kbc"
	// OfflineFS reads files of the guest image.
	OfflineFS = "offline_fs_kbc"
)

var (
	// ErrUnknown says that no provider has the configured name.
	ErrUnknown = errors.New("unknown key broker client")
	// ErrInit says that the provider itself cannot work at the moment: no
	// attestation agent, an unusable KBS address or certificate, an offline
	// file that cannot be parsed. What was asked for plays no part.
	ErrInit = errors.New("the resource provider cannot be used")
	// ErrNotFound says that there is no such resource.
	ErrNotFound = errors.New("no such resource")
)

// Provider fetches resources. Implementations are safe for concurrent use.
type Provider interface {
	// Resource returns the content the URI names, fetched for this call. The
	// caller owns the bytes and wipes them. Errors carry a podvm.Cause.
	Resource(ctx context.Context, uri string) (podvm.Secret, error)
}

// Source is a Provider that holds connections.
type Source interface {
	Provider
	io.Closer
}

// Config says which provider to use and what it needs.
type Config struct {
	// KBC is CC or OfflineFS.
	KBC string
	// URL is the base URL of the KBS (CC only).
	URL string
	// CertPEM is trusted beside the system's roots (CC only); may be empty.
	CertPEM []byte
	// AASocket is the path of the attestation agent's socket (CC only).
	AASocket string
	// ExtraFiles are read after the two well-known ones (OfflineFS only).
	ExtraFiles []string
	// Host is the machine the files are on.
	Host podvm.Host
	Log  *slog.Logger // nil: slog.Default

	// now is the clock; nil means time.Now.
	now func() time.Time
}

// New returns the provider cfg names. A KBS that cannot be used with cfg.URL or
// cfg.CertPEM is no error here: a guest that never asks for a secret starts
// without one, every Resource call then fails with ErrInit.
// Errors: ErrUnknown; ErrInit for an offline file that cannot be parsed.
func New(cfg Config) (Source, error) {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.now == nil {
		cfg.now = time.Now
	}
	switch cfg.KBC {
	case CC:
		return newAttested(cfg), nil
	case OfflineFS:
		return newOffline(cfg)
	}
	name := podvm.Printable(cfg.KBC, 64)
	return nil, podvm.Explain(fmt.Errorf("%w: %q", ErrUnknown, name),
		fmt.Sprintf("unknown key broker client %q: want %s or %s", name, CC, OfflineFS))
}
