package gunzip

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"slices"
	"testing"
	"testing/iotest"
)

// seeds are streams of every kind the tests make.
func seeds(t testing.TB) [][]byte {
	raw, _ := short(t)
	all := [][]byte{nil, raw, raw[:len(raw)-3], append(bytes.Clone(raw), 0)}
	for _, plain := range [][]byte{nil, words(3000), noise(500), make([]byte, 3000)} {
		for _, level := range []int{-2, 0, 1, 6, 9} {
			all = append(all, compress(t, level, plain))
		}
	}
	for _, lit := range [][]uint8{
		ones(257, endOnly), ones(258, abEnd), ones(257, nil), ones(286, ladder('e', 't', 'a', 'o', 257, 'n', 258, 256)),
		ones(286, ladder(285, 284, 269, 265, 257, 258, 256, 'e', 't', 'a', 'o', 'n', 's', 'r', 'h', 'd')),
	} {
		for _, dist := range [][]uint8{{0}, {1}, {1, 1, 1}, ones(30, ladder(0, 1, 2, 3, 4, 6, 8, 10, 12, 14, 16, 20, 24, 26, 28, 29))} {
			var s stream
			s.stored(0, noise(100))
			s.dynamic(1, lit, dist)
			s.b = append(s.b, noise(200)...)
			all = append(all, member(s.b, nil))
		}
	}
	all = append(all, withSum([]byte{0x1f, 0x8b, 8, 31, 0, 0, 0, 0, 0, 0, 1, 0, 'x', 'n', 0, 'c', 0}))
	return all
}

// FuzzGzip compares whole streams with the standard library, and reading byte
// by byte with reading at once.
func FuzzGzip(f *testing.F) {
	for _, raw := range seeds(f) {
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		plain, err := agree(t, raw)
		again, err2 := gunzip(iotest.OneByteReader(bytes.NewReader(raw)))
		if !bytes.Equal(plain, again) || (err == nil) != (err2 == nil) || (err != nil && err.Error() != err2.Error()) {
			t.Errorf("byte by byte: %d bytes, %v; at once: %d bytes, %v", len(again), err2, len(plain), err)
		}
		if err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("neither corrupt nor truncated: %v", err)
		}
	})
}

// FuzzDeflate puts a correct trailer behind what the standard library makes of
// a DEFLATE stream, so that nothing hides behind a checksum, and plenty of
// bytes behind that, so that the fast loop decodes all of it.
func FuzzDeflate(f *testing.F) {
	for _, raw := range seeds(f) {
		if len(raw) > 18 {
			f.Add(raw[10:len(raw)-8], uint16(len(raw)))
		}
	}
	f.Fuzz(func(t *testing.T, deflate []byte, behind uint16) {
		raw := member(deflate, nil)
		plain, err := oracle(raw)
		if err == nil || len(plain) > 0 {
			binary.LittleEndian.PutUint32(raw[len(raw)-8:], crc32.ChecksumIEEE(plain))
			binary.LittleEndian.PutUint32(raw[len(raw)-4:], uint32(len(plain)))
		}
		_, _ = agree(t, raw)
		_, _ = agree(t, slices.Concat(raw, compress(t, 0, noise(int(behind)))))
	})
}

// FuzzSymbols writes blocks with arbitrary codes, complete ones mostly, and
// arbitrary bits for them: what compressors do not write, but may.
func FuzzSymbols(f *testing.F) {
	f.Add([]byte("lengths of codes"), []byte("distances"), noise(300))
	f.Add([]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}, []byte{16, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1}, words(300))
	f.Add(noise(285), noise(30), noise(1000))
	f.Add([]byte{0}, []byte{0}, []byte{0, 255})
	f.Fuzz(func(t *testing.T, lit, dist, body []byte) {
		var s stream
		s.stored(0, noise(5000))
		s.dynamic(1, complete(lit, 257, 286), complete(dist, 1, 30))
		s.n = 0
		s.b = append(s.b, body...)
		_, _ = agree(t, member(s.b, nil))
		s.b = append(s.b, make([]byte, 64)...)
		_, _ = agree(t, member(s.b, nil))
	})
}

// complete makes code lengths for n to m symbols of hostile bytes, most likely
// those of a complete code: each byte says which leaf of the tree to split.
func complete(hostile []byte, n, m int) []uint8 {
	count := min(max(n, len(hostile)), m)
	lengths := make([]uint8, count)
	if len(hostile) == 0 {
		return lengths
	}
	leaves := []uint8{1, 1}
	for _, b := range hostile[:min(len(hostile), count)] {
		if i := int(b) % len(leaves); leaves[i] < 15 && len(leaves) < count {
			leaves[i]++
			leaves = append(leaves, leaves[i])
		}
	}
	for i, l := range leaves { // with a stride, the end of the block among them
		if i < count {
			lengths[(count-1-i*31%count+count)%count] = l
		}
	}
	return lengths
}
