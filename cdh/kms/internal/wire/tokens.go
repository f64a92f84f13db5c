package wire

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sealpod/sealpod/podvm"
)

const (
	// maxTokens is how many tokens are kept. A guest has one or two identities;
	// what hostile settings ask for beyond that is fetched again and again.
	maxTokens = 16
	// renewBefore is how long before its end a token is replaced, unless a fifth
	// of its life is shorter.
	renewBefore = 5 * time.Minute
	// Forever is the life of a token that does not end.
	Forever = time.Duration(math.MaxInt64)
)

// Tokens keeps what logins brought until shortly before its end.
type Tokens struct {
	now func() time.Time

	mu   sync.Mutex
	byID map[TokenKey]*place
}

// NewTokens returns Tokens that keep none yet, with now for a clock.
func NewTokens(now func() time.Time) *Tokens { return &Tokens{now: now, byID: map[TokenKey]*place{}} }

// TokenKey is under what a token is kept. Make it with KeyOf.
type TokenKey [sha256.Size]byte

// KeyOf returns a key that is equal only where all parts are: where and as whom
// a login is.
func KeyOf(parts ...[]byte) TokenKey {
	h := sha256.New()
	for _, part := range parts {
		fmt.Fprintf(h, "%d:", len(part))
		h.Write(part)
	}
	return TokenKey(h.Sum(nil))
}

// Token is what a login brought.
type Token struct {
	Value podvm.Secret // a copy, which the caller wipes
	Since time.Time    // of the login
}

// place is that of one token, which one caller at a time looks at and fills.
type place struct {
	turn  chan struct{} // holds an element while somebody does
	tries atomic.Int64  // that came to an end
	holds atomic.Bool   // a token, be it an old one

	token   Token // without a Value if there is none
	renewAt time.Time
	err     error // why the last try brought none
}

// Get returns a token other than refused: one that is kept, while it lives, or
// what fetch brings, with its life. Callers who need the same one at the same
// time wait for one fetch and share what comes of it; when its caller gives up, or
// fails without the time that all tries take, the next one tries.
//
// Errors: ErrUnreachable when ctx ends, and those of fetch.
func (t *Tokens) Get(ctx context.Context, key TokenKey, refused podvm.Secret, fetch func(context.Context) (podvm.Secret, time.Duration, error)) (Token, error) {
	at := t.find(key)
	before := at.tries.Load()
	select {
	case at.turn <- struct{}{}:
		defer func() { <-at.turn }()
	case <-ctx.Done():
		return Token{}, podvm.Explain(fmt.Errorf("%w: waiting for a login: %w", ErrUnreachable, ctx.Err()), "no login at the KMS in time")
	}
	if len(at.token.Value) > 0 && !bytes.Equal(at.token.Value, refused) && t.now().Before(at.renewAt) {
		return at.token.clone(), nil
	}
	if at.err != nil && at.tries.Load() != before {
		return Token{}, at.err
	}
	end, hurried := ctx.Deadline()
	hurried = hurried && time.Until(end) < totalTimeout
	start := t.now()
	value, life, err := fetch(ctx)
	if err != nil && (hurried || ctx.Err() != nil) {
		return Token{}, err // which is nobody else's
	}
	at.tries.Add(1)
	at.holds.Store(err == nil)
	at.token.Value.Wipe()
	at.token, at.err = Token{value, start}, err
	at.renewAt = start.Add(life - min(life/5, renewBefore))
	return at.token.clone(), err
}

func (t Token) clone() Token { return Token{bytes.Clone(t.Value), t.Since} }

func (t *Tokens) find(key TokenKey) *place {
	t.mu.Lock()
	defer t.mu.Unlock()
	if at := t.byID[key]; at != nil {
		return at
	}
	if len(t.byID) >= maxTokens {
		var last TokenKey
		for k, at := range t.byID {
			if last = k; !at.holds.Load() { // rather one that nothing came of
				break
			}
		}
		delete(t.byID, last)
	}
	at := &place{turn: make(chan struct{}, 1)}
	t.byID[key] = at
	return at
}
