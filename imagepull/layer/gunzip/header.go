//go:build !sealpod_libgzip

package gunzip

import "hash/crc32"

const (
	flagHeaderCRC = 1 << 1
	flagExtra     = 1 << 2
	flagName      = 1 << 3
	flagComment   = 1 << 4
	flagReserved  = 7 << 5

	// maxString bounds a name or comment with its final zero, as Go's
	// compress/gzip does.
	maxString = 512
)

// header reads the header of a member. Source: RFC 1952 section 2.3.
func (z *input) header() error {
	h, err := z.bytes(10)
	if err != nil {
		return err
	}
	if h[0] != 0x1f || h[1] != 0x8b || h[2] != 8 {
		return z.corrupt("not a gzip header")
	}
	flags := h[3]
	if flags&flagReserved != 0 {
		return z.corrupt("reserved flags in a header")
	}
	sum := crc32.ChecksumIEEE(h)
	next := func(n uint) ([]byte, error) {
		p, err := z.bytes(n)
		sum = crc32.Update(sum, crc32.IEEETable, p)
		return p, err
	}
	if flags&flagExtra != 0 {
		p, err := next(2)
		if err != nil {
			return err
		}
		for left := uint(le.Uint16(p)); left > 0; {
			n := min(left, 1024)
			if _, err := next(n); err != nil {
				return err
			}
			left -= n
		}
	}
	for _, flag := range []byte{flagName, flagComment} {
		if flags&flag == 0 {
			continue
		}
		for n := 1; ; n++ {
			p, err := next(1)
			if err != nil {
				return err
			}
			if p[0] == 0 {
				break
			}
			if n == maxString {
				return z.corrupt("string in a header")
			}
		}
	}
	if flags&flagHeaderCRC != 0 {
		want := uint16(sum)
		p, err := z.bytes(2)
		if err != nil {
			return err
		}
		if le.Uint16(p) != want {
			return z.corrupt("checksum of a header")
		}
	}
	return nil
}
