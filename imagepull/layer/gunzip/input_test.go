//go:build !sealpod_libgzip

package gunzip

import (
	"bytes"
	"testing"
	"testing/iotest"
)

// FuzzBits compares the bit reader, at any mix of steps, with reading one bit
// after the other.
func FuzzBits(f *testing.F) {
	f.Add([]byte("some bytes to read bits of"), []byte{1, 3, 14, 16, 17, 18, 2, 19, 9})
	f.Add(noise(3000), noise(2000))
	f.Fuzz(func(t *testing.T, raw, steps []byte) {
		z := &input{src: iotest.HalfReader(bytes.NewReader(raw))}
		at := uint(0) // bit
		total := uint(len(raw)) * 8
		expect := func(n uint) (v uint) {
			for i := range n {
				v |= uint(raw[(at+i)/8]>>((at+i)%8)&1) << i
			}
			at += n
			return v
		}
		for _, step := range steps {
			switch n := uint(step) % 20; {
			case n <= 16:
				v, err := z.bits(n)
				if (err != nil) != (at+n > total) {
					t.Fatalf("%d bits at %d of %d: %v", n, at, total, err)
				}
				if err != nil {
					return
				}
				if want := expect(n); v != want {
					t.Fatalf("%d bits at %d: %b, want %b", n, at-n, v, want)
				}
			case n == 17:
				z.refill()
				if want := min(56, total-at); z.n < want {
					t.Fatalf("refill made it %d of %d bits", z.n, want)
				}
			case n == 18:
				z.giveBack()
			default:
				k := uint(step) * 4
				at = (at + 7) / 8 * 8
				p, err := z.bytes(k)
				if (err != nil) != (at+k*8 > total) {
					t.Fatalf("%d bytes at %d of %d: %v", k, at, total, err)
				}
				if err != nil {
					return
				}
				if !bytes.Equal(p, raw[at/8:at/8+k]) {
					t.Fatalf("%d bytes at %d: %x", k, at, p)
				}
				at += k * 8
			}
			if z.offset() != int64(at/8) {
				t.Fatalf("offset %d at bit %d", z.offset(), at)
			}
		}
	})
}
