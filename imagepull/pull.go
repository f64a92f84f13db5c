package imagepull

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sealpod/sealpod/imagepull/layer"
	"github.com/sealpod/sealpod/imagepull/policy"
	"github.com/sealpod/sealpod/imagepull/registry"
	"github.com/sealpod/sealpod/imagepull/store"
	"github.com/sealpod/sealpod/podvm"
)

// maxUnwraps is how many layer keys of one image are asked for at a time.
const maxUnwraps = 8

// Pull makes bundleDir/rootfs and bundleDir/config.json from image and returns
// the digest of the platform manifest ("sha256:<hex>"). On any error, also when
// ctx ends, nothing is left behind; layers that were complete before stay.
//
// The registry rules may offer several places for one image; the first that
// delivers wins. Policy, credentials and signatures are looked up under the
// name of the place, not under the one asked for.
//
// Errors carry a podvm.Cause that starts with "Failed to pull image". Their
// chain holds the sentinels of packages registry, policy, layer and store.
func (p *Puller) Pull(ctx context.Context, image, bundleDir string) (string, error) {
	log := p.deps.Log.With("image", podvm.Printable(image, 512))
	progress := newProgress(image)
	if p.deps.Observer != nil {
		p.deps.Observer.PullBegins(progress)
	}
	digest, err := p.pull(ctx, log, progress, image, bundleDir)
	if err != nil {
		err = failure(image, err)
	}
	progress.end()
	if p.deps.Observer != nil {
		p.deps.Observer.PullEnds(progress, err)
	}
	progress.summarize(log, err)
	return digest, err
}

func (p *Puller) pull(ctx context.Context, log *slog.Logger, progress *Progress, image, bundleDir string) (string, error) {
	ref, err := registry.ParseReference(image)
	if err != nil {
		return "", err
	}
	st, err := p.openStore(ctx)
	if err != nil {
		return "", err
	}
	set, err := p.settings(ctx, log)
	if err != nil {
		return "", err
	}
	candidates, err := set.rules.Candidates(ref)
	if err != nil {
		return "", err
	}
	var failed attempts
	for _, c := range candidates {
		progress.at(c.Reference.String())
		one := &pulling{Puller: p, progress: progress, set: set, store: st, bundle: bundleDir, log: log.With("from", c.Reference.String())}
		digest, err := one.run(ctx, c)
		if err == nil {
			return digest, nil
		}
		if len(candidates) > 1 {
			log.Warn("Candidate failed", "from", c.Reference.String(), "err", err)
		}
		failed = append(failed, attempt{c.Reference.String(), err})
		if ctx.Err() != nil {
			break
		}
	}
	return "", failed
}

// pulling is one attempt to pull an image from one place.
type pulling struct {
	*Puller
	progress *Progress
	set      *settings
	store    *store.Store
	bundle   string
	log      *slog.Logger
	repo     *registry.Repository
	space    space
}

// run is the pipeline.
func (p *pulling) run(ctx context.Context, c registry.Candidate) (_ string, err error) {
	p.progress.enter(PhaseResolve)
	img, err := p.resolve(ctx, c)
	if err != nil {
		return "", err
	}
	p.progress.enter(PhasePolicy)
	if err := p.checkPolicy(ctx, img); err != nil {
		return "", err
	}
	lease := p.store.Begin()
	defer func() { err = errors.Join(err, lease.Release()) }()
	layers := layersOf(img)
	defer layers.wipe()
	p.progress.plan(p.store, img.Digest, layers)
	if err := p.checkSpace(layers); err != nil {
		return "", err
	}
	defer func() { err = p.space.explain(err) }()
	p.progress.enter(PhaseKeys)
	if err := p.unwrapKeys(ctx, layers); err != nil {
		return "", err
	}
	p.progress.enter(PhaseLayers)
	if err := p.applyLayers(ctx, lease, layers); err != nil {
		return "", err
	}
	p.progress.enter(PhaseMount)
	if err := p.assemble(ctx, lease, img, layers); err != nil {
		return "", err
	}
	if err := lease.Keep(); err != nil {
		return "", err
	}
	return img.Digest, nil
}

// resolve logs in and fetches manifest and configuration, each bound by digest
// to the one before.
func (p *pulling) resolve(ctx context.Context, c registry.Candidate) (*registry.Image, error) {
	start := time.Now()
	cred, err := p.set.auth.For(c.Reference)
	if err != nil {
		return nil, podvm.Explain(err, "the registry credentials file is not usable for "+c.Reference.Registry)
	}
	defer cred.Password.Wipe()
	if p.repo, err = p.registry.Open(ctx, c, cred); err != nil {
		return nil, err
	}
	img, err := p.repo.Resolve(ctx)
	if err != nil {
		return nil, err
	}
	p.log.Info("Manifest resolved", "digest", img.Digest, "top", img.TopDigest, "layers", len(img.Layers), "dur", time.Since(start))
	return img, nil
}

// checkPolicy asks the policy about exactly the bytes that were resolved.
func (p *pulling) checkPolicy(ctx context.Context, img *registry.Image) error {
	if p.set.policy == nil {
		p.log.Warn("No image security policy is configured, every image is allowed")
		return nil
	}
	start := time.Now()
	decision, err := p.set.policy.Check(ctx, policyImage(img), p.sources(img))
	p.log.Info("Policy decided", "allowed", decision.Allowed, "rule", decision.Scope, "requirement", decision.Requirement,
		"key", decision.Key, "dur", time.Since(start))
	for _, w := range decision.Warnings {
		p.log.Warn("Signature accepted, but", "what", w)
	}
	return err
}

// policyImage is img as the policy sees it.
func policyImage(img *registry.Image) policy.Image {
	out := policy.Image{
		Registry:       img.Reference.Registry,
		Repository:     img.Reference.Repository,
		Tag:            img.Reference.Tag,
		Digest:         img.Reference.Digest,
		TopDigest:      img.TopDigest,
		PlatformDigest: img.Digest,
	}
	for _, l := range img.Layers {
		out.Layers = append(out.Layers, policy.Layer{Digest: l.Digest, Encrypted: encrypted(l)})
	}
	return out
}

// sources fetches what the policy may ask for about img.
func (p *pulling) sources(img *registry.Image) policy.Sources {
	return policy.Sources{
		Signatures: func(ctx context.Context) ([]policy.Signature, error) { return p.repo.Signatures(ctx, img.TopDigest) },
		Bundles:    func(ctx context.Context) ([]policy.Document, error) { return p.repo.Bundles(ctx, img.TopDigest) },
		Lookaside: func(ctx context.Context) ([]policy.Document, error) {
			return p.lookaside(ctx, p.log, policyImage(img))
		},
		Key: p.policyKey,
	}
}

// encrypted says whether the pull fails unless l decrypts. A layer of an
// unknown type fails anyway.
func encrypted(l registry.Layer) bool {
	yes, err := layer.Encrypted(l.MediaType)
	return err == nil && yes
}

// pullLayer is a layer on its way. Its key is unwrapped at most once.
type pullLayer struct {
	desc registry.Descriptor
	spec layer.Spec
	id   store.ID

	once   sync.Once
	key    *layer.Key // nil for a layer that is not encrypted
	keyErr error
}

type pullLayers []*pullLayer

func layersOf(img *registry.Image) pullLayers {
	list := make(pullLayers, 0, len(img.Layers))
	for _, l := range img.Layers {
		list = append(list, &pullLayer{
			desc: l.Descriptor,
			id:   store.ID{Blob: l.Digest, DiffID: l.DiffID, Encrypted: encrypted(l)},
			spec: layer.Spec{MediaType: l.MediaType, Digest: l.Digest, Size: l.Size, DiffID: l.DiffID, Annotations: l.Annotations},
		})
	}
	return list
}

func (ls pullLayers) wipe() {
	for _, l := range ls {
		l.key.Wipe()
	}
}

func (l *pullLayer) unwrap(ctx context.Context, u layer.Unwrappers) (*layer.Key, error) {
	l.once.Do(func() {
		l.keyErr = layer.Contain(func() (err error) {
			l.key, err = layer.UnwrapKey(ctx, l.spec, u)
			return err
		})
	})
	return l.key, l.keyErr
}

// unwrapKeys gets the keys of all layers that have to be fetched, so that a
// key that is refused costs no download.
func (p *pulling) unwrapKeys(ctx context.Context, layers pullLayers) error {
	start := time.Now()
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(maxUnwraps)
	for _, l := range layers {
		if p.store.Has(l.id) {
			continue
		}
		g.Go(func() error {
			_, err := l.unwrap(gctx, p.unwrappers())
			return explainLayer(err, l.spec.Digest)
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	encrypted := 0
	for _, l := range layers {
		if l.key != nil {
			encrypted++
		}
	}
	if encrypted > 0 {
		p.log.Info("Layer keys unwrapped", "count", encrypted, "dur", time.Since(start))
	}
	return nil
}

// applyLayers brings all layers into the store, several at a time.
func (p *pulling) applyLayers(ctx context.Context, lease *store.Lease, layers pullLayers) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(p.deps.Config.ConcurrentLayers)
	for _, l := range layers {
		g.Go(func() error {
			start := time.Now()
			var stats layer.Stats
			cached, err := lease.Layer(ctx, l.id, func(ctx context.Context, dir string) error {
				return layer.Contain(func() (err error) {
					stats, err = p.fetch(ctx, l, dir)
					return err
				})
			})
			if err != nil {
				return explainLayer(err, l.spec.Digest)
			}
			p.progress.layerDone(l.id, cached)
			p.log.Info("Layer ready", "layer", l.spec.Digest, "cached", cached, "encrypted", l.key != nil,
				"bytes", stats.BlobBytes, "unpacked", stats.Bytes, "dur", time.Since(start))
			return nil
		})
	}
	return g.Wait()
}

// fetch streams one layer from the registry into dir and returns nil only if
// it is what manifest and configuration promise.
func (p *pulling) fetch(ctx context.Context, l *pullLayer, dir string) (_ layer.Stats, err error) {
	key, err := l.unwrap(ctx, p.unwrappers())
	if err != nil {
		return layer.Stats{}, err
	}
	var blob io.ReadCloser
	if blob, err = p.repo.Blob(ctx, l.desc); err != nil {
		return layer.Stats{}, err
	}
	defer blob.Close() //nolint:errcheck // read to its end or given up
	room, err := p.store.Free()
	if err != nil {
		return layer.Stats{}, err
	}
	return layer.Apply(ctx, p.progress.counted(l.id, blob), l.spec, key, dir, layer.Options{Mode: p.store.Mode(), Room: room, Log: p.log})
}

// assemble makes the bundle. Writing config.json is the last thing that can
// fail, so an existing one is replaced only by a pull that succeeds.
func (p *pulling) assemble(ctx context.Context, lease *store.Lease, img *registry.Image, layers pullLayers) error {
	start := time.Now()
	ids := make([]store.ID, 0, len(layers))
	for _, l := range layers {
		ids = append(ids, l.id)
	}
	if err := lease.Rootfs(ctx, p.bundle, ids); err != nil {
		return fmt.Errorf("making the rootfs: %w", err)
	}
	if ctx.Err() != nil {
		return fmt.Errorf("making the bundle: %w", context.Cause(ctx))
	}
	if err := writeSpec(p.bundle, &img.Config); err != nil {
		return fmt.Errorf("writing config.json: %w", err)
	}
	p.log.Info("Rootfs ready", "layers", len(layers), "dur", time.Since(start))
	return nil
}

// attempt is one place that was tried.
type attempt struct {
	ref string
	err error
}

// attempts is the error of a pull for which every place was tried.
type attempts []attempt

func (a attempts) Error() string { return a.text(func(err error) string { return err.Error() }) }

// Unwrap gives access to the error of each attempt.
func (a attempts) Unwrap() []error {
	errs := make([]error, 0, len(a))
	for _, one := range a {
		errs = append(errs, one.err)
	}
	return errs
}

func (a attempts) text(of func(error) string) string {
	lines := make([]string, 0, len(a))
	for _, one := range a {
		lines = append(lines, fmt.Sprintf("image: %s, error: %s", one.ref, of(one.err)))
	}
	return strings.Join(lines, "\n")
}

// failure attaches the sentence that leaves the guest: the image as asked for,
// and why, place by place where there were several.
func failure(image string, err error) error {
	cause := safeCause(err)
	var tried attempts
	if errors.As(err, &tried) {
		cause = "\n" + tried.text(safeCause)
	}
	return podvm.Explain(err, fmt.Sprintf("Failed to pull image %s: %s", podvm.Printable(image, 512), cause))
}

// safeCause is what may be told about err.
func safeCause(err error) string {
	switch c := podvm.Cause(err); {
	case c != "":
		return c
	case errors.Is(err, context.DeadlineExceeded):
		return "the deadline passed"
	case errors.Is(err, context.Canceled):
		return "the pull was cancelled"
	}
	return "internal error, see the journal"
}
