package registry

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"

	"github.com/sealpod/sealpod/podvm"
)

var (
	// ErrUnauthorized says that the registry or its token service answered
	// 401 or 403. Its public cause contains "Not authorized".
	ErrUnauthorized = errors.New("not authorized")
	// ErrNotFound says that the registry has no such manifest or blob.
	ErrNotFound = errors.New("not found")
	// ErrUnavailable says that the registry could not be reached, or kept
	// answering with an error, until the tries were used up.
	ErrUnavailable = errors.New("registry unavailable")
	// ErrTruncated says that a blob ended before the size of its descriptor.
	ErrTruncated = errors.New("blob is truncated")
)

// statusError is an HTTP answer other than success.
type statusError struct {
	code   int
	plain  bool   // came over plain HTTP
	detail string // the registry's own words, printable; for the log only
}

func (e *statusError) Error() string {
	s := fmt.Sprintf("status %d %s", e.code, http.StatusText(e.code))
	if e.detail != "" {
		s += ": " + e.detail
	}
	return s
}

// Is maps statuses to the sentinels.
func (e *statusError) Is(target error) bool {
	switch e.code {
	case http.StatusUnauthorized, http.StatusForbidden:
		return target == ErrUnauthorized
	case http.StatusNotFound:
		return target == ErrNotFound
	}
	return false
}

// temporary says that asking again may change a status.
func temporary(code int) bool {
	return code == http.StatusRequestTimeout || code == http.StatusTooManyRequests || code >= 500
}

// maxErrorBody is how much of an answer other than success is read, in bytes.
const maxErrorBody = 8 << 10

// statusOf makes an error of an answer other than success, with the registry's
// own words if there are some. The caller closes the body.
// Source: OCI distribution-spec v1.1 section "Error Codes".
func statusOf(resp *http.Response) error {
	e := &statusError{code: resp.StatusCode, plain: resp.Request.URL.Scheme == "http"}
	raw, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	var doc struct {
		Errors []struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"errors"`
	}
	if json.Unmarshal(raw, &doc) == nil && len(doc.Errors) > 0 {
		e.detail = podvm.Printable(strings.TrimSpace(doc.Errors[0].Code+" "+doc.Errors[0].Message), 200)
	}
	return withRetryAfter(e, resp)
}

// tidy takes from an error of http.Client what must not be logged: where a
// registry redirects to, the query is often a credential.
func tidy(err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		ue.URL, _, _ = strings.Cut(ue.URL, "?")
		ue.URL = podvm.Printable(ue.URL, 512)
	}
	return err
}

// retryable says whether asking again may change the answer. ctx was alive
// when err came.
func retryable(err error) bool {
	if errors.Is(err, errRange) {
		return true // asked again without one
	}
	var status *statusError
	if errors.As(err, &status) {
		return temporary(status.code)
	}
	for _, final := range []error{
		errRedirect, errScheme, errLocal, errLink, errRealm, errToken, errProxy, errNoParts, ErrDigest, ErrTruncated,
		podvm.ErrTooLarge, http.ErrSchemeMismatch,
	} {
		if errors.Is(err, final) {
			return false
		}
	}
	var cert *tls.CertificateVerificationError
	return !errors.As(err, &cert)
}

// explain attaches to err, met while doing what with the registry, the sentence
// users see. Errors that already carry one keep it.
func explain(ctx context.Context, err error, registry, what string) error {
	if err == nil || podvm.Cause(err) != "" {
		return err
	}
	err = fmt.Errorf("%s: %w", what, err)
	if ctx.Err() != nil {
		return podvm.Explain(fmt.Errorf("%w: %w", err, context.Cause(ctx)), what+": the request was cancelled or ran out of time")
	}
	var token *tokenError
	service := ""
	if errors.As(err, &token) {
		service = "token service " + token.host + " of "
	}
	text, unavailable := reason(err, service+"registry "+registry, what)
	if unavailable {
		err = fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return podvm.Explain(err, text)
}

// reason is the sentence for err, and whether it counts as ErrUnavailable. peer
// is whom the request was for.
func reason(err error, peer, what string) (text string, unavailable bool) {
	var status *statusError
	var cert *tls.CertificateVerificationError
	switch {
	case errors.Is(err, ErrUnauthorized):
		return fmt.Sprintf("Not authorized: %s refused %s; check the registry credentials", peer, what), false
	case errors.Is(err, ErrNotFound):
		return fmt.Sprintf("%s: not found in %s; check the name and the tag", what, peer), false
	case errors.As(err, &status) && status.code == http.StatusTooManyRequests:
		return fmt.Sprintf("%s: %s answered 429 Too Many Requests; log in, use a mirror or wait", what, peer), true
	case errors.As(err, &status) && status.code == http.StatusBadRequest && status.plain:
		return fmt.Sprintf("%s: %s answered 400 Bad Request; it is marked insecure, does it want HTTPS?", what, peer), true
	case errors.As(err, &status):
		return fmt.Sprintf("%s: %s answered %d %s", what, peer, status.code, http.StatusText(status.code)), true
	case errors.Is(err, ErrDigest):
		return what + ": digest mismatch, the registry served other bytes than the image names", false
	case errors.Is(err, ErrTruncated):
		return what + ": the registry's data is truncated", false
	case errors.Is(err, podvm.ErrTooLarge):
		return what + ": the document " + peer + " sent is too large", false
	case errors.Is(err, ErrManifest):
		// The texts of ErrManifest are composed here, quotes are made printable.
		return podvm.Printable(err.Error(), 400), false
	case errors.Is(err, errRedirect), errors.Is(err, errScheme):
		return fmt.Sprintf("%s: %s redirects in a loop or to an insecure place", what, peer), true
	}
	if errors.As(err, &cert) {
		return fmt.Sprintf("%s: the certificate of %s is not trusted; add its CA to extra_root_certificates", what, peer), true
	}
	return fmt.Sprintf("%s: %s %s", what, peer, trouble(err)), true
}

// trouble says what kept a request from being answered, and what to do.
func trouble(err error) string {
	var dns *net.DNSError
	var op *net.OpError
	switch {
	case errors.Is(err, errLocal):
		return "leads to an address of this machine or its link, which is refused"
	case errors.Is(err, errLink):
		return "has a name that resolves to a link-local or cloud metadata address, which is refused; check DNS, or write the address itself if it is meant"
	case errors.Is(err, errRealm):
		return "names a token service that is no URL"
	case errors.Is(err, errToken):
		return "sent no token that can be used"
	case errors.Is(err, errProxy), errors.As(err, &op) && op.Op == "proxyconnect":
		return "is unreachable: the proxy does not let the connection through; check image_pull_proxy"
	case errors.Is(err, http.ErrSchemeMismatch):
		return "speaks plain HTTP; mark it insecure in the registry configuration"
	case errors.As(err, &dns):
		return "is unreachable: its name does not resolve; check the name, DNS and the proxy"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "is unreachable: the connection was refused; check host and port"
	case errors.Is(err, errStalled):
		return "is unreachable: it takes connections but sends too little; check the network and the proxy"
	}
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return "is unreachable: no answer in time; check the network and the proxy"
	}
	return "is unreachable: the connection broke; check the network, and whether it speaks plain HTTP or HTTPS"
}
