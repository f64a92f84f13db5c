package jwe

import (
	"crypto/aes"
	"crypto/cipher"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/sealpod/sealpod/model/room"
)

// cutting cuts the file that it is to decrypt, as a file system does that finds no
// room for a page.
type cutting struct {
	cipher.AEAD
	file *os.File
}

func (c cutting) Open(dst, nonce, ciphertext, ad []byte) ([]byte, error) {
	if err := c.file.Truncate(0); err != nil {
		return nil, err
	}
	return c.AEAD.Open(dst, nonce, ciphertext, ad)
}

func TestPageThatIsNotThere(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := file.Truncate(1 << 20); err != nil {
		t.Fatal(err)
	}
	block, err := aes.NewCipher(key(32))
	if err != nil {
		t.Fatal(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	if err := openInPlace(cutting{aead, file}, file, 1<<20, make([]byte, aead.NonceSize()), nil); !errors.Is(err, room.ErrSpace) {
		t.Error(err)
	}
}
