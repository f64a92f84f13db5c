package layer

import (
	"fmt"
	"io"

	"github.com/containers/ocicrypt/blockcipher"
)

// decrypt returns a reader of the plaintext of r. It hands out bytes before
// they are authenticated and withholds only the last 10 KiB until the HMAC
// over all of r is right; any error but r's own is the verdict "no". Its own
// error texts carry MAC bytes and must not be passed on.
func decrypt(r io.Reader, key *Key) (io.Reader, error) {
	// Any other length makes the block cipher panic.
	if len(key.nonce) != nonceLen {
		return nil, fmt.Errorf("nonce of %d bytes: want %d", len(key.nonce), nonceLen)
	}
	h, err := blockcipher.NewLayerBlockCipherHandler()
	if err != nil {
		return nil, err
	}
	plain, _, err := h.Decrypt(r, blockcipher.LayerBlockCipherOptions{
		Public: blockcipher.PublicLayerBlockCipherOptions{CipherType: blockcipher.AES256CTR, Hmac: key.hmac},
		Private: blockcipher.PrivateLayerBlockCipherOptions{
			SymmetricKey:  key.symKey,
			CipherOptions: map[string][]byte{"nonce": key.nonce},
		},
	})
	return plain, err
}
