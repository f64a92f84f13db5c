// Package jwe opens files that are one JSON Web Encryption each, as KServe's
// confidential models are since 0.20: the compact form of RFC 7516.
//
// Data path: the storage initializer hands over an object as it arrives and the
// file in progress; the file has the plaintext at the end. No more of it than a
// buffer is in this process's memory at a time.
//
// Trust: the object is hostile. One tag covers all of it, at its end, so the
// file is worth nothing before this package returned without an error, and then
// it is what the holder of the key has sealed: as whatever file, for a JWE names
// none.
//
// Source: kserve python/storage/kserve_storage at aaac4e2.
package jwe

import (
	"bufio"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"

	josecipher "github.com/go-jose/go-jose/v4/cipher"
	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/model/room"
	"github.com/sealpod/sealpod/model/sealed"
	"github.com/sealpod/sealpod/podvm"
)

// Limits.
const (
	maxHeader = 8 << 10  // bytes of the protected header as text
	maxField  = 1 << 10  // bytes of the key, the nonce and the tag as text
	MaxSize   = 64 << 30 // bytes of plaintext; one AES-GCM message has no more
)

// ErrFormat says that an object is no JWE, or of a kind that is not read here,
// which the text then names.
var ErrFormat = errors.New("not a JWE that can be read")

// Key opens objects.
type Key struct{ secret podvm.Secret }

// ParseKey reads a key as KServe does: a JSON Web Key of type "oct", else text in
// base64url, else the bytes themselves, 16 to 32 of them. Errors: sealed.ErrKey.
func ParseKey(raw []byte) (*Key, error) {
	secret, err := parseKey(raw)
	if err != nil {
		return nil, err
	}
	switch len(secret) {
	case 16, 24, 32:
		return &Key{secret}, nil
	}
	secret.Wipe()
	return nil, fmt.Errorf("%w: %d bytes: want 16, 24 or 32", sealed.ErrKey, len(secret))
}

func parseKey(raw []byte) (podvm.Secret, error) {
	if len(raw) > sealed.MaxKey {
		return nil, fmt.Errorf("%w: longer than %d bytes", sealed.ErrKey, sealed.MaxKey)
	}
	var j struct{ Kty, K string }
	if json.Unmarshal(raw, &j) == nil && j.Kty != "" {
		if j.Kty != "oct" {
			return nil, fmt.Errorf("%w: a JSON Web Key of a type other than oct", sealed.ErrKey)
		}
		return decode([]byte(j.K))
	}
	if secret, err := decode(raw); err == nil {
		return secret, nil
	}
	return append(podvm.Secret(nil), raw...), nil
}

// decode reads base64url, with or without padding and white space around it.
func decode(text []byte) (podvm.Secret, error) {
	for len(text) > 0 && (text[len(text)-1] == '\n' || text[len(text)-1] == '\r' || text[len(text)-1] == ' ' || text[len(text)-1] == '=') {
		text = text[:len(text)-1]
	}
	out := make(podvm.Secret, base64.RawURLEncoding.DecodedLen(len(text)))
	n, err := base64.RawURLEncoding.Decode(out, text)
	if err != nil || n == 0 {
		out.Wipe()
		return nil, fmt.Errorf("%w: not base64url", sealed.ErrKey)
	}
	return out[:n], nil
}

// Wipe overwrites the key.
func (k *Key) Wipe() { k.secret.Wipe() }

// header is what counts of a protected header. Members that are not here change
// nothing, but for crit, which says that some do.
type header struct {
	Alg  string          `json:"alg"`
	Enc  string          `json:"enc"`
	Zip  string          `json:"zip"`
	Crit json.RawMessage `json:"crit"`
}

// Open writes the plaintext of object to file, which is empty, and returns its
// size. Errors: ErrFormat, sealed.ErrIntegrity when the key or the object is a
// wrong one, podvm.ErrTooLarge beyond MaxSize, those of reading and writing. After
// an error nothing of the plaintext is left in file.
func (k *Key) Open(ctx context.Context, object io.Reader, file *os.File) (size int64, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, file.Truncate(0))
		}
	}()
	r := bufio.NewReaderSize(object, 256<<10)
	protected, err := field(r, maxHeader)
	if err != nil {
		return 0, err
	}
	h, err := parseHeader(protected)
	if err != nil {
		return 0, err
	}
	wrapped, err := binary(r)
	if err != nil {
		return 0, err
	}
	nonce, err := binary(r)
	if err != nil {
		return 0, err
	}
	aead, err := k.content(h, wrapped)
	if err != nil {
		return 0, err
	}
	if len(nonce) != aead.NonceSize() {
		return 0, fmt.Errorf("%w: a nonce of %d bytes", ErrFormat, len(nonce))
	}
	n, err := ciphertext(ctx, r, file)
	if err != nil {
		return 0, err
	}
	tag, err := lastField(r)
	if err != nil {
		return 0, err
	}
	if len(tag) != aead.Overhead() {
		return 0, fmt.Errorf("%w: a tag of %d bytes", ErrFormat, len(tag))
	}
	if _, err := file.WriteAt(tag, n); err != nil {
		return 0, err
	}
	if err := openInPlace(aead, file, n+int64(len(tag)), nonce, protected); err != nil {
		return 0, err
	}
	return n, file.Truncate(n)
}

// openInPlace decrypts size bytes of file, of which the tag is the last ones.
func openInPlace(aead cipher.AEAD, file *os.File, size int64, nonce, ad []byte) (err error) {
	m, err := unix.Mmap(int(file.Fd()), 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("mapping the file: %w", os.NewSyscallError("mmap", err))
	}
	// A page that the file system cannot give is a signal, which would end the
	// process without a word.
	old := debug.SetPanicOnFault(true)
	defer func() {
		debug.SetPanicOnFault(old)
		if r := recover(); r != nil {
			if _, fault := r.(interface{ Addr() uintptr }); !fault {
				panic(r)
			}
			err = fmt.Errorf("%w: decrypting in place: %v", room.ErrSpace, r)
		}
		err = errors.Join(err, os.NewSyscallError("munmap", unix.Munmap(m)))
	}()
	// Where it fails, Go's AES-GCM leaves zeros.
	if _, err = aead.Open(m[:0], nonce, m, ad); err != nil {
		return fmt.Errorf("%w: the JWE does not open", sealed.ErrIntegrity)
	}
	return nil
}

func parseHeader(protected []byte) (h header, err error) {
	text, err := base64.RawURLEncoding.DecodeString(string(protected))
	if err != nil || json.Unmarshal(text, &h) != nil {
		return header{}, fmt.Errorf("%w: no header", ErrFormat)
	}
	switch {
	case h.Crit != nil:
		return header{}, fmt.Errorf("%w: critical header members", ErrFormat)
	case h.Zip != "":
		return header{}, fmt.Errorf("%w: compressed (zip)", ErrFormat)
	case h.Enc != "A256GCM" && h.Enc != "A128GCM" && h.Enc != "A192GCM":
		return header{}, fmt.Errorf("%w: enc %q: A256GCM is", ErrFormat, podvm.Printable(h.Enc, 32))
	}
	return h, nil
}

// content returns the cipher of the content, whose key is wrapped.
func (k *Key) content(h header, wrapped []byte) (cipher.AEAD, error) {
	var cek podvm.Secret
	switch want := fmt.Sprintf("A%dKW", 8*len(k.secret)); h.Alg {
	case "dir":
		if len(wrapped) > 0 {
			return nil, fmt.Errorf("%w: a wrapped key with alg dir", ErrFormat)
		}
		cek = append(cek, k.secret...)
	case "A128KW", "A192KW", "A256KW":
		if h.Alg != want {
			return nil, fmt.Errorf("%w: the key is for %s, the JWE for %s", sealed.ErrIntegrity, want, h.Alg)
		}
		block, err := aes.NewCipher(k.secret)
		if err != nil {
			return nil, fmt.Errorf("preparing AES: %w", err)
		}
		if cek, err = josecipher.KeyUnwrap(block, wrapped); err != nil {
			return nil, fmt.Errorf("%w: its content key does not unwrap", sealed.ErrIntegrity)
		}
	default:
		return nil, fmt.Errorf("%w: alg %q: A256KW and dir are", ErrFormat, podvm.Printable(h.Alg, 32))
	}
	defer cek.Wipe()
	if want := fmt.Sprintf("A%dGCM", 8*len(cek)); h.Enc != want {
		return nil, fmt.Errorf("%w: a content key of %d bytes for %s", sealed.ErrIntegrity, len(cek), h.Enc)
	}
	block, err := aes.NewCipher(cek)
	if err != nil {
		return nil, fmt.Errorf("preparing AES: %w", err)
	}
	return cipher.NewGCM(block)
}

// ciphertext decodes the part up to the next dot into file.
func ciphertext(ctx context.Context, r *bufio.Reader, file *os.File) (size int64, err error) {
	d := base64.NewDecoder(base64.RawURLEncoding, &dotReader{r: r})
	buf := make([]byte, 768<<10)
	for {
		n, err := io.ReadFull(d, buf)
		if _, werr := file.WriteAt(buf[:n], size); werr != nil {
			return 0, werr
		}
		size += int64(n)
		if corrupt := base64.CorruptInputError(0); errors.As(err, &corrupt) {
			return 0, fmt.Errorf("%w: its text is not base64url", ErrFormat)
		}
		switch {
		case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
			return size, nil
		case err != nil:
			return 0, err
		case size > MaxSize:
			return 0, fmt.Errorf("%w: a JWE of more than %d bytes", podvm.ErrTooLarge, int64(MaxSize))
		case ctx.Err() != nil:
			return 0, ctx.Err()
		}
	}
}

// errCut says that an object ends before its last field.
var errCut = fmt.Errorf("%w: it ends too early", ErrFormat)

// dotReader reads up to the next dot, which it takes.
type dotReader struct {
	r    *bufio.Reader
	done bool
}

func (d *dotReader) Read(p []byte) (int, error) {
	if d.done {
		return 0, io.EOF
	}
	if _, err := d.r.Peek(1); err != nil {
		return 0, cut(err)
	}
	have, _ := d.r.Peek(min(d.r.Buffered(), len(p)))
	n := len(have)
	for i, c := range have {
		if c == '\n' || c == '\r' { // which the decoder would skip
			return 0, fmt.Errorf("%w: line breaks", ErrFormat)
		}
		if c == '.' {
			n, d.done = i, true
			break
		}
	}
	copy(p, have[:n])
	if d.done {
		_, _ = d.r.Discard(n + 1)
		if n == 0 {
			return 0, io.EOF
		}
		return n, nil
	}
	_, _ = d.r.Discard(n)
	return n, nil
}

func cut(err error) error {
	if errors.Is(err, io.EOF) {
		return errCut
	}
	return err
}

// field reads text up to the next dot, which it takes.
func field(r *bufio.Reader, limit int) ([]byte, error) {
	var out []byte
	for {
		c, err := r.ReadByte()
		switch {
		case err != nil:
			return nil, cut(err)
		case c == '.':
			return out, nil
		case len(out) == limit:
			return nil, fmt.Errorf("%w: a field of more than %d bytes", ErrFormat, limit)
		}
		out = append(out, c)
	}
}

// binary reads a field in base64url.
func binary(r *bufio.Reader) ([]byte, error) {
	text, err := field(r, maxField)
	if err != nil {
		return nil, err
	}
	return unbase64(text)
}

func unbase64(text []byte) ([]byte, error) {
	out, err := base64.RawURLEncoding.Strict().DecodeString(string(text))
	if err != nil {
		return nil, fmt.Errorf("%w: its text is not base64url", ErrFormat)
	}
	return out, nil
}

// lastField reads the field that ends the object. A line break may follow.
func lastField(r io.Reader) ([]byte, error) {
	text, err := podvm.ReadMax(r, maxField)
	if errors.Is(err, podvm.ErrTooLarge) {
		return nil, fmt.Errorf("%w: a field of more than %d bytes", ErrFormat, maxField)
	}
	if err != nil {
		return nil, err
	}
	for len(text) > 0 && (text[len(text)-1] == '\n' || text[len(text)-1] == '\r') {
		text = text[:len(text)-1]
	}
	return unbase64(text)
}
