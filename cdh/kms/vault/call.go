package vault

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/sealpod/sealpod/cdh/internal/strict"
	"github.com/sealpod/sealpod/cdh/kms/internal/wire"
	"github.com/sealpod/sealpod/podvm"
)

// name is the service's, for people.
const name = "HashiCorp Vault"

// call makes a request with a token and returns what read makes of the member
// "data" of the answer.
func (c *client) call(ctx context.Context, method, path string, in any, read func(data wire.Object) (podvm.Secret, error)) (podvm.Secret, error) {
	cred, err := readCredential(c.env.Files)
	if err != nil {
		return nil, err
	}
	defer cred.wipe()
	if c.address != "" && c.address != cred.address {
		return nil, podvm.Explain(fmt.Errorf("%w: the credential is for %s, not for %s", wire.ErrSettings, cred.address, podvm.Printable(c.address, 200)),
			"the Vault address in the provider settings is not the one the credential is for")
	}
	server := server{http: c.env.HTTP, address: cred.address}
	if cred.ca != "" {
		if server.http, err = server.http.Trusting([]byte(cred.ca)); err != nil {
			return nil, wire.Credential(CredentialFile, fmt.Errorf("member \"ca\": %w", err))
		}
	}
	data, err := c.withToken(ctx, server, cred, func(token podvm.Secret) (wire.Object, error) {
		o, err := server.send(ctx, request{method: method, path: path, namespace: c.namespace, token: token, in: in})
		if err != nil {
			return nil, err
		}
		return object(o, "data")
	})
	if err != nil {
		return nil, fmt.Errorf("asking %s: %w", name, err)
	}
	out, err := read(data)
	if errors.Is(err, errField) {
		return nil, podvm.Explain(fmt.Errorf("%w: %w", wire.ErrService, err), podvm.Cause(err))
	}
	if err != nil {
		return nil, wire.Malformed(name, err)
	}
	return out, nil
}

// server is Vault's HTTP API at an address.
type server struct {
	http    *wire.Client
	address string // canonical
}

type request struct {
	method    string
	path      string // below /v1/, escaped, with the query
	namespace string
	token     podvm.Secret // empty for a login
	in        any          // JSON body, nil for none
}

// errForbidden says that Vault did not take the token, or a policy denies the
// request: it does not tell which. It is a wire.ErrService as well.
var errForbidden = errors.New("permission denied")

// send makes one exchange and returns the JSON object of a 200.
// Source: Vault API documentation, "HTTP API" (status codes, error response).
func (s server) send(ctx context.Context, r request) (wire.Object, error) {
	body, err := json.Marshal(r.in)
	if err != nil {
		return nil, fmt.Errorf("encoding the request: %w", err)
	}
	if r.in == nil {
		body = nil
	}
	defer clear(body)
	h := http.Header{"X-Vault-Request": {"true"}} // which Vault's proxies can insist on
	if len(r.token) > 0 {
		h.Set("X-Vault-Token", string(r.token))
	}
	if r.namespace != "" {
		h.Set("X-Vault-Namespace", r.namespace)
	}
	if body != nil {
		h.Set("Content-Type", "application/json")
	}
	resp, err := s.http.Do(ctx, wire.Request{
		Service: name, Method: r.method, URL: s.address + "/v1/" + r.path, Header: h, Body: body,
		// A standby that has not caught up yet.
		Again: func(resp *wire.Response) bool { return resp.Status == http.StatusPreconditionFailed },
	})
	if err != nil {
		return nil, err
	}
	defer resp.Body.Wipe()
	switch {
	case resp.Status == http.StatusOK:
		o, err := strict.Parse(resp.Body)
		if err != nil {
			return nil, wire.Malformed(name, err)
		}
		return o, nil
	case resp.Status == http.StatusTooManyRequests || resp.Status >= 500 || resp.Status == http.StatusPreconditionFailed:
		return nil, wire.Overloaded(name, resp.Status, reasons(resp.Body))
	}
	why := reasons(resp.Body)
	if resp.Status == http.StatusNotFound && why == "" {
		why = "no such secret or version" // deleted ones too
	}
	err = wire.Refused(name, resp.Status, "", why)
	if resp.Status == http.StatusForbidden {
		err = fmt.Errorf("%w: %w", errForbidden, err)
	}
	return nil, err
}

// reasons returns what an error answer says, "" when it says nothing.
func reasons(body []byte) string {
	var in struct {
		Errors []string `json:"errors"`
	}
	o, err := strict.Parse(body)
	if err != nil || json.Unmarshal(o["errors"], &in.Errors) != nil {
		return ""
	}
	return strings.Join(in.Errors, "; ")
}

// object returns a member that is an object.
func object(o wire.Object, member string) (wire.Object, error) {
	in, err := strict.Parse(o[member])
	if err != nil {
		return nil, wire.Malformed(name, fmt.Errorf("member %q: %w", member, err))
	}
	return in, nil
}
