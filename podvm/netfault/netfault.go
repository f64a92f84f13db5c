// Package netfault says for people why an HTTP server gave no answer.
//
// Data path: the clients of Key Broker Services and of key management services
// ask it about errors of net/http.
//
// Trust: errors hold text of the network. What comes back is made here, from the
// kind of the error, never from its text.
package netfault

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"syscall"
)

// Untrusted is what Why says of a server whose certificate no trusted CA signed.
const Untrusted = "its TLS certificate is not trusted"

// Why returns the reason of err, which http.Client.Do or reading a response body
// returned, as words that follow "not reachable: ", and whether another try a
// second later may go better.
func Why(err error) (why string, temporary bool) {
	var (
		timeout net.Error
		dns     *net.DNSError
		cert    *tls.CertificateVerificationError
		other   x509.HostnameError
		invalid x509.CertificateInvalidError
		plain   tls.RecordHeaderError
	)
	switch {
	case errors.As(err, &other):
		return "its TLS certificate is for another name", false
	case errors.As(err, &invalid):
		return "its TLS certificate is not valid now or not for this use (check the clock)", false
	case errors.As(err, &cert):
		return Untrusted, false
	case errors.As(err, &plain), errors.Is(err, http.ErrSchemeMismatch):
		return "it does not speak TLS", false
	case errors.Is(err, context.Canceled):
		return "the caller gave up", false
	case errors.As(err, &dns) && dns.IsNotFound:
		return "the host name is not known", true
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused", true
	case errors.As(err, &timeout) && timeout.Timeout():
		return "no answer in time", true
	}
	return "the connection broke", true
}
