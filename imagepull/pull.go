package imagepull

import (
	"context"
	"errors"
	"log/slog"

	"github.com/sealpod/sealpod/podvm"
)

// Resources fetches kbs:// and kbs+<plugin>:// URIs.
type Resources interface {
	Resource(ctx context.Context, uri string) (podvm.Secret, error)
}

// KeyUnwrapper turns one annotation packet of an encrypted layer into the
// private layer options (JSON). The packet comes from the image and is hostile.
type KeyUnwrapper interface {
	UnwrapKey(ctx context.Context, packet []byte) (podvm.Secret, error)
}

// Deps is what a Puller works with.
type Deps struct {
	Config       Config
	Resources    Resources    // nil: kbs:// URIs fail
	KeyUnwrapper KeyUnwrapper // nil: encrypted layers fail
	Log          *slog.Logger // nil: slog.Default
	Host         podvm.Host
	// Plain makes rootfs a merged directory even where an overlay mount is
	// possible. It is for tests and demonstrations.
	Plain bool
}

// Puller pulls images. It is safe for concurrent use; concurrent pulls share
// layers.
type Puller struct {
	deps Deps
}

// New checks the configuration and returns a Puller. It touches neither disk
// nor network.
func New(deps Deps) (*Puller, error) {
	deps.Config = deps.Config.WithEnv(deps.Host)
	if err := deps.Config.Validate(); err != nil {
		return nil, err
	}
	if deps.Log == nil {
		deps.Log = slog.Default()
	}
	return &Puller{deps: deps}, nil
}

// Pull makes bundleDir/rootfs and bundleDir/config.json from image and returns
// the digest of the platform manifest ("sha256:<hex>"). On any error, also when
// ctx ends, nothing is left behind. Errors carry a podvm.Cause for the caller.
func (p *Puller) Pull(ctx context.Context, image, bundleDir string) (string, error) {
	return "", errors.New("not implemented yet")
}

// Close releases the store and idle connections. No Pull may be running.
func (p *Puller) Close() error { return nil }
