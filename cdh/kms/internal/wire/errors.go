package wire

import (
	"errors"
	"fmt"

	"github.com/sealpod/sealpod/podvm"
)

// What callers tell apart. Each is wrapped with a sentence for podvm.Cause.
var (
	// ErrSettings says that provider settings, annotations, a key id or the
	// name of a secret cannot be used.
	ErrSettings = errors.New("unusable KMS provider settings")
	// ErrCredential says that a credential file is absent or cannot be used.
	ErrCredential = errors.New("unusable KMS credential")
	// ErrUnsupported says that the provider cannot do what was asked for.
	ErrUnsupported = errors.New("not supported by the KMS provider")
	// ErrService says that the service refused, or answered with something
	// that is none of its answers. Asking again does not help.
	ErrService = errors.New("refused by the KMS")
	// ErrUnreachable says that no service answered: no connection, no trusted
	// TLS, no answer in time, or an overloaded server (429, 5xx, throttling).
	ErrUnreachable = errors.New("KMS unreachable")
)

// Limits in bytes on text of a service that enters errors.
const (
	maxCode    = 64
	maxMessage = 256
)

// Settings makes err, whose text names members but holds no values, an
// ErrSettings with itself as the cause.
func Settings(err error) error {
	return podvm.Explain(fmt.Errorf("%w: %w", ErrSettings, err), "unusable KMS provider settings: "+podvm.Printable(err.Error(), maxMessage))
}

// Credential makes err, whose text holds no part of a credential, an
// ErrCredential for the file name.
func Credential(name string, err error) error {
	name = podvm.Printable(name, maxCode)
	return podvm.Explain(fmt.Errorf("%w: reading %s: %w", ErrCredential, name, err),
		fmt.Sprintf("the KMS credential file %s is absent or unusable", name))
}

// Refused is the ErrService for an answer that says no. service is a name for
// people; code and message are the service's own words, which are made
// printable and cut short. Either may be empty.
func Refused(service string, status int, code, message string) error {
	text := fmt.Sprintf("%s refused (HTTP status %d)", service, status)
	for _, s := range []string{podvm.Printable(code, maxCode), podvm.Printable(message, maxMessage)} {
		if s != "" {
			text += ": " + s
		}
	}
	return podvm.Explain(fmt.Errorf("%w: %s", ErrService, text), text)
}

// Malformed is the ErrService for an answer that cannot be read. The text of
// err may name members of the answer and must hold none of its values.
func Malformed(service string, err error) error {
	return podvm.Explain(fmt.Errorf("%w: reading the answer of %s: %w", ErrService, service, err),
		service+" answered with something unusable")
}
