package registry

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

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

	// errScheme says that a request would have used the wrong one of http and
	// https.
	errScheme = errors.New("scheme refused")
	// errRedirect ends a redirect that must not be followed.
	errRedirect = errors.New("redirect refused")
)

// statusError is an HTTP answer other than success.
type statusError struct {
	code   int
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

// temporary says that asking again may help.
func (e *statusError) temporary() bool {
	return e.code == http.StatusRequestTimeout || e.code == http.StatusTooManyRequests || e.code >= 500
}

// checkStatus turns an answer into a statusError unless its status is one of
// want.
func checkStatus(resp *http.Response, want ...int) error {
	err := transport.CheckError(resp, want...)
	if err == nil {
		return nil
	}
	return normalize(err, resp.StatusCode)
}

// normalize turns what ggcr reports into a statusError with a printable text:
// its own errors quote whole bodies. code is used when err carries none.
func normalize(err error, code int) error {
	var te *transport.Error
	switch {
	case errors.As(err, &te):
		e := &statusError{code: te.StatusCode}
		if len(te.Errors) > 0 {
			e.detail = podvm.Printable(strings.TrimSpace(string(te.Errors[0].Code)+" "+te.Errors[0].Message), 200)
		}
		return e
	case code != 0:
		return &statusError{code: code}
	}
	var ue *url.Error
	if errors.As(err, &ue) {
		// Where a registry redirects to, the query is often a credential.
		ue.URL, _, _ = strings.Cut(ue.URL, "?")
	}
	return err
}

// retryable says whether asking again may change the answer. ctx was alive
// when err came.
func retryable(err error) bool {
	var status *statusError
	if errors.As(err, &status) {
		return status.temporary()
	}
	var cert *tls.CertificateVerificationError
	final := errors.Is(err, errRedirect) || errors.Is(err, ErrDigest) || errors.Is(err, ErrTruncated) ||
		errors.Is(err, podvm.ErrTooLarge) || errors.Is(err, http.ErrSchemeMismatch) || errors.As(err, &cert)
	return !final
}

// explain attaches to err, met while doing what with host, the sentence users
// see. Errors that already carry one keep it.
func explain(ctx context.Context, err error, host, what string) error {
	if err == nil || podvm.Cause(err) != "" {
		return err
	}
	err = fmt.Errorf("%s: %w", what, err)
	if ctx.Err() != nil {
		return podvm.Explain(fmt.Errorf("%w: %w", err, context.Cause(ctx)), what+": the request was cancelled or ran out of time")
	}
	var status *statusError
	var cert *tls.CertificateVerificationError
	switch {
	case errors.Is(err, ErrUnauthorized):
		return podvm.Explain(err, fmt.Sprintf("Not authorized: registry %s refused %s; check the registry credentials", host, what))
	case errors.Is(err, ErrNotFound):
		return podvm.Explain(err, fmt.Sprintf("%s: not found in registry %s", what, host))
	case errors.As(err, &status):
		return podvm.Explain(fmt.Errorf("%w: %w", ErrUnavailable, err), fmt.Sprintf("%s: registry %s answered %d %s", what, host, status.code, http.StatusText(status.code)))
	case errors.Is(err, ErrDigest):
		return podvm.Explain(err, what+": digest mismatch, the registry served other bytes than the image names")
	case errors.Is(err, ErrTruncated):
		return podvm.Explain(err, what+": the registry's data is truncated")
	case errors.Is(err, podvm.ErrTooLarge):
		return podvm.Explain(err, what+": the registry's document is too large")
	case errors.Is(err, ErrManifest):
		// The texts of ErrManifest are composed here, quotes are made printable.
		return podvm.Explain(err, podvm.Printable(err.Error(), 400))
	case errors.Is(err, errRedirect):
		return podvm.Explain(err, fmt.Sprintf("%s: registry %s redirects in a loop or to an insecure place", what, host))
	case errors.Is(err, http.ErrSchemeMismatch):
		return podvm.Explain(fmt.Errorf("%w: %w", ErrUnavailable, err), fmt.Sprintf("registry %s speaks plain HTTP; mark it insecure in the registry configuration", host))
	case errors.As(err, &cert):
		return podvm.Explain(fmt.Errorf("%w: %w", ErrUnavailable, err), fmt.Sprintf("the certificate of registry %s is not trusted; add its CA to extra_root_certificates", host))
	}
	return podvm.Explain(fmt.Errorf("%w: %w", ErrUnavailable, err), fmt.Sprintf("registry %s is unreachable", host))
}
