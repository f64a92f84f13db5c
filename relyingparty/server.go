// Package relyingparty is the owner's side of attestation in one process: the
// Key Broker Service, which releases resources to guests that attested, and the
// attestation service behind it.
//
// Data path, over HTTP under /kbs/v0:
//
//	POST auth      -> session: nonce                 (session)
//	POST attest    -> verifier, policy -> EAR token  (attestation, verifier, policy, refvalue, token)
//	GET  resource  -> token, resource policy -> JWE  (token, policy, kbs.Encrypt)
//	POST, DELETE … -> the administrator's            (store)
//
// Trust: every byte of a request is hostile. A guest is trusted to the extent
// the resource policy says for its token; the administrator is whoever has the
// admin token. The store holds secrets in the clear: its owner is the owner.
//
// Several relying parties work as one behind a load balancer when they share
// the store (resources, policies, reference values and the signing key are read
// from it on every use) and the sessions: an implementation of session.Store,
// or sticky cookies. Nothing else here is kept between requests.
//
// It does not speak the protocols of external plugins, nor those of a separate
// attestation service.
//
// Source: trustee kbs/src at 78962cd4; kbs/docs for the protocol.
package relyingparty

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/relyingparty/attestation"
	"github.com/sealpod/sealpod/relyingparty/policy"
	"github.com/sealpod/sealpod/relyingparty/refvalue"
	"github.com/sealpod/sealpod/relyingparty/session"
	"github.com/sealpod/sealpod/relyingparty/store"
	"github.com/sealpod/sealpod/relyingparty/token"
	"github.com/sealpod/sealpod/relyingparty/verifier"
	"github.com/sealpod/sealpod/relyingparty/verifier/sample"
)

// Defaults of Config. Source: trustee kbs/docs/config.md.
const (
	DefaultSessionLifetime = 5 * time.Minute
	DefaultTokenLifetime   = 5 * time.Minute
	DefaultMaxBodyBytes    = 2 << 20
)

// Config says how a relying party works. StoreDir or Store is required.
type Config struct {
	// StoreDir is the directory of the embedded store, made with mode 0700 if there
	// is none. Close closes it.
	StoreDir string
	// Store is used instead of StoreDir if not nil. Close leaves it open.
	Store store.Store
	// Sessions keeps the handshakes; nil means in memory.
	Sessions session.Store
	// Verifiers are the kinds of TEE to accept; nil means sample and
	// sampledevice, for which the built-in resource policy opens nothing.
	Verifiers []verifier.Verifier
	// Log gets one line per step; nil discards.
	Log *slog.Logger
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// SessionLifetime is from auth on and not extended; zero is the default.
	SessionLifetime time.Duration
	// TokenLifetime is what tokens live; zero is the default.
	TokenLifetime time.Duration
	// MaxBodyBytes caps a request body; zero is the default.
	MaxBodyBytes int64
	// PolicyTimeout bounds one policy evaluation; zero is the default of policy.
	PolicyTimeout time.Duration
	// NewAdminToken replaces the admin token of an existing store.
	NewAdminToken bool
}

// Server is a relying party. It is safe for concurrent use.
type Server struct {
	cfg        Config
	log        *slog.Logger
	now        func() time.Time
	store      store.Store
	sessions   session.Store
	policies   *policy.Set
	values     *refvalue.Provider
	issuer     *token.Issuer
	attest     *attestation.Service
	metrics    *counters
	work       *semaphore.Weighted // bytes from guests in verifiers and policies
	admin      podvm.Secret        // only if it was made by this Open
	closeStore func() error
}

// Open returns a relying party on its store. The first time, it makes the token
// signing key and the admin token; see AdminToken.
func Open(cfg Config) (*Server, error) {
	s := &Server{cfg: cfg, log: cfg.Log, now: cfg.Now, store: cfg.Store, sessions: cfg.Sessions, metrics: newMetrics()}
	s.closeStore = func() error { return nil }
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.now == nil {
		s.now = time.Now
	}
	if s.cfg.SessionLifetime <= 0 {
		s.cfg.SessionLifetime = DefaultSessionLifetime
	}
	if s.cfg.TokenLifetime <= 0 {
		s.cfg.TokenLifetime = DefaultTokenLifetime
	}
	if s.cfg.MaxBodyBytes <= 0 {
		s.cfg.MaxBodyBytes = DefaultMaxBodyBytes
	}
	s.work = semaphore.NewWeighted(max(maxWorkBytes, s.cfg.MaxBodyBytes))
	if s.sessions == nil {
		s.sessions = session.NewMemory(s.now, 0, 0)
	}
	if s.store == nil {
		if cfg.StoreDir == "" {
			return nil, errors.New("opening the relying party: a store is required")
		}
		dir, err := store.OpenDir(cfg.StoreDir)
		if err != nil {
			return nil, fmt.Errorf("opening the relying party: %w", err)
		}
		s.store, s.closeStore = dir, dir.Close
	}
	if err := s.open(context.Background()); err != nil {
		return nil, errors.Join(fmt.Errorf("opening the relying party: %w", err), s.Close())
	}
	return s, nil
}

// open builds what works on the store.
func (s *Server) open(ctx context.Context) error {
	key, err := token.LoadKey(ctx, s.store)
	if err != nil {
		return err
	}
	if s.issuer, err = token.NewIssuer(key, s.cfg.TokenLifetime, s.now); err != nil {
		return err
	}
	verifiers := s.cfg.Verifiers
	if verifiers == nil {
		verifiers = []verifier.Verifier{sample.CPU{}, sample.Device{}}
	}
	s.values = refvalue.New(s.store, s.now)
	s.policies = policy.NewSet(policy.Engine{Reference: s.values.Query, Timeout: s.cfg.PolicyTimeout}, s.store)
	s.attest = attestation.New(verifiers, s.policies, s.issuer)
	// A policy in the store that no longer compiles is found now, not by a guest.
	if _, err := s.policies.Resource(ctx); err != nil {
		return err
	}
	// Last: a token made by an Open that then fails is one that nobody ever sees.
	s.admin, err = setUpAdmin(ctx, s.store, s.cfg.NewAdminToken)
	return err
}

// Handler returns the HTTP handler, for /kbs/v0, /healthz and /metrics.
func (s *Server) Handler() http.Handler { return http.HandlerFunc(s.serve) }

// AdminToken returns the administrator's bearer token if this Open made it, and
// nil otherwise: the store has only its digest. The caller shows it once.
func (s *Server) AdminToken() podvm.Secret { return s.admin }

// Attestations returns how many tokens were issued by this process: the number
// of handshakes that verified, whatever the policies thought of them.
func (s *Server) Attestations() uint64 { return s.metrics.attestations.Load() }

// TEEs returns the kinds of TEE accepted.
func (s *Server) TEEs() []string { return s.attest.TEEs() }

// Close wipes the admin token and closes the store. No request may be running:
// return from Serve, or shut down the http.Server, first.
func (s *Server) Close() error {
	s.admin.Wipe()
	return s.closeStore()
}
