package gunzip

import (
	"bytes"
	stdgzip "compress/gzip"
	"encoding/binary"
	"hash/crc32"
	"io"
	"math/bits"
	"math/rand/v2"
	"testing"

	"github.com/klauspost/compress/gzip"
)

// stream writes DEFLATE bit by bit.
type stream struct {
	b []byte
	n uint // bits used of the last byte; 0 if all
}

// put writes the lowest n bits of v, lowest first.
func (s *stream) put(v, n uint) {
	for range n {
		if s.n == 0 {
			s.b = append(s.b, 0)
		}
		s.b[len(s.b)-1] |= byte(v&1) << s.n
		s.n = (s.n + 1) % 8
		v >>= 1
	}
}

// huff writes a code of n bits, highest first.
func (s *stream) huff(code, n uint) { s.put(uint(bits.Reverse16(uint16(code))>>(16-n)), n) }

func (s *stream) stored(final uint, data []byte) {
	s.put(final, 3)
	s.n = 0
	s.b = binary.LittleEndian.AppendUint16(s.b, uint16(len(data)))
	s.b = binary.LittleEndian.AppendUint16(s.b, ^uint16(len(data)))
	s.b = append(s.b, data...)
}

// symbol writes one of the code with these lengths.
func (s *stream) symbol(lengths []uint8, sym int) {
	s.huff(uint(canonical(lengths)[sym]), uint(lengths[sym]))
}

var canonicals = map[*uint8][]uint16{}

// canonical returns the codes of these lengths. Source: RFC 1951 section 3.2.2.
func canonical(lengths []uint8) []uint16 {
	codes := canonicals[&lengths[0]]
	if codes != nil {
		return codes
	}
	codes = make([]uint16, len(lengths))
	code := uint16(0)
	for n := uint8(1); n <= 15; n++ {
		for sym, l := range lengths {
			if l == n {
				codes[sym] = code
				code++
			}
		}
		code <<= 1
	}
	canonicals[&lengths[0]] = codes
	return codes
}

// dynamic begins a block with these code lengths, at least 257 and 1.
func (s *stream) dynamic(final uint, lit, dist []uint8) {
	s.put(final|2<<1, 3)
	s.put(uint(len(lit)-257), 5)
	s.put(uint(len(dist)-1), 5)
	s.put(15, 4)
	// Lengths 0 to 15 have codes of 4 bits each, repetitions none.
	for i := range uint(19) {
		if i < 3 {
			s.put(0, 3)
		} else {
			s.put(4, 3)
		}
	}
	for _, n := range append(append([]uint8{}, lit...), dist...) {
		s.huff(uint(n), 4)
	}
}

var fixedLit, fixedDist = func() (lit, dist []uint8) {
	for i := range 288 {
		n := uint8(8)
		if i >= 144 && i < 256 {
			n = 9
		} else if i >= 256 && i < 280 {
			n = 7
		}
		lit = append(lit, n)
	}
	return lit, bytes.Repeat([]uint8{5}, 32)
}()

// match writes a match. Source: RFC 1951 section 3.2.5.
func (s *stream) match(lit, dist []uint8, length, distance uint) {
	sym, base, extra := 257, uint(3), uint(0)
	for ; length != 258 && length >= base+1<<extra; sym++ {
		base += 1 << extra
		if sym >= 264 {
			extra = uint(sym-260) / 4
		}
	}
	if length == 258 {
		sym, base, extra = 285, 258, 0
	}
	s.symbol(lit, sym)
	s.put(length-base, extra)
	sym, base, extra = 0, 1, 0
	for ; distance >= base+1<<extra; sym++ {
		base += 1 << extra
		if sym >= 3 {
			extra = uint(sym-1) / 2
		}
	}
	s.symbol(dist, sym)
	s.put(distance-base, extra)
}

// member makes a gzip member of a DEFLATE stream.
func member(deflate, plain []byte) []byte {
	b := append([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255}, deflate...)
	b = binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(plain))
	return binary.LittleEndian.AppendUint32(b, uint32(len(plain)))
}

func compress(t testing.TB, level int, plain []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := stdgzip.NewWriterLevel(&b, level)
	if err == nil {
		_, err = w.Write(plain)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func noise(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{'g', 'z'})
	_, _ = r.Read(b)
	return b
}

// words looks like text to a compressor.
func words(n int) []byte {
	r := rand.New(rand.NewPCG(1, 2))
	var b []byte
	for len(b) < n {
		for range 1 + r.IntN(9) {
			b = append(b, byte('a'+r.IntN(1+r.IntN(26))))
		}
		if len(b) > 100 && r.IntN(3) == 0 {
			at := r.IntN(len(b) - 50)
			at = max(at, len(b)-30000)
			b = append(b, b[at:at+r.IntN(40)]...)
		}
		b = append(b, ' ')
	}
	return b[:n]
}

func gunzip(r io.Reader) ([]byte, error) {
	g := NewReader(r, Options{})
	defer g.Close()
	return io.ReadAll(g)
}

// oracle is what the standard library makes of a stream. What klauspost's
// decoder refuses on top, reserved flags in a header, is refused too.
func oracle(raw []byte) ([]byte, error) {
	std, err := stdgzip.NewReader(bytes.NewReader(raw))
	if err != nil {
		return nil, err
	}
	plain, err := io.ReadAll(std)
	if err == nil {
		var other *gzip.Reader
		if other, err = gzip.NewReader(bytes.NewReader(raw)); err == nil {
			_, err = io.Copy(io.Discard, other)
		}
	}
	return plain, err
}

// agree compares with the oracle: the same bytes, or an error of both.
func agree(t *testing.T, raw []byte) (plain []byte, err error) {
	t.Helper()
	want, wantErr := oracle(raw)
	plain, err = gunzip(bytes.NewReader(raw))
	if (err == nil) != (wantErr == nil) {
		t.Fatalf("error %v, the standard library's is %v", err, wantErr)
	}
	n := min(len(plain), len(want))
	if (err == nil && len(plain) != len(want)) || !bytes.Equal(plain[:n], want[:n]) {
		t.Fatalf("%d bytes differ from the standard library's %d", len(plain), len(want))
	}
	return plain, err
}
