//go:build !sealpod_libgzip

package gunzip

import "sync"

// fixed returns the tables of RFC 1951 section 3.2.6.
var fixed = sync.OnceValue(func() *tables {
	var lengths [maxLit]uint8
	for i := range lengths {
		switch {
		case i < 144:
			lengths[i] = 8
		case i < 256:
			lengths[i] = 9
		case i < 280:
			lengths[i] = 7
		default:
			lengths[i] = 8
		}
	}
	t := new(tables)
	fill(t.lit[:], litSymbols[:], lengths[:], litBits, true)
	for i := range maxDist {
		lengths[i] = 5
	}
	fill(t.dist[:], distSymbols[:], lengths[:maxDist], distBits, false)
	return t
})

// lengthOrder is the order of the code lengths of code lengths.
// Source: RFC 1951 section 3.2.7.
var lengthOrder = [19]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

// lengthSymbols are the entries of the table of code lengths, made as literals.
var lengthSymbols = func() (s [19]uint32) {
	for i := range s {
		s[i] = uint32(i)<<16 | 1<<literalsShift
	}
	return s
}()

// readCodes reads the codes of a dynamic block.
func (z *inflater) readCodes() error {
	v, err := z.bits(14)
	if err != nil {
		return err
	}
	nlit, ndist, nlen := v&31+257, v>>5&31+1, v>>10+4
	if nlit > 286 || ndist > 30 {
		return z.corrupt("number of codes")
	}
	var order [19]uint8
	for _, i := range lengthOrder[:nlen] {
		v, err := z.bits(3)
		if err != nil {
			return err
		}
		order[i] = uint8(v)
	}
	if !fill(z.meta[:], lengthSymbols[:], order[:], metaBits, false) {
		return z.corrupt("code of code lengths")
	}
	lengths := z.lengths[:nlit+ndist]
	for i := 0; i < len(lengths); {
		if z.n < metaBits+7 { // a code and what follows it
			z.refill()
		}
		e := z.meta[z.b&(1<<metaBits-1)]
		sym, used := e>>16, uint(e&63)
		rep, value := 1, uint8(sym)
		switch sym {
		case 16:
			rep, value = 3+int(z.b>>used&3), 0
			if i > 0 {
				value = lengths[i-1]
			}
			used += 2
		case 17:
			rep, value = 3+int(z.b>>used&7), 0
			used += 3
		case 18:
			rep, value = 11+int(z.b>>used&127), 0
			used += 7
		}
		if used > z.n {
			return z.short()
		}
		if e&flagSpecial != 0 {
			return z.corrupt("code length")
		}
		z.b >>= used
		z.n -= used
		if sym == 16 && i == 0 {
			return z.corrupt("no code length to repeat")
		}
		if rep > len(lengths)-i {
			return z.corrupt("too many code lengths")
		}
		for range rep {
			lengths[i] = value
			i++
		}
	}
	z.giveBack()
	if !fill(z.t.lit[:], litSymbols[:], lengths[:nlit], litBits, true) {
		return z.corrupt("literal code")
	}
	if !fill(z.t.dist[:], distSymbols[:], lengths[nlit:], distBits, false) {
		return z.corrupt("distance code")
	}
	return nil
}

// slow decodes literals, a match or the end of the block.
func (z *inflater) slow() error {
	z.refill()
	e, b, n := uint64(z.t.lit[z.b&(1<<litBits-1)]), z.b, z.n
	if e&flagLink != 0 {
		b, n = b>>litBits, n-litBits
		e = uint64(z.t.lit[uint(e>>16)+uint(b)&(1<<(e>>codeShift&15)-1)])
	}
	// n wraps around if there are not enough bits; they come from at most
	// 48 of 56.
	length := uint(e>>16&511) + uint(b>>(e>>codeShift&15))&uint(e>>25&31)
	b, n = b>>(e&63), n-uint(e&63)
	switch {
	case n > 64:
		return z.short()
	case e&flagLiterals != 0:
		z.out[z.op], z.out[z.op+1] = byte(e>>16), byte(e>>24)
		z.op += uint(e>>literalsShift) & 3
		z.b, z.n = b, n
		return nil
	case e&flagEnd != 0:
		z.b, z.n, z.state = b, n, blockHeader
		return nil
	case e&flagSpecial != 0:
		return z.corrupt("literal or length")
	}
	e = z.t.dist[b&(1<<distBits-1)]
	if e&flagLink != 0 {
		b, n = b>>distBits, n-distBits
		e = z.t.dist[uint(e>>16&0xffff)+uint(b)&(1<<(e>>codeShift&15)-1)]
	}
	dist := uint(e>>16&0xffff) + uint(b>>(e>>codeShift&15))&uint(e>>32)
	b, n = b>>(e&63), n-uint(e&63)
	switch {
	case n > 64:
		return z.short()
	case e&flagSpecial != 0 || dist > z.op-z.begin:
		return z.corrupt("distance")
	}
	z.b, z.n = b, n
	for range length {
		z.out[z.op] = z.out[z.op-dist]
		z.op++
	}
	return nil
}
