package sealed

import (
	"crypto/cipher"
	"encoding/binary"
	"fmt"
)

// Sizes of an object, in bytes.
// Source: developers.google.com/tink/streaming-aead/aes_gcm_hkdf_streaming.
const (
	HeaderSize  = 1 + saltSize + prefixSize
	SegmentSize = 1 << 20 // of ciphertext; the first includes the header
	TagSize     = 16      // at the end of each segment

	saltSize   = 32
	prefixSize = 7

	firstPlain = SegmentSize - HeaderSize - TagSize
	restPlain  = SegmentSize - TagSize
)

// MaxSize caps the plaintext of a file: 16 TiB, well below what the counter of
// segments allows.
const MaxSize = 1 << 44

// Header is the first bytes of an object: its own length, a salt, and what the
// nonces of its segments begin with.
type Header [HeaderSize]byte

// ParseHeader reads the header from the start of an object. Errors:
// ErrIntegrity.
func ParseHeader(object []byte) (Header, error) {
	var h Header
	if copy(h[:], object) < HeaderSize || h[0] != HeaderSize {
		return Header{}, fmt.Errorf("%w: not a sealed object", ErrIntegrity)
	}
	return h, nil
}

func (h *Header) salt() []byte { return h[1 : 1+saltSize] }

// Layout says where the segments of a file of Size bytes are.
type Layout struct{ Size int64 }

// Segments is how many there are, at least one.
func (l Layout) Segments() int64 {
	if l.Size <= firstPlain {
		return 1
	}
	return 1 + (l.Size-firstPlain+restPlain-1)/restPlain
}

// Sealed is the length of the object.
func (l Layout) Sealed() int64 { return HeaderSize + l.Size + l.Segments()*TagSize }

// Plain returns where segment i lies in the file.
func (l Layout) Plain(i int64) (off, n int64) {
	if i == 0 {
		return 0, min(l.Size, firstPlain)
	}
	off = firstPlain + (i-1)*restPlain
	return off, min(l.Size-off, restPlain)
}

// Stored returns where segment i lies in the object, without the header.
func (l Layout) Stored(i int64) (off, n int64) {
	_, n = l.Plain(i)
	if i == 0 {
		return HeaderSize, n + TagSize
	}
	return i * SegmentSize, n + TagSize
}

// Cipher seals and opens the segments of one object. It is safe for concurrent
// use.
type Cipher struct {
	aead   cipher.AEAD
	prefix [prefixSize]byte
}

func (c *Cipher) nonce(i int64, last bool) []byte {
	n := make([]byte, 0, 12)
	n = append(n, c.prefix[:]...)
	n = binary.BigEndian.AppendUint32(n, uint32(i)) // below MaxSize
	if last {
		return append(n, 1)
	}
	return append(n, 0)
}

// Open decrypts segment i of an object in place and returns its plaintext, 16
// bytes less. Errors: ErrIntegrity, and then nothing of it is left.
func (c *Cipher) Open(i int64, last bool, segment []byte) ([]byte, error) {
	plain, err := c.aead.Open(segment[:0], c.nonce(i, last), segment, nil)
	if err != nil {
		return nil, fmt.Errorf("%w: segment %d", ErrIntegrity, i)
	}
	return plain, nil
}

// Seal appends segment i of an object to dst, which may be plain[:0] with room
// for 16 bytes more.
func (c *Cipher) Seal(dst []byte, i int64, last bool, plain []byte) []byte {
	return c.aead.Seal(dst, c.nonce(i, last), plain, nil)
}
