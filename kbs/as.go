package kbs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/sealpod/sealpod/podvm"
)

// ASClient gets tokens from an Attestation Service over its REST interface,
// without a KBS: no challenge, no key, so the token proves no freshness.
type ASClient struct{ web *web }

// NewASClient checks the base URL and returns a client; it does not connect.
func NewASClient(url string) (*ASClient, error) {
	w, err := newWeb("CoCo attestation service", url, defaultAgent, nil, requestTimeout)
	if err != nil {
		return nil, err
	}
	return &ASClient{web: w}, nil
}

// Close closes the connections that are kept open.
func (c *ASClient) Close() { c.web.transport.CloseIdleConnections() }

// Token attests with evidence over empty report data, without devices and init
// data, and returns the answer, a bare JWT, as it came.
//
// Errors: ErrUnauthorized when the service refuses (it says 500 for that, also
// when it is at fault itself), ErrUnreachable, ErrProtocol, or what ev returned.
// Source: guest-components attestation-agent/src/token/coco_as.rs at 8246e5e0.
func (c *ASClient) Token(ctx context.Context, ev Evidencer) ([]byte, error) {
	evidence, err := ev.Evidence(ctx, nil)
	if err != nil {
		return nil, fmt.Errorf("collecting %s evidence: %w", ev.TEE(), err)
	}
	type verification struct {
		TEE      string `json:"tee"`
		Evidence string `json:"evidence"`
	}
	in, err := json.Marshal(struct {
		Requests []verification `json:"verification_requests"`
		Policies []string       `json:"policy_ids"`
	}{[]verification{{ev.TEE(), b64u.EncodeToString(evidence)}}, []string{}})
	if err != nil {
		return nil, fmt.Errorf("encoding the attestation request: %w", err)
	}
	out, err := c.web.send(ctx, request{method: http.MethodPost, path: "/attestation", body: in, limit: maxToken})
	var e *httpError
	switch {
	case !errors.As(err, &e):
	case e.status != http.StatusInternalServerError && e.status != http.StatusBadRequest &&
		e.status != http.StatusUnauthorized && e.status != http.StatusForbidden:
		err = c.web.unexpected(e)
	default:
		return nil, podvm.Explain(fmt.Errorf("attesting to %s: %w: %w", c.web.base, ErrUnauthorized, e),
			fmt.Sprintf("the attestation service at %s refused the evidence (HTTP status %d)", c.web.base, e.status))
	}
	if err != nil {
		return nil, fmt.Errorf("attesting to %s: %w", c.web.base, err)
	}
	out = bytes.TrimSpace(out)
	if _, _, err := lifetime(string(out)); err != nil {
		return nil, podvm.Explain(fmt.Errorf("attesting to %s: %w: %w", c.web.base, ErrProtocol, err),
			"the attestation service issued something that is no JWT with an expiry")
	}
	return out, nil
}
