package vault

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/sealpod/sealpod/cdh/kms/internal/wire"
	"github.com/sealpod/sealpod/podvm"
)

// freshLogin is the age below which a refusal is final: it bounds how often
// someone who keeps asking for what the role may not have makes it log in.
const freshLogin = 10 * time.Second

// withToken calls do with a token of cred: its own, or one of its AppRole, which
// is replaced once when Vault refuses it.
func (c *client) withToken(ctx context.Context, s server, cred *credential, do func(token podvm.Secret) (wire.Object, error)) (wire.Object, error) {
	if cred.role == "" {
		return do(cred.token)
	}
	key := wire.KeyOf([]byte(cred.address), []byte(cred.namespace), []byte(cred.roleMount), []byte(cred.role), cred.secret)
	login := func(ctx context.Context) (podvm.Secret, time.Duration, error) { return s.login(ctx, cred) }
	token, err := c.tokens.Get(ctx, key, nil, login)
	if err != nil {
		return nil, fmt.Errorf("logging in: %w", err)
	}
	defer token.Value.Wipe()
	o, err := do(token.Value)
	if !errors.Is(err, errForbidden) || c.env.Now().Sub(token.Since) < freshLogin {
		return o, err
	}
	other, err := c.tokens.Get(ctx, key, token.Value, login)
	if err != nil {
		return nil, fmt.Errorf("logging in again: %w", err)
	}
	defer other.Value.Wipe()
	return do(other.Value)
}

// login logs in to an AppRole and returns its token and how long that lasts.
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
	if seconds == 0 {
		return token, wire.Forever, nil
	}
	return token, time.Duration(seconds) * time.Second, nil
}
