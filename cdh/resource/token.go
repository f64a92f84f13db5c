package resource

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sealpod/sealpod/api/attestationagent"
	"github.com/sealpod/sealpod/kbs"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/rpc"
)

const (
	// tokenTimeout bounds one GetToken of the attestation agent.
	// Source: guest-components attestation-agent/kbs_protocol/src/token_provider/aa at 8246e5e.
	tokenTimeout = 50 * time.Second
	// aaWait is how long a call waits for an attestation agent that is not up.
	// It is shorter than tokenTimeout, which is also the deadline of our own
	// callers, so that they get to read who is missing.
	aaWait = 45 * time.Second
	// maxCause cuts, in bytes, why the attestation agent has no token: room for the
	// 1024 that package kbs takes from a KBS.
	maxCause = 1536
)

// errNoAA says that the attestation agent does not listen.
var errNoAA = errors.New("attestation agent not reachable")

// tokens keeps the one token of this guest.
type tokens struct {
	aa     *rpc.Client
	socket string
	log    *slog.Logger
	now    func() time.Time

	life   context.Context // ends with close
	cancel context.CancelFunc
	flying sync.WaitGroup

	mu         sync.Mutex
	current    *kbs.Token
	renewAt    time.Time
	replacedAt time.Time // when a refused token was last replaced
	flight     *flight
}

// flight is one GetToken in progress and everyone who waits for it.
type flight struct {
	refused *kbs.Token    // the token to get rid of, nil if none
	done    chan struct{} // closed when tok or err is set
	tok     *kbs.Token
	err     error
}

func newTokens(socket string, log *slog.Logger, now func() time.Time) *tokens {
	t := &tokens{aa: rpc.NewClient(socket, aaWait), socket: socket, log: log, now: now}
	t.life, t.cancel = context.WithCancel(context.Background())
	return t
}

// get returns a token that is not refused (nil: any will do), from the cache
// while it is younger than 0.8 of its life. Callers that need a new one at the
// same time share one request, which goes on for the others when one of them
// gives up.
func (t *tokens) get(ctx context.Context, refused *kbs.Token) (*kbs.Token, error) {
	for {
		tok, f, err := t.look(refused)
		if f == nil {
			return tok, err
		}
		select {
		case <-f.done:
		case <-ctx.Done():
			return nil, podvm.Explain(fmt.Errorf("waiting for a token: %w", ctx.Err()),
				"no attestation token in time")
		}
		if f.err == nil && f.refused == nil && same(f.tok, refused) {
			continue // asked for by a caller who did not know that it is refused
		}
		return f.tok, f.err
	}
}

// look returns the token in the cache if it will do, or else the request to
// wait for, started here if there is none.
func (t *tokens) look(refused *kbs.Token) (*kbs.Token, *flight, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.current != nil && !same(t.current, refused) && t.now().Before(t.renewAt) {
		return t.current, nil, nil
	}
	if t.flight == nil {
		if err := t.life.Err(); err != nil {
			return nil, nil, fmt.Errorf("getting a token after the end: %w", err)
		}
		f := &flight{refused: refused, done: make(chan struct{})}
		t.flight = f
		t.flying.Go(func() { t.run(f) })
	}
	return nil, t.flight, nil
}

func same(a, b *kbs.Token) bool { return a != nil && b != nil && a.JWT == b.JWT }

// run fetches the token of f and puts it in the cache.
func (t *tokens) run(f *flight) {
	ctx, cancel := context.WithTimeout(t.life, tokenTimeout)
	defer cancel()
	start := time.Now()
	f.tok, f.err = t.fetch(ctx, f.refused)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.flight = nil
	if f.err == nil {
		now := t.now()
		t.current, t.renewAt = f.tok, renewal(f.tok, now)
		if f.refused != nil {
			t.replacedAt = now
		}
		t.log.Info("Got an attestation token", "dur", time.Since(start), "renew", t.renewAt)
	}
	close(f.done)
}

// stale tells whether the verdict tok stands for may be out of date: it was
// issued more than age ago, and no token was replaced for being refused since.
func (t *tokens) stale(tok *kbs.Token, age time.Duration) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	limit := t.now().Add(-age)
	return tok.Issued().Before(limit) && t.replacedAt.Before(limit)
}

// renewal returns when a token received at now has lived 0.8 of its life by its
// own claims. A token that comes with less than that left means a clock that
// disagrees with the issuer's; its life then counts from now, so that not every
// call attests.
func renewal(tok *kbs.Token, now time.Time) time.Time {
	issued, end := tok.Issued(), tok.Expires()
	if issued.IsZero() {
		issued = now
	}
	life := end.Sub(issued)
	if at := end.Add(-life / 5); at.After(now) {
		return at
	}
	return now.Add(life * 4 / 5)
}

func (t *tokens) fetch(ctx context.Context, refused *kbs.Token) (*kbs.Token, error) {
	if refused != nil {
		sum := sha256.Sum256([]byte(refused.JWT))
		ctx = ttrpc.WithMetadata(ctx, ttrpc.MD{rpc.RefusedToken: {hex.EncodeToString(sum[:])}})
	}
	var raw podvm.Secret
	err := t.aa.Do(ctx, func(c *ttrpc.Client) error {
		resp, err := attestationagent.NewAttestationAgentServiceClient(c).
			GetToken(ctx, &attestationagent.GetTokenRequest{TokenType: "kbs"})
		raw = resp.GetToken()
		return err
	})
	defer raw.Wipe()
	if err != nil {
		return nil, t.explain(err)
	}
	tok, err := kbs.ParseToken(raw)
	if err != nil {
		return nil, podvm.Explain(fmt.Errorf("reading the token of the attestation agent: %w", err),
			"the attestation agent answered with something that is not a token")
	}
	return tok, nil
}

// explain adds who to blame for a GetToken that did not work.
func (t *tokens) explain(err error) error {
	err = fmt.Errorf("getting a token from the attestation agent: %w", err)
	switch {
	case errors.Is(err, rpc.ErrPeerAbsent):
		return podvm.Explain(fmt.Errorf("%w: %w: %w", ErrInit, errNoAA, err),
			"attestation agent not reachable at "+t.socket)
	case errors.Is(err, context.DeadlineExceeded), status.Code(err) == codes.DeadlineExceeded:
		return podvm.Explain(err, "the attestation agent did not answer in time")
	case errors.Is(err, ttrpc.ErrClosed):
		return podvm.Explain(err, "the attestation agent went away")
	}
	// The agent says why it has no token, in words meant for the outside.
	return podvm.Explain(err, "no attestation token: "+podvm.Printable(status.Convert(errors.Unwrap(err)).Message(), maxCause))
}

// close ends a request in progress and the connection.
func (t *tokens) close() error {
	t.cancel()
	t.flying.Wait()
	return t.aa.Close()
}
