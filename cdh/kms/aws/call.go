package aws

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/sealpod/sealpod/cdh/internal/strict"
	"github.com/sealpod/sealpod/cdh/kms/internal/wire"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/sigv4"
)

// service is one of AWS's web services that speak JSON 1.1.
type service struct {
	name     string // for people
	id       string // in host names and signatures
	target   string // before the operation in X-Amz-Target
	variable string // of the environment, with another address (for VPC endpoints)
}

// Source: service models of AWS KMS (2014-11-01) and Secrets Manager
// (2017-10-17); AWS SDKs Reference Guide, "Service-specific endpoints".
var (
	kms            = service{"AWS KMS", "kms", "TrentService", "AWS_ENDPOINT_URL_KMS"}
	secretsManager = service{"AWS Secrets Manager", "secretsmanager", "secretsmanager", "AWS_ENDPOINT_URL_SECRETS_MANAGER"}
)

// call has s perform an operation and returns what read makes of the answer.
func (c *client) call(ctx context.Context, s service, operation string, in any, read func(wire.Object) (podvm.Secret, error)) (podvm.Secret, error) {
	base, err := c.env.Endpoint(s.variable, "https://"+s.id+"."+c.region+"."+c.suffix)
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(in)
	if err != nil {
		return nil, fmt.Errorf("encoding the request: %w", err)
	}
	defer clear(body) // on the owner's side it holds a key
	cred, err := readCredential(c.env.Files)
	if err != nil {
		return nil, err
	}
	defer cred.Wipe()
	clock := sigv4.NewClock(c.env.Now)
	resp, err := c.env.HTTP.Do(ctx, wire.Request{
		Service: s.name,
		Method:  http.MethodPost,
		URL:     base + "/",
		Header: http.Header{
			"Content-Type": {"application/x-amz-json-1.1"},
			"X-Amz-Target": {s.target + "." + operation},
		},
		Body: body,
		Sign: func(req *http.Request) error {
			sigv4.Sign(req, sigv4.Hash(body), cred, c.region, s.id, clock.Now())
			return nil
		},
		Again: func(resp *wire.Response) bool {
			code, _ := fault(resp)
			return throttled(code) || clock.Learn(code, resp.Header.Get("Date"))
		},
	})
	if err != nil {
		return nil, fmt.Errorf("asking %s for %s: %w", s.name, operation, err)
	}
	defer resp.Body.Wipe()
	if resp.Status != http.StatusOK {
		return nil, fmt.Errorf("asking %s for %s: %w", s.name, operation, refusal(s, resp, clock))
	}
	o, err := strict.Parse(resp.Body)
	if err == nil {
		var out podvm.Secret
		if out, err = read(o); err == nil {
			return out, nil
		}
	}
	return nil, wire.Malformed(s.name, fmt.Errorf("%s: %w", operation, err))
}

// fault returns the code and the text of an answer that is an error, each ""
// when there is none.
// Source: Smithy specification, "AWS JSON 1.1 protocol", error serialization.
func fault(resp *wire.Response) (code, message string) {
	code = resp.Header.Get("X-Amzn-Errortype")
	if o, err := strict.Parse(resp.Body); err == nil {
		for _, name := range []string{"__type", "code"} {
			if code == "" {
				code, _ = o.TextOr(name, "")
			}
		}
		for _, name := range []string{"message", "Message"} { // services differ
			if message == "" {
				message, _ = o.TextOr(name, "")
			}
		}
	}
	code, _, _ = strings.Cut(code, ":") // a URI may follow
	return code[strings.LastIndexByte(code, '#')+1:], message
}

func throttled(code string) bool {
	return strings.HasPrefix(code, "Throttl") || code == "TooManyRequestsException" || code == "RequestLimitExceeded"
}

func refusal(s service, resp *wire.Response, clock *sigv4.Clock) error {
	code, message := fault(resp)
	if resp.Status == http.StatusTooManyRequests || resp.Status >= 500 || throttled(code) {
		return wire.Overloaded(s.name, resp.Status, code)
	}
	err := wire.Refused(s.name, resp.Status, code, message)
	if d := clock.Off(resp.Header.Get("Date")); d >= sigv4.Tolerated || d <= -sigv4.Tolerated {
		return podvm.Explain(err, fmt.Sprintf("%s (the clock of this guest differs by %s)", podvm.Cause(err), d.Round(time.Second)))
	}
	return err
}
