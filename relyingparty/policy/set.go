package policy

import (
	"context"
	_ "embed" // the default policies
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/relyingparty/store"
)

//go:embed default_cpu.rego
var defaultCPU string

//go:embed default_gpu.rego
var defaultGPU string

//go:embed default_resource.rego
var defaultResource string

// ErrNone says that there is no policy of that id, neither stored nor built in.
var ErrNone = errors.New("no such policy")

// ResourceID is the id of the one resource policy.
const ResourceID = "resource-policy"

// suffix ends the store key of a policy. Source: trustee policy-engine.
const suffix = ".rego"

// Set is all policies of a relying party. Those that the store does not have
// are built in, so that a new release brings new defaults to who never changed
// them. The text in the store is compared on every use: what another process
// uploads to a shared store takes effect at once.
type Set struct {
	engine Engine
	store  store.Store

	mu       sync.Mutex
	compiled map[string]compiled // by id
}

type compiled struct {
	text   string
	policy *Policy
}

// NewSet returns the policies of a store.
func NewSet(engine Engine, s store.Store) *Set {
	return &Set{engine: engine, store: s, compiled: map[string]compiled{}}
}

// Resource returns the resource policy.
func (s *Set) Resource(ctx context.Context) (*Policy, error) {
	return s.load(ctx, store.KBS, ResourceID, defaultResource)
}

// Attestation returns the attestation policy of that id, as in "default_cpu",
// or ErrNone.
func (s *Set) Attestation(ctx context.Context, id string) (*Policy, error) {
	builtIn := ""
	switch id {
	case "default_cpu":
		builtIn = defaultCPU
	case "default_gpu":
		builtIn = defaultGPU
	}
	return s.load(ctx, store.AttestationPolicy, id, builtIn)
}

// SetResource checks and stores the resource policy. A text that is no policy
// is ErrPolicy.
func (s *Set) SetResource(ctx context.Context, text string) error {
	return s.set(ctx, store.KBS, ResourceID, text)
}

// SetAttestation checks and stores the attestation policy of that id. A text
// that is no policy is ErrPolicy, an id that cannot be stored store.ErrKey.
func (s *Set) SetAttestation(ctx context.Context, id, text string) error {
	if strings.Contains(id, "/") {
		return fmt.Errorf("setting attestation policy %q: %w", podvm.Printable(id, 64), store.ErrKey)
	}
	return s.set(ctx, store.AttestationPolicy, id, text)
}

func (s *Set) set(ctx context.Context, ns store.Namespace, id, text string) error {
	if err := store.CheckKey(id + suffix); err != nil {
		return fmt.Errorf("setting a policy: %w", err)
	}
	p, err := s.engine.Compile(ctx, id, text)
	if err != nil {
		return err
	}
	if err := p.Try(ctx); err != nil {
		return err
	}
	if err := s.store.Put(ctx, ns, id+suffix, []byte(text)); err != nil {
		return fmt.Errorf("storing policy %s: %w", id, err)
	}
	return nil
}

func (s *Set) load(ctx context.Context, ns store.Namespace, id, builtIn string) (*Policy, error) {
	raw, err := s.store.Get(ctx, ns, id+suffix)
	text := string(raw)
	switch {
	case errors.Is(err, store.ErrNotFound) && builtIn == "":
		return nil, fmt.Errorf("%w: %s", ErrNone, podvm.Printable(id, 64))
	case errors.Is(err, store.ErrNotFound):
		text = builtIn
	case err != nil:
		return nil, fmt.Errorf("loading policy %s: %w", podvm.Printable(id, 64), err)
	}
	// Compiling takes some 10 ms; whoever else needs the policy waits for it.
	s.mu.Lock()
	defer s.mu.Unlock()
	name := string(ns) + "/" + id
	if c, ok := s.compiled[name]; ok && c.text == text {
		return c.policy, nil
	}
	p, err := s.engine.Compile(ctx, id, text)
	if err != nil {
		return nil, err
	}
	s.compiled[name] = compiled{text: text, policy: p}
	return p, nil
}
