// Package openssl opens what "openssl enc -aes-256-cbc -pbkdf2 -kfile" wrote:
// the models of the Red Hat demo of KServe with confidential containers.
//
// Data path: the storage initializer hands over an object as it arrives and the
// file in progress; the file has the plaintext at the end.
//
// Trust: nothing authenticates the object. Whoever stores it can change the
// model and not be found out, so the storage initializer uses this package only
// when its environment asks for it, and warns. Padding that does not fit is the
// only fault that shows.
//
// Source: confidential-devhub/coco-kserve-storage-initializer; OpenSSL 3.0
// apps/enc.c.
package openssl

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/pbkdf2"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/sealpod/sealpod/model/sealed"
	"github.com/sealpod/sealpod/podvm"
)

// Facts of the format.
const (
	magic      = "Salted__"
	saltSize   = 8
	iterations = 10_000
	maxPass    = 127 // bytes; OpenSSL takes no notice of more
)

// ErrFormat says that an object is not OpenSSL's.
var ErrFormat = errors.New("not a file of openssl enc")

// Passphrase opens objects.
type Passphrase struct{ text podvm.Secret }

// ParseKeyFile reads the passphrase as OpenSSL does from a key file: at most 127
// bytes of its first line, without the line break, up to a zero byte. Errors:
// sealed.ErrKey when that is less than 2 bytes.
func ParseKeyFile(raw []byte) (*Passphrase, error) {
	line, _, _ := bytes.Cut(raw, []byte("\n"))
	line, _, _ = bytes.Cut(line[:min(len(line), maxPass)], []byte{0})
	line = bytes.TrimRight(line, "\r")
	if len(line) < 2 {
		return nil, fmt.Errorf("%w: a passphrase of %d bytes: OpenSSL wants 2", sealed.ErrKey, len(line))
	}
	return &Passphrase{bytes.Clone(line)}, nil
}

// Wipe overwrites the passphrase.
func (p *Passphrase) Wipe() { p.text.Wipe() }

// Open writes the plaintext of object to file, which is empty, and returns its
// size. Errors: ErrFormat, sealed.ErrIntegrity for padding that does not fit, as
// a wrong passphrase leaves it but for one time in 255, those of reading and
// writing, the context's.
func (p *Passphrase) Open(ctx context.Context, object io.Reader, file *os.File) (int64, error) {
	head := make([]byte, len(magic)+saltSize)
	if _, err := io.ReadFull(object, head); err != nil {
		return 0, short(err)
	}
	if !bytes.HasPrefix(head, []byte(magic)) {
		return 0, fmt.Errorf("%w: it does not start with %s", ErrFormat, magic)
	}
	derived, err := pbkdf2.Key(sha256.New, string(p.text), head[len(magic):], iterations, 32+aes.BlockSize)
	if err != nil {
		return 0, fmt.Errorf("deriving the key: %w", err)
	}
	defer clear(derived)
	block, err := aes.NewCipher(derived[:32])
	if err != nil {
		return 0, fmt.Errorf("preparing AES: %w", err)
	}
	size, err := decrypt(ctx, block, derived[32:], object, file)
	if err != nil {
		return 0, err
	}
	return unpad(file, size)
}

func short(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: it is too short", ErrFormat)
	}
	return err
}

// decrypt writes all blocks to file, padding included, on all cores: each piece
// of CBC needs no more of the one before than its last block.
func decrypt(ctx context.Context, block cipher.Block, iv []byte, object io.Reader, file io.WriterAt) (size int64, err error) {
	buffers := sync.Pool{New: func() any { return new([1 << 20]byte) }}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for more := true; more && ctx.Err() == nil; {
		buf := buffers.Get().(*[1 << 20]byte)
		n, rerr := io.ReadFull(object, buf[:])
		more = rerr == nil
		if rerr != nil && !errors.Is(rerr, io.EOF) && !errors.Is(rerr, io.ErrUnexpectedEOF) {
			err = rerr
			break
		}
		if n%aes.BlockSize != 0 {
			err = fmt.Errorf("%w: %d bytes after its last block", ErrFormat, n%aes.BlockSize)
			break
		}
		if n == 0 {
			break
		}
		off, chain := size, iv
		iv = bytes.Clone(buf[n-aes.BlockSize : n])
		size += int64(n)
		g.Go(func() error {
			defer buffers.Put(buf)
			cipher.NewCBCDecrypter(block, chain).CryptBlocks(buf[:n], buf[:n])
			_, err := file.WriteAt(buf[:n], off)
			return err
		})
	}
	stopped := ctx.Err() // before Wait cancels it
	if werr := g.Wait(); werr != nil {
		return 0, werr
	}
	return size, errors.Join(err, stopped)
}

// unpad returns how much of file is left without its padding, and cuts that off.
func unpad(file *os.File, size int64) (int64, error) {
	if size == 0 {
		return 0, fmt.Errorf("%w: it is too short", ErrFormat)
	}
	last := make([]byte, aes.BlockSize)
	if _, err := file.ReadAt(last, size-aes.BlockSize); err != nil {
		return 0, fmt.Errorf("reading the last block back: %w", err)
	}
	pad := int(last[aes.BlockSize-1])
	if pad < 1 || pad > aes.BlockSize || bytes.Count(last[aes.BlockSize-pad:], last[aes.BlockSize-1:]) != pad {
		return 0, errors.Join(fmt.Errorf("%w: wrong padding, as after a wrong passphrase", sealed.ErrIntegrity), file.Truncate(0))
	}
	size -= int64(pad)
	return size, file.Truncate(size)
}
