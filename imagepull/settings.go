package imagepull

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/sealpod/sealpod/imagepull/layer"
	"github.com/sealpod/sealpod/imagepull/policy"
	"github.com/sealpod/sealpod/imagepull/policy/lookaside"
	"github.com/sealpod/sealpod/imagepull/registry"
	"github.com/sealpod/sealpod/podvm"
)

// Caps on what the configuration points to, in bytes.
const (
	maxAuthFile  = 1 << 20
	maxRulesFile = 1 << 20
	maxPolicy    = 1 << 20
)

// settings is what the configuration points to, as of one pull. It is fetched
// anew each time, so a change in the KBS takes effect with the next pull, and
// kept in memory only.
type settings struct {
	rules  *registry.Rules
	auth   *registry.AuthFile
	policy *policy.Policy // nil: everything is allowed
}

func (p *Puller) settings(ctx context.Context, log *slog.Logger) (*settings, error) {
	s := &settings{rules: &registry.Rules{}, auth: &registry.AuthFile{}}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return p.loadRules(ctx, log, s) })
	g.Go(func() error { return p.loadAuth(ctx, s) })
	g.Go(func() error { return p.loadPolicy(ctx, log, s) })
	return s, g.Wait()
}

func (p *Puller) loadRules(ctx context.Context, log *slog.Logger, s *settings) error {
	conf := p.deps.Config
	if conf.Registries != nil {
		s.rules = conf.Registries
		return nil // validated with the configuration
	}
	if conf.RegistriesURI == "" {
		return nil
	}
	raw, err := p.read(ctx, conf.RegistriesURI, maxRulesFile)
	if err != nil {
		return fmt.Errorf("fetching the registry configuration: %w", err)
	}
	defer raw.Wipe()
	rules, unknown, err := registry.ParseRules(raw)
	if err != nil {
		return podvm.Explain(err, "the registry configuration is not usable: "+podvm.Printable(err.Error(), 300))
	}
	for _, u := range unknown {
		log.Warn("Unknown key in the registry configuration", "uri", conf.RegistriesURI, "key", u.String())
	}
	s.rules = rules
	return nil
}

func (p *Puller) loadAuth(ctx context.Context, s *settings) error {
	if p.deps.Config.AuthURI == "" {
		return nil
	}
	raw, err := p.read(ctx, p.deps.Config.AuthURI, maxAuthFile)
	if err != nil {
		return fmt.Errorf("fetching the registry credentials: %w", err)
	}
	defer raw.Wipe()
	if s.auth, err = registry.ParseAuthFile(raw); err != nil {
		return podvm.Explain(err, "the registry credentials file is not usable: "+err.Error())
	}
	return nil
}

func (p *Puller) loadPolicy(ctx context.Context, log *slog.Logger, s *settings) error {
	conf := p.deps.Config
	raw := podvm.Secret(conf.Policy)
	if conf.PolicyURI != "" {
		var err error
		if raw, err = p.read(ctx, conf.PolicyURI, maxPolicy); err != nil {
			return fmt.Errorf("fetching the image security policy: %w", err)
		}
	} else if conf.Policy == "" {
		return nil
	}
	parsed, err := policy.Parse(raw)
	if err != nil {
		return err
	}
	for _, w := range parsed.Warnings() {
		log.Warn("Doubtful image security policy", "what", w)
	}
	s.policy = parsed
	return nil
}

// policyKey fetches a verification key that the policy points to.
func (p *Puller) policyKey(ctx context.Context, uri string) ([]byte, error) {
	return p.read(ctx, uri, policy.MaxKey)
}

// lookaside fetches the simple-signing messages for img. The configuration of
// the stores is read only now: few policies need it.
func (p *Puller) lookaside(ctx context.Context, log *slog.Logger, img policy.Image) ([]policy.Document, error) {
	raw := podvm.Secret(p.deps.Config.SigstoreConfig)
	if uri := p.deps.Config.SigstoreConfigURI; uri != "" {
		var err error
		if raw, err = p.read(ctx, uri, lookaside.MaxConfig); err != nil {
			return nil, fmt.Errorf("fetching the sigstore configuration: %w", err)
		}
	}
	conf, err := lookaside.Parse(raw)
	if err != nil {
		return nil, err
	}
	for _, w := range conf.Warnings() {
		log.Warn("Doubtful sigstore configuration", "what", w)
	}
	return conf.Signatures(ctx, img, p.registry)
}

// read fetches what a URI of the configuration points to. The caller wipes it.
// Errors carry a podvm.Cause.
func (p *Puller) read(ctx context.Context, uri string, limit int64) (podvm.Secret, error) {
	shown := podvm.Printable(uri, 256)
	scheme, rest, isURI := strings.Cut(uri, "://")
	switch {
	case isURI && (scheme == "kbs" || strings.HasPrefix(scheme, "kbs+")):
		b, err := p.deps.Resources.Resource(ctx, uri)
		if err == nil && int64(len(b)) > limit {
			b.Wipe()
			err = fmt.Errorf("%w: more than %d bytes", podvm.ErrTooLarge, limit)
		}
		if err != nil {
			return nil, podvm.Explain(fmt.Errorf("fetching %s: %w", shown, err), unreadable(shown, podvm.Cause(err)))
		}
		return b, nil
	case isURI && scheme != "file":
		err := fmt.Errorf("%w: %s: want kbs://, file:// or a path", ErrConfig, shown)
		return nil, podvm.Explain(err, unreadable(shown, "unknown scheme"))
	case !isURI:
		rest = uri
	}
	b, err := podvm.ReadFileMax(rest, limit)
	if err != nil {
		why := ""
		if errors.Is(err, fs.ErrNotExist) {
			why = "no such file"
		}
		return nil, podvm.Explain(err, unreadable(shown, why))
	}
	return b, nil
}

func unreadable(uri, why string) string {
	if why == "" {
		return uri + " cannot be read"
	}
	return uri + " cannot be read: " + why
}

// explainLayer adds which layer it was to the sentence users see.
func explainLayer(err error, digest string) error {
	cause := podvm.Cause(err)
	if cause == "" && errors.Is(err, layer.ErrMediaType) {
		cause = podvm.Printable(err.Error(), 200) // composed by package layer
	}
	if cause == "" || strings.Contains(cause, digest) {
		return err
	}
	return podvm.Explain(err, fmt.Sprintf("%s (layer %s)", cause, digest))
}
