package layer

import (
	"errors"
	"fmt"

	"github.com/containers/ocicrypt/config"
	"github.com/containers/ocicrypt/keywrap/jwe"

	"github.com/sealpod/sealpod/podvm"
)

// ErrJWE says that a packet of the jwe scheme does not open with a private key,
// or that one of the two is malformed.
var ErrJWE = errors.New("the JWE does not open")

// OpenJWE opens a packet of the annotation org.opencontainers.image.enc.keys.jwe
// with an RSA or EC private key in PEM, DER or JWK form, and returns the private
// layer options JSON. The caller wipes it. Which algorithms count is up to
// ocicrypt: RSA-OAEP and ECDH-ES, both with a content key of AES.
//
// Errors: ErrJWE.
func OpenJWE(packet []byte, private podvm.Secret) (options podvm.Secret, err error) {
	// The packet is the image's, and the library parses it in ways of its own.
	err = Contain(func() error {
		dc := config.DecryptConfig{Parameters: map[string][][]byte{
			"privkeys": {private}, "privkeys-passwords": {nil},
		}}
		options, err = jwe.NewKeyWrapper().UnwrapKey(&dc, packet)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrJWE, err)
	}
	return options, nil
}
