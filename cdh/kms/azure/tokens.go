package azure

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sealpod/sealpod/cdh/kms/internal/wire"
	"github.com/sealpod/sealpod/podvm"
)

// maxKept is how many tokens are kept. A guest has one or two identities; what
// settings ask for beyond that is fetched again and again.
const maxKept = 16

// freshToken is the age below which a refusal is final: it bounds how often
// someone who keeps asking for what the vault does not give makes the guest log
// in.
const freshToken = 10 * time.Second

// renewBefore is how long before its end a token is replaced, unless a fifth of
// its life is shorter.
const renewBefore = 5 * time.Minute

// tokens keeps access tokens until shortly before their end.
type tokens struct {
	now func() time.Time

	mu   sync.Mutex
	byID map[tokenKey]*token
}

func newTokens(now func() time.Time) *tokens {
	return &tokens{now: now, byID: map[tokenKey]*token{}}
}

// token is the place of one, which one caller at a time looks at and fills.
type token struct {
	turn  chan struct{} // holds an element while somebody does
	tries atomic.Int64  // that came to an end

	value   string    // "" if there is none
	since   time.Time // when it was fetched
	renewAt time.Time
	err     error // why the last try brought none
}

func (t *tokens) find(key tokenKey) *token {
	t.mu.Lock()
	defer t.mu.Unlock()
	if at := t.byID[key]; at != nil {
		return at
	}
	for k := range t.byID {
		if len(t.byID) < maxKept {
			break
		}
		delete(t.byID, k) // any
	}
	at := &token{turn: make(chan struct{}, 1)}
	t.byID[key] = at
	return at
}

// get returns a token other than refused, from what is kept while it lives or
// else by fetch, and when it was fetched. Callers that need the same one at the
// same time wait for one fetch and share what comes of it; when its caller gives
// up, the next one tries.
func (t *tokens) get(ctx context.Context, key tokenKey, refused string, fetch fetchFunc) (string, time.Time, error) {
	at := t.find(key)
	before := at.tries.Load()
	select {
	case at.turn <- struct{}{}:
		defer func() { <-at.turn }()
	case <-ctx.Done():
		return "", time.Time{}, podvm.Explain(fmt.Errorf("%w: waiting for an access token: %w", wire.ErrUnreachable, ctx.Err()),
			"no access token for Azure Key Vault in time")
	}
	if at.value != "" && at.value != refused && t.now().Before(at.renewAt) {
		return at.value, at.since, nil
	}
	if at.err != nil && at.tries.Load() != before {
		return "", time.Time{}, at.err
	}
	value, life, err := fetch(ctx)
	if err != nil && ctx.Err() != nil {
		return "", time.Time{}, err // which is nobody else's
	}
	at.tries.Add(1)
	at.value, at.err, at.since = value, err, t.now()
	at.renewAt = at.since.Add(life - min(life/5, renewBefore))
	return value, at.since, err
}
