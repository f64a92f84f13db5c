//go:build !sealpod_libgzip

package gunzip

// fastIn is what it takes to begin: a load, which moves on by 7 bytes at most,
// and the one of the first round.
const fastIn = 7 + word

// literals writes those of an entry. One too many is overwritten later.
func literals(out *buffer, op uint, e uint32) uint {
	le.PutUint16(out[op&outMask:], uint16(e>>16))
	return op + uint(e>>literalsShift)&3
}

// fast decodes while there is plenty of input and room, without looking for the
// end of either in between. It ends with less than that, or with the block. The
// caller makes sure of one round: fastIn bytes, and that the buffer is not full.
//
// The next entry is looked up before the last match is copied, since what
// follows depends on the entry and not on the copy.
func (z *inflater) fast() error {
	const litMask, distMask = 1<<litBits - 1, 1<<distBits - 1
	var (
		b, n    = z.b, z.n
		ip, op  = z.ip, z.op
		in, out = &z.in, z.out
		lit     = &z.t.lit
		dist    = &z.t.dist
		begin   = z.begin
		ipEnd   = z.end - word
	)
	b, n, ip = load(in, b, n, ip)
	e := lit[b&litMask]
	for ip <= ipEnd && op < outLimit {
		if e&flagLiterals != 0 {
			op = literals(out, op, e)
			b, n = b>>(e&63), n-uint(e&63)
			e = lit[b&litMask] // there are bits enough, so it need not wait
			b, n, ip = load(in, b, n, ip)
			continue
		}
		// 48 of the 56 bits are enough for a length and a distance.
		if e&flagSpecial != 0 {
			if e&flagLink != 0 {
				b, n = b>>litBits, n-litBits
				e = lit[(e>>16+uint32(b)&(1<<(e>>codeShift&15)-1))&(litSize-1)]
			}
			if e&flagLiterals != 0 {
				op = literals(out, op, e)
				b, n = b>>(e&63), n-uint(e&63)
				e = lit[b&litMask]
				b, n, ip = load(in, b, n, ip)
				continue
			}
			if e&flagSpecial != 0 {
				z.b, z.n, z.ip, z.op = b>>(e&63), n-uint(e&63), ip, op
				z.giveBack()
				if e&flagEnd == 0 {
					return z.corrupt("literal or length")
				}
				z.state = blockHeader
				return nil
			}
		}
		length := uint(e>>16&511) + uint(b>>(e>>codeShift&15))&uint(e>>25&31)
		b, n = b>>(e&63), n-uint(e&63)
		f := dist[b&distMask]
		if f&flagLink != 0 {
			b, n = b>>distBits, n-distBits
			f = dist[(f>>16+b&(1<<(f>>codeShift&15)-1))&(distSize-1)]
		}
		d := uint(f>>16&0xffff) + uint(b>>(f>>codeShift&15))&uint(f>>32)
		b, n = b>>(f&63), n-uint(f&63)
		if f&flagSpecial != 0 || d > op-begin {
			z.b, z.n, z.ip, z.op = b, n, ip, op
			z.giveBack()
			return z.corrupt("distance")
		}
		b, n, ip = load(in, b, n, ip)
		e = lit[b&litMask]
		// What a step writes too much is overwritten later and not read before.
		from, to := op-d, op
		op += length
		switch {
		case d >= word:
			for {
				le.PutUint64(out[to&outMask:], le.Uint64(out[from&outMask:]))
				le.PutUint64(out[(to+word)&outMask:], le.Uint64(out[(from+word)&outMask:]))
				le.PutUint64(out[(to+2*word)&outMask:], le.Uint64(out[(from+2*word)&outMask:]))
				le.PutUint64(out[(to+3*word)&outMask:], le.Uint64(out[(from+3*word)&outMask:]))
				to += stride
				from += stride
				if to >= op {
					break
				}
			}
		case d == 1:
			v := uint64(out[from&outMask]) * 0x0101010101010101
			for ; to < op; to += word {
				le.PutUint64(out[to&outMask:], v)
			}
		default:
			for ; to < op; to++ {
				out[to&outMask] = out[from&outMask]
				from++
			}
		}
	}
	z.b, z.n, z.ip, z.op = b, n, ip, op
	z.giveBack()
	return nil
}
