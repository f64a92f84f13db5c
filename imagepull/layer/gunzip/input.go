//go:build !sealpod_libgzip

package gunzip

import (
	"encoding/binary"
	"fmt"
	"io"
)

const (
	inSize = 64 << 10
	inMask = inSize - 1
	word   = 8 // bytes of a wide load or store
)

var le = binary.LittleEndian

// input is a stream of bytes and bits. b holds the next n bits, lowest first,
// the bytes after them are in[ip:end]; those in b are in[ip-n/8:ip].
type input struct {
	src  io.Reader
	err  error // what src ended with; io.EOF at its end
	b    uint64
	n    uint
	ip   uint
	end  uint
	base int64               // offset of in[0] in the stream
	in   [inSize + word]byte // a load at ip&inMask stays inside
}

// offset of the byte that holds the next bit.
func (z *input) offset() int64 { return z.base + int64(z.ip) - int64((z.n+7)/8) }

// giveBack returns whole bytes from b to in.
func (z *input) giveBack() {
	z.ip -= z.n / 8
	z.n %= 8
	z.b &= 1<<z.n - 1
}

// want reads until n bytes (no more than 1024) are in the buffer or src has
// ended.
func (z *input) want(n uint) {
	if z.end-z.ip >= n || z.err != nil {
		return
	}
	keep := min(z.ip, word) // for giveBack
	z.base += int64(z.ip - keep)
	z.end = uint(copy(z.in[:], z.in[z.ip-keep:z.end]))
	z.ip = keep
	for idle := 0; z.end-z.ip < n && z.err == nil; idle++ {
		m, err := z.src.Read(z.in[z.end:inSize])
		if m > 0 {
			idle = 0
		} else if err == nil && idle == 100 {
			err = io.ErrNoProgress
		}
		z.end += uint(m)
		z.err = err
	}
}

// bytes returns the next n (at most 1024) bytes; they are good until the next
// call. What is left of a byte begun is dropped.
func (z *input) bytes(n uint) ([]byte, error) {
	z.giveBack()
	z.b, z.n = 0, 0
	z.want(n)
	if z.end-z.ip < n {
		return nil, z.short()
	}
	z.ip += n
	return z.in[z.ip-n : z.ip], nil
}

// bits returns the next n (at most 16) bits.
func (z *input) bits(n uint) (uint, error) {
	if z.n < n {
		z.refill()
		if z.n < n {
			return 0, z.short()
		}
	}
	v := uint(z.b) & (1<<n - 1)
	z.b >>= n
	z.n -= n
	return v, nil
}

// refill makes n at least 56, or all there is.
func (z *input) refill() {
	z.want(word)
	if z.end-z.ip >= word {
		z.b, z.n, z.ip = load(&z.in, z.b, z.n, z.ip)
		return
	}
	for z.n < 56 && z.ip < z.end {
		z.b |= uint64(z.in[z.ip]) << z.n
		z.ip++
		z.n += 8
	}
}

// load makes n at least 56. What it puts into b above n is right as well, so
// that loading it again does no harm. There are 8 bytes at ip.
func load(in *[inSize + word]byte, b uint64, n, ip uint) (uint64, uint, uint) {
	return b | le.Uint64(in[ip&inMask:])<<(n&63), n | 56, ip + (63-n)>>3
}

// short is the error for a stream that ends too early.
func (z *input) short() error {
	if z.err == io.EOF { //nolint:errorlint // only a bare io.EOF is the end
		return fmt.Errorf("gzip stream ends at byte %d: %w", z.base+int64(z.end), io.ErrUnexpectedEOF)
	}
	return z.err
}

// corrupt is the error for a stream that is wrong.
func (z *input) corrupt(what string) error {
	return fmt.Errorf("%w at byte %d: %s", ErrCorrupt, z.offset(), what)
}
