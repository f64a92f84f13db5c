package vault

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/sealpod/sealpod/cdh/kms/internal/wire"
	"github.com/sealpod/sealpod/podvm"
)

const (
	maxLogins = 16 // kept
	// freshToken is the age below which a refusal is final: it bounds how often
	// someone who keeps asking for what the role may not have makes it log in.
	freshToken = 10 * time.Second
)

// logins keeps the tokens of AppRoles.
type logins struct {
	now func() time.Time

	mu   sync.Mutex
	kept map[[sha256.Size]byte]*login
}

func newLogins(env wire.Env) *logins {
	return &logins{now: env.Now, kept: map[[sha256.Size]byte]*login{}}
}

// login is one AppRole at one server.
type login struct {
	busy chan struct{} // holds a value while somebody uses what follows

	token podvm.Secret // empty when there is none
	since time.Time
	until time.Time // zero: no end
}

// with calls do with a token of cred: its own, or one of its AppRole, which is
// replaced once when Vault refuses it.
func (l *logins) with(ctx context.Context, s server, cred *credential, do func(token podvm.Secret) (wire.Object, error)) (wire.Object, error) {
	if cred.role == "" {
		return do(cred.token)
	}
	token, since, err := l.get(ctx, s, cred, nil)
	if err != nil {
		return nil, err
	}
	o, err := do(token)
	if errors.Is(err, errForbidden) && l.now().Sub(since) >= freshToken {
		refused := token
		defer refused.Wipe()
		if token, _, err = l.get(ctx, s, cred, refused); err != nil {
			return nil, err
		}
		o, err = do(token)
	}
	token.Wipe()
	return o, err
}

// get returns a copy of the AppRole's token, which is not refused, and when the
// login was. One login at a time: others wait for it, each within its ctx.
func (l *logins) get(ctx context.Context, s server, cred *credential, refused podvm.Secret) (podvm.Secret, time.Time, error) {
	one := l.of(cred)
	select {
	case one.busy <- struct{}{}:
		defer func() { <-one.busy }()
	case <-ctx.Done():
		return nil, time.Time{}, podvm.Explain(fmt.Errorf("%w: waiting for a login: %w", wire.ErrUnreachable, ctx.Err()),
			name+" did not answer a login in time")
	}
	now := l.now()
	ended := !one.until.IsZero() && !now.Before(one.until)
	if len(one.token) == 0 || ended || bytes.Equal(one.token, refused) {
		token, lease, err := s.login(ctx, cred)
		if err != nil {
			return nil, time.Time{}, fmt.Errorf("logging in: %w", err)
		}
		one.token.Wipe()
		one.token, one.since, one.until = token, now, time.Time{}
		if lease > 0 {
			one.until = now.Add(lease - lease/10) // not on the last minute
		}
	}
	return bytes.Clone(one.token), one.since, nil
}

func (l *logins) of(cred *credential) *login {
	key := cred.login()
	l.mu.Lock()
	defer l.mu.Unlock()
	if one := l.kept[key]; one != nil {
		return one
	}
	for k := range l.kept {
		if len(l.kept) < maxLogins {
			break
		}
		delete(l.kept, k) // any: it costs one more login
	}
	one := &login{busy: make(chan struct{}, 1)}
	l.kept[key] = one
	return one
}

// login logs in to an AppRole and returns its token and how long that lasts,
// 0 for ever.
// Source: Vault API documentation, "AppRole auth method", login.
func (s server) login(ctx context.Context, cred *credential) (podvm.Secret, time.Duration, error) {
	in := struct {
		Role   string `json:"role_id"`
		Secret string `json:"secret_id,omitempty"`
	}{cred.role, string(cred.secret)}
	o, err := s.send(ctx, request{
		method: http.MethodPost, path: "auth/" + cred.roleMount + "/login", namespace: cred.namespace, in: in,
	})
	if err != nil {
		return nil, 0, err
	}
	auth, err := object(o, "auth")
	if err != nil {
		return nil, 0, err
	}
	token, err := secretOr(auth, "client_token")
	if err != nil || len(token) == 0 {
		return nil, 0, wire.Malformed(name, errors.Join(errors.New("no client_token"), err))
	}
	seconds, err := strconv.ParseUint(string(auth["lease_duration"]), 10, 31)
	if err != nil {
		return nil, 0, wire.Malformed(name, errors.New("no lease_duration"))
	}
	return token, time.Duration(seconds) * time.Second, nil
}
