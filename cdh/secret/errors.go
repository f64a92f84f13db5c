package secret

import (
	"context"
	"errors"
	"fmt"

	"github.com/sealpod/sealpod/cdh/kms"
	"github.com/sealpod/sealpod/podvm"
)

// What an unsealing fails of. Every error of Unseal is one of these and has a
// sentence for podvm.Cause; ErrProvider comes beside ErrVault or ErrEnvelope.
var (
	// ErrParse says that the text, its header or its payload is malformed.
	ErrParse = errors.New("malformed sealed secret")
	// ErrVersion says that the payload is of another version than 0.1.0.
	ErrVersion = errors.New("unsupported version of sealed secret")
	// ErrSignature says that the signature is not one by the key it names.
	ErrSignature = errors.New("the signature of the sealed secret does not hold")
	// ErrJSON says that the signing key is not a JSON object.
	ErrJSON = errors.New("the signing key is not JSON")
	// ErrSigningKey says that the signing key is no P-256 JWK, or that the
	// signature is to be by another algorithm than ES256.
	ErrSigningKey = errors.New("unusable signing key")
	// ErrKeyFetch says that the Key Broker Service gave no signing key.
	ErrKeyFetch = errors.New("the signing key cannot be fetched")
	// ErrIO says that the signing key is in no file of this machine.
	ErrIO = errors.New("the signing key cannot be read")
	// ErrVault says that the vault did not give the secret.
	ErrVault = errors.New("unsealing the vault secret")
	// ErrEnvelope says that the envelope did not open.
	ErrEnvelope = errors.New("unsealing the envelope secret")
	// ErrProvider says that no provider of that name is there, or that it
	// cannot do this.
	ErrProvider = errors.New("unsupported provider")
)

// failed makes err a failure of that class, and an ErrProvider if it is one.
func failed(class, err error) error {
	if errors.Is(err, kms.ErrUnknownProvider) || errors.Is(err, kms.ErrUnsupported) {
		err = fmt.Errorf("%w: %w", ErrProvider, err)
	}
	return podvm.Explain(fmt.Errorf("%w: %w", class, err), sentence(err))
}

// sentence is what may be told of err.
func sentence(err error) string {
	if cause := podvm.Cause(err); cause != "" {
		return cause
	}
	// A context that ended has no sentence of its own.
	if errors.Is(err, context.DeadlineExceeded) {
		return "not done in time"
	}
	return "the request was given up"
}
