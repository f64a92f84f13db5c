// Package agefile opens files in the format of age, age-encryption.org/v1.
//
// Data path: the storage initializer hands over an object as it arrives and the
// file in progress; the file has the plaintext at the end.
//
// Trust: the object is hostile. What comes out is what somebody encrypted to the
// identity, whole and in order; but whoever knows the recipient, which is a public
// key, can do that. So this keeps a model secret and does not say whose it is: the
// storage initializer counts such files among those that are not authenticated.
// Pieces are written before the end is known, so the file is worth nothing before
// this package returned without an error.
package agefile

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"filippo.io/age"

	"github.com/sealpod/sealpod/model/sealed"
	"github.com/sealpod/sealpod/podvm"
)

// Magic is what every file begins with.
const Magic = "age-encryption.org/"

// Extension is what names of files end with, by custom.
const Extension = ".age"

// maxSize caps the plaintext of a file, in bytes.
const maxSize = sealed.MaxSize

// ErrFormat says that an object is not in the format of age, or damaged.
var ErrFormat = errors.New("not a file of age")

// Identity opens objects. The library keeps copies of it that cannot be wiped.
type Identity struct{ all []age.Identity }

// Is tells whether raw could be meant as an identity file.
func Is(raw []byte) bool { return strings.Contains(string(raw), "AGE-SECRET-KEY-") }

// ParseIdentity reads an identity file, as age-keygen writes it. Errors:
// sealed.ErrKey.
func ParseIdentity(raw []byte) (*Identity, error) {
	// The library's own words may repeat a piece of the key.
	all, err := age.ParseIdentities(strings.NewReader(string(raw)))
	if err != nil {
		return nil, fmt.Errorf("%w: not an identity of age", sealed.ErrKey)
	}
	return &Identity{all}, nil
}

// Open writes the plaintext of object to file, which is empty, and returns its
// size. Errors: ErrFormat, sealed.ErrIntegrity when the identity is another one or
// the object was changed, those of reading and writing, the context's. After an
// error nothing of the plaintext is left in file.
func (i *Identity) Open(ctx context.Context, object io.Reader, file *os.File) (size int64, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, file.Truncate(0))
		}
	}()
	in := &remembers{r: object}
	plain, err := age.Decrypt(in, i.all...)
	if err != nil {
		if none := new(age.NoIdentityMatchError); errors.As(err, &none) {
			return 0, fmt.Errorf("%w: the file is for another identity", sealed.ErrIntegrity)
		}
		return 0, in.blame(ErrFormat, "its header is none")
	}
	buf := make([]byte, 256<<10)
	for {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		n, err := plain.Read(buf)
		if _, werr := file.WriteAt(buf[:n], size); werr != nil {
			return 0, werr
		}
		size += int64(n)
		switch {
		case errors.Is(err, io.EOF):
			return size, nil
		case err != nil:
			return 0, in.blame(sealed.ErrIntegrity, "the file was changed or cut")
		case size > maxSize:
			return 0, fmt.Errorf("%w: more than %d bytes", podvm.ErrTooLarge, int64(maxSize))
		}
	}
}

// remembers keeps the error of reading an object, which the library wraps into
// its own words or hides.
type remembers struct {
	r   io.Reader
	err error
}

func (r *remembers) Read(b []byte) (int, error) {
	n, err := r.r.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		r.err = err
	}
	return n, err
}

// blame returns the error of reading, if there was one, else what.
func (r *remembers) blame(what error, why string) error {
	if r.err != nil {
		return r.err
	}
	return fmt.Errorf("%w: %s", what, why)
}
