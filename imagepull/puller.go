package imagepull

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/sealpod/sealpod/imagepull/registry"
	"github.com/sealpod/sealpod/imagepull/store"
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
	Observer     Observer     // nil: nobody watches
	Log          *slog.Logger // nil: slog.Default
	Host         podvm.Host
	// Plain makes rootfs a merged directory even where an overlay mount is
	// possible. It is for tests and demonstrations.
	Plain bool
	// Backoff and Stall shorten the waits of package registry in tests; 0
	// keeps them. See registry.Options.
	Backoff, Stall time.Duration
}

// Puller pulls images. It is safe for concurrent use; concurrent pulls share
// layers.
type Puller struct {
	deps     Deps
	registry *registry.Client

	turn  chan struct{} // takes one value; the field below is for whose it is
	store *store.Store  // nil until the first pull
}

// New checks the configuration and returns a Puller. It touches neither disk
// nor network. Errors wrap ErrConfig.
func New(deps Deps) (*Puller, error) {
	deps.Config = deps.Config.WithEnv(deps.Host)
	if err := deps.Config.Validate(); err != nil {
		return nil, err
	}
	if deps.Log == nil {
		deps.Log = slog.Default()
	}
	if deps.Resources == nil {
		deps.Resources = nothing{}
	}
	if deps.KeyUnwrapper == nil {
		deps.KeyUnwrapper = nothing{}
	}
	client, err := registry.NewClient(registry.Options{
		Roots: deps.Config.ExtraRoots, Proxy: (*registry.Proxy)(deps.Config.Proxy),
		Host: deps.Host, Log: deps.Log, Backoff: deps.Backoff, Stall: deps.Stall,
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	return &Puller{deps: deps, registry: client, turn: make(chan struct{}, 1)}, nil
}

// Close releases the store and idle connections; layers and mounts stay. No
// Pull may be running.
func (p *Puller) Close() error {
	p.registry.Close()
	p.turn <- struct{}{}
	defer func() { <-p.turn }()
	if p.store == nil {
		return nil
	}
	err := p.store.Close()
	p.store = nil
	return err
}

// Remove undoes a successful Pull into bundleDir, which stays; layers stay too.
func (p *Puller) Remove(ctx context.Context, bundleDir string) error {
	st, err := p.openStore(ctx)
	if err != nil {
		return err
	}
	err = os.Remove(filepath.Join(bundleDir, specFile))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, st.RemoveRootfs(ctx, bundleDir))
}

// openStore opens the store at the first pull, when the volume it may live on
// is mounted. A failure is not remembered. It may take as long as it takes to
// remove what containers left.
func (p *Puller) openStore(ctx context.Context) (*store.Store, error) {
	select {
	case p.turn <- struct{}{}:
		defer func() { <-p.turn }()
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting for the image store: %w", context.Cause(ctx))
	}
	if p.store != nil {
		return p.store, nil
	}
	st, err := store.Open(ctx, p.deps.Config.WorkDir, store.Options{Plain: p.deps.Plain, Host: p.deps.Host, Log: p.deps.Log})
	if err != nil {
		return nil, podvm.Explain(err, "the image store "+p.deps.Config.WorkDir+" cannot be used")
	}
	p.store = st
	return st, nil
}

// nothing stands in for collaborators that were not given.
type nothing struct{}

var errNotConfigured = errors.New("not configured")

// Resource implements Resources.
func (nothing) Resource(context.Context, string) (podvm.Secret, error) {
	return nil, podvm.Explain(errNotConfigured, "no source of kbs:// resources is configured")
}

// UnwrapKey implements KeyUnwrapper.
func (nothing) UnwrapKey(context.Context, []byte) (podvm.Secret, error) {
	return nil, podvm.Explain(errNotConfigured, "no key unwrapper is configured")
}
