package server

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/sealpod/sealpod/kbs"
	"github.com/sealpod/sealpod/podvm"
)

// attestTimeout bounds one attestation. Callers wait 50 s at most; what comes
// a little later is still good for the next one.
const attestTimeout = 60 * time.Second

// maxAttesting is how many attestations run at once: the one that callers wait
// for, and one from before the last measurement. Measurements that come faster
// than attestations end make no more of them.
const maxAttesting = 2

// tokens makes concurrent requests for a token share one attestation and keeps
// its result.
//
// A kept token is given out until it has lived 0.8 of its life, counted from
// when it arrived, so the clock of this machine does not matter. It is dropped
// before that when a caller says that the KBS refused it (the KBS lost its
// signing key, or appraises differently now), and when a measurement was
// extended, which the token does not know of. Nothing shorter than a caller's
// word would do: several clients share this agent, so being asked twice for the
// same token says nothing about it.
type tokens struct {
	attest func(context.Context) (*kbs.Token, error)
	keep   bool
	log    *slog.Logger

	life   context.Context // ends with close
	cancel context.CancelFunc
	flying sync.WaitGroup
	slots  chan struct{}

	mu      sync.Mutex
	current *kbs.Token // nil when there is none
	since   time.Time  // when it arrived
	renewAt time.Time
	flight  *flight // the attestation that new callers join; nil if none
}

// flight is one attestation, begun or waiting for its turn. tok and err are set
// before done closes.
type flight struct {
	begun bool
	done  chan struct{}
	tok   *kbs.Token
	err   error
}

func newTokens(attest func(context.Context) (*kbs.Token, error), keep bool, log *slog.Logger) *tokens {
	t := &tokens{attest: attest, keep: keep, log: log, slots: make(chan struct{}, maxAttesting)}
	t.life, t.cancel = context.WithCancel(context.Background())
	return t
}

// get returns a token whose hash is not refused, the hex SHA-256 of a JWT or
// "". A caller that gives up does not end the attestation others wait for.
func (t *tokens) get(ctx context.Context, refused string) (*kbs.Token, error) {
	tok, f, err := t.look(refused) //nolint:contextcheck // the attestation is for other callers too
	if f == nil {
		return tok, err
	}
	select {
	case <-f.done:
		return f.tok, f.err
	case <-ctx.Done():
		return nil, podvm.Explain(fmt.Errorf("waiting for an attestation: %w", ctx.Err()), "the attestation did not end in time")
	}
}

// look returns the token that is kept, or the attestation to wait for, which it
// starts if there is none.
func (t *tokens) look(refused string) (*kbs.Token, *flight, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.current != nil && (!time.Now().Before(t.renewAt) || refused != "" && tokenHash(t.current) == refused) {
		t.current = nil
	}
	if t.current != nil {
		return t.current, nil, nil
	}
	if t.flight == nil {
		if err := t.life.Err(); err != nil {
			return nil, nil, fmt.Errorf("attesting after the end: %w", err)
		}
		f := &flight{done: make(chan struct{})}
		t.flight = f
		t.flying.Go(func() { t.run(f) })
	}
	return nil, t.flight, nil
}

func (t *tokens) run(f *flight) {
	select {
	case t.slots <- struct{}{}:
		defer func() { <-t.slots }()
	case <-t.life.Done(): // which attest sees too
	}
	t.mu.Lock()
	f.begun = true
	t.mu.Unlock()
	ctx, cancel := context.WithTimeout(t.life, attestTimeout)
	defer cancel()
	start := time.Now()
	f.tok, f.err = t.attest(ctx)
	t.mu.Lock()
	defer t.mu.Unlock()
	defer close(f.done)
	if t.flight != f { // dropped meanwhile: good for its callers only
		return
	}
	t.flight = nil
	if f.err != nil {
		return
	}
	now := time.Now()
	t.log.Info("Attested", "dur", now.Sub(start), "expires", f.tok.Expires())
	if life := lifeOf(f.tok, now); t.keep && life > 0 {
		t.current, t.since, t.renewAt = f.tok, now, now.Add(life/5*4)
	}
}

// lifeOf returns for how long a token that arrived at now is valid.
func lifeOf(tok *kbs.Token, now time.Time) time.Duration {
	if issued := tok.Issued(); !issued.IsZero() {
		return tok.Expires().Sub(issued)
	}
	return tok.Expires().Sub(now)
}

// status describes the token that is kept; nil if there is none.
func (t *tokens) status() *Token {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.current == nil {
		return nil
	}
	return &Token{Since: t.since, Renewed: t.renewAt, Expires: t.current.Expires()}
}

// drop forgets the token, and keeps later callers from joining an attestation
// that has begun.
func (t *tokens) drop() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.current = nil
	if t.flight != nil && t.flight.begun {
		t.flight = nil
	}
}

// close ends a running attestation and waits for it.
func (t *tokens) close() {
	t.cancel()
	t.flying.Wait()
}

// tokenHash is how a caller names a token it was refused with.
func tokenHash(tok *kbs.Token) string {
	sum := sha256.Sum256([]byte(tok.JWT))
	return hex.EncodeToString(sum[:])
}
