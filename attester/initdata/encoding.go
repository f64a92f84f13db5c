package initdata

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"errors"
	"fmt"
	"io"

	"github.com/sealpod/sealpod/podvm"
)

// MaxEncodedBytes caps a document as it travels, see Decode: base64 of MaxBytes
// that do not compress, broken into lines.
const MaxEncodedBytes = MaxBytes/2*3 + 1<<10

// Decode returns the text of a document as it travels to a pod VM, in user data
// and in annotations of pods: base64 in the standard alphabet, padded, over
// gzip. Line breaks in the base64 are ignored. The text is for Parse. No more
// than MaxBytes of it are ever inflated.
//
// Errors: ErrInitData, podvm.ErrTooLarge.
// Source: cloud-api-adaptor src/cloud-api-adaptor/pkg/initdata at fbdde756.
func Decode(encoded []byte) ([]byte, error) {
	if len(encoded) > MaxEncodedBytes {
		return nil, fmt.Errorf("%w: %w: more than %d bytes", ErrInitData, podvm.ErrTooLarge, MaxEncodedBytes)
	}
	packed := make([]byte, base64.StdEncoding.DecodedLen(len(encoded)))
	n, err := base64.StdEncoding.Decode(packed, encoded)
	if err != nil {
		return nil, fmt.Errorf("%w: not base64: %v", ErrInitData, err)
	}
	z, err := gzip.NewReader(bytes.NewReader(packed[:n]))
	if err != nil {
		return nil, fmt.Errorf("%w: not gzip in base64: %v", ErrInitData, err)
	}
	text, err := podvm.ReadMax(z, MaxBytes)
	switch {
	case errors.Is(err, podvm.ErrTooLarge):
		return nil, fmt.Errorf("%w: inflating it: %w", ErrInitData, err)
	case errors.Is(err, io.ErrUnexpectedEOF):
		return nil, fmt.Errorf("%w: the gzip stream ends too early", ErrInitData)
	case err != nil:
		return nil, fmt.Errorf("%w: not gzip in base64: %v", ErrInitData, err)
	}
	return text, nil
}

// Encode returns text in the form that Decode reads, on one line.
func Encode(text []byte) ([]byte, error) {
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	if _, err := z.Write(text); err != nil {
		return nil, fmt.Errorf("deflating init data: %w", err)
	}
	if err := z.Close(); err != nil {
		return nil, fmt.Errorf("deflating init data: %w", err)
	}
	return base64.StdEncoding.AppendEncode(nil, packed.Bytes()), nil
}
