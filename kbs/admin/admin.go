// Package admin is the owner's client of a KBS: it places resources, policies
// and reference values with the administrator's bearer token.
//
// Data path: sealctl calls it beside the owner; the pod never does, and it is
// not linked into the guest binary.
//
// Trust: the server is the owner's own, found by URL and, for https, by its
// certificate. Its answers are capped and its error texts made printable. The
// token goes to that server only: redirects are not followed.
//
// Source: trustee kbs/src/api_server.rs and tools/kbs-client at 78962cd4.
package admin

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/sealpod/sealpod/kbs"
	"github.com/sealpod/sealpod/podvm"
)

const (
	requestTimeout = 60 * time.Second
	maxAnswer      = 4 << 20
)

// ErrAccess says that the KBS did not accept the administrator's token.
var ErrAccess = errors.New("admin access denied")

// StatusError is an answer other than 200.
type StatusError struct {
	Status int    // HTTP status
	Type   string // variant of the KBS error, as in "PolicyDeny"; may be empty
	Detail string // printable explanation of the KBS; may be empty
}

func (e *StatusError) Error() string {
	s := fmt.Sprintf("the KBS answered with HTTP status %d", e.Status)
	if e.Type != "" {
		s += " " + e.Type
	}
	if e.Detail != "" {
		s += ": " + e.Detail
	}
	return s
}

// Is makes errors.Is(err, ErrAccess) true for the variants that mean it.
func (e *StatusError) Is(target error) bool {
	return target == ErrAccess && (e.Type == "AdminAuthAccess" || e.Type == "AdminAuthInitialization")
}

// Client talks to one KBS. It is safe for concurrent use; Close it when done.
type Client struct {
	base  string
	token podvm.Secret
	http  *http.Client
}

// New returns a client for the KBS at base, as in "https://kbs.example:8080".
// caPEM, if not empty, holds certificates to trust beside those of the system.
// token is the administrator's bearer token; the client keeps a reference.
func New(base string, caPEM []byte, token podvm.Secret) (*Client, error) {
	u, err := url.Parse(base)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.User != nil ||
		u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("KBS URL %q: want http(s)://HOST[:PORT]", podvm.Printable(base, 200))
	}
	tr := &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout: 15 * time.Second,
		IdleConnTimeout:     30 * time.Second,
	}
	if len(caPEM) > 0 {
		roots, err := x509.SystemCertPool()
		if err != nil {
			roots = x509.NewCertPool()
		}
		if !roots.AppendCertsFromPEM(caPEM) {
			return nil, errors.New("the KBS certificate holds no PEM certificate")
		}
		tr.TLSClientConfig.RootCAs = roots
	}
	return &Client{
		base: strings.TrimRight(base, "/") + "/kbs/v0/", token: token,
		http: &http.Client{
			Transport: tr, Timeout: requestTimeout,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}, nil
}

// Close closes the connections that are kept open.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// SetResource places body at path, "repository/type/tag".
func (c *Client) SetResource(ctx context.Context, path string, body podvm.Secret) error {
	_, err := c.do(ctx, http.MethodPost, resource(path), "application/octet-stream", body)
	return wrap("placing the resource "+path, err)
}

// DeleteResource removes what is at path, "repository/type/tag".
func (c *Client) DeleteResource(ctx context.Context, path string) error {
	_, err := c.do(ctx, http.MethodDelete, resource(path), "", nil)
	return wrap("deleting the resource "+path, err)
}

// resource is the endpoint of a resource. A "?" in its path stays in the path.
func resource(path string) string { return "resource/" + (&url.URL{Path: path}).EscapedPath() }

// ListResources returns the paths of all resources.
func (c *Client) ListResources(ctx context.Context) ([]string, error) {
	body, err := c.do(ctx, http.MethodGet, "resource", "", nil)
	if err != nil {
		return nil, wrap("listing resources", err)
	}
	var paths []string
	if err := json.Unmarshal(body, &paths); err != nil {
		return nil, wrap("listing resources", err)
	}
	return paths, nil
}

// SetResourcePolicy replaces the policy that decides who gets which resource.
func (c *Client) SetResourcePolicy(ctx context.Context, rego string) error {
	return wrap("setting the resource policy", c.post(ctx, "resource-policy", map[string]string{"policy": encode(rego)}))
}

// SetAttestationPolicy replaces the appraisal policy id, as in "default_cpu".
func (c *Client) SetAttestationPolicy(ctx context.Context, id, rego string) error {
	in := map[string]string{"type": "rego", "policy_id": id, "policy": encode(rego)}
	return wrap("setting the attestation policy "+id, c.post(ctx, "attestation-policy", in))
}

// SetReferenceValues registers what good evidence says, by name. A value is
// anything JSON can express; policies usually expect a list.
func (c *Client) SetReferenceValues(ctx context.Context, values map[string]any) error {
	payload, err := json.Marshal(values)
	if err != nil {
		return wrap("encoding reference values", err)
	}
	in := map[string]string{"version": "0.1.0", "type": "sample", "payload": base64.StdEncoding.EncodeToString(payload)}
	return wrap("registering reference values", c.post(ctx, "reference-value", in))
}

func encode(rego string) string { return base64.RawURLEncoding.EncodeToString([]byte(rego)) }

func wrap(doing string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", doing, err)
}

func (c *Client) post(ctx context.Context, path string, in any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	_, err = c.do(ctx, http.MethodPost, path, "application/json", body)
	return err
}

func (c *Client) do(ctx context.Context, method, path, contentType string, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+string(c.token))
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close() //nolint:errcheck // read-only
	answer, err := podvm.ReadMax(resp.Body, maxAnswer)
	if err != nil {
		return nil, fmt.Errorf("reading the answer: %w", err)
	}
	if resp.StatusCode == http.StatusOK {
		return answer, nil
	}
	e := &StatusError{Status: resp.StatusCode}
	var info kbs.ErrorInfo
	if json.Unmarshal(answer, &info) == nil {
		e.Type = podvm.Printable(strings.TrimPrefix(info.Type, kbs.ErrorTypePrefix), 64)
		e.Detail = podvm.Printable(info.Detail, 500)
	}
	return nil, e
}
