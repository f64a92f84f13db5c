//go:build !sealpod_libgzip

package gunzip

// fastIn is what one round of the fast loop may take from in: it loads 8 bytes
// three times and moves on by at most 7 each time.
const fastIn = 3*7 + word

// fast decodes while there is plenty of input and room, without looking for the
// end of either in between. It ends with less than that, or with the block.
func (z *inflater) fast() error {
	const litMask, distMask = 1<<litBits - 1, 1<<distBits - 1
	var (
		b, n    = z.b, z.n
		ip, op  = z.ip, z.op
		ipEnd   = z.end - fastIn
		in, out = &z.in, z.out
		lit     = &z.t.lit
		dist    = &z.t.dist
		begin   = z.begin
	)
	for ip <= ipEnd && op < outLimit {
		b |= le.Uint64(in[ip&inMask:]) << (n & 63)
		ip += (63 - n) >> 3
		n |= 56
		e := lit[b&litMask]
		if e&flagLiterals != 0 {
			le.PutUint16(out[op&outMask:], uint16(e>>16))
			op += uint(e>>6) & 3
			b >>= e & 63
			n -= uint(e & 63)
			e = lit[b&litMask]
			if e&flagLiterals != 0 {
				le.PutUint16(out[op&outMask:], uint16(e>>16))
				op += uint(e>>6) & 3
				b >>= e & 63
				n -= uint(e & 63)
				e = lit[b&litMask]
				if e&flagLiterals != 0 {
					le.PutUint16(out[op&outMask:], uint16(e>>16))
					op += uint(e>>6) & 3
					b >>= e & 63
					n -= uint(e & 63)
					continue
				}
			}
			b |= le.Uint64(in[ip&inMask:]) << (n & 63)
			ip += (63 - n) >> 3
			n |= 56
		}
		if e&flagSpecial != 0 {
			if e&flagLink != 0 {
				b >>= litBits
				n -= litBits
				e = lit[(e>>16+uint32(b)&(1<<(e>>8&15)-1))&(litSize-1)]
			}
			if e&(flagSpecial|flagLiterals) != 0 {
				if e&flagLiterals != 0 {
					out[op&outMask] = byte(e >> 16)
					op++
					b >>= e & 63
					n -= uint(e & 63)
					continue
				}
				z.b, z.n, z.ip, z.op = b>>(e&63), n-uint(e&63), ip, op
				z.giveBack()
				if e&flagEnd == 0 {
					return z.corrupt("literal or length")
				}
				z.state = blockHeader
				return nil
			}
		}
		length := uint(e>>16&511) + uint(b>>(e>>8&15))&uint(e>>25&31)
		b >>= e & 63
		n -= uint(e & 63)
		f := dist[b&distMask]
		if f&flagSpecial != 0 {
			if f&flagLink != 0 {
				b >>= distBits
				n -= distBits
				f = dist[(f>>16+b&(1<<(f>>8&15)-1))&(distSize-1)]
			}
			if f&flagSpecial != 0 {
				z.b, z.n, z.ip, z.op = b, n, ip, op
				z.giveBack()
				return z.corrupt("distance")
			}
		}
		d := uint(f>>16&0xffff) + uint(b>>(f>>8&15))&uint(f>>32)
		b >>= f & 63
		n -= uint(f & 63)
		if d > op-begin {
			z.b, z.n, z.ip, z.op = b, n, ip, op
			z.giveBack()
			return z.corrupt("distance")
		}
		// What a step writes too much is overwritten later and not read before.
		from, to := op-d, op
		op += length
		switch {
		case d >= word:
			for {
				le.PutUint64(out[to&outMask:], le.Uint64(out[from&outMask:]))
				le.PutUint64(out[(to+word)&outMask:], le.Uint64(out[(from+word)&outMask:]))
				le.PutUint64(out[(to+2*word)&outMask:], le.Uint64(out[(from+2*word)&outMask:]))
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
