//go:build !sealpod_libgzip

package gunzip

import "math/bits"

const (
	maxCodeLen = 15
	maxLit     = 288 // of the alphabets; the last two of each stand for nothing
	maxDist    = 32
	metaBits   = 7  // of the code of code lengths
	litBits    = 11 // bits of a first look-up of a literal or length
	distBits   = 9  // bits of a first look-up of a distance

	// Room for all entries a complete code can need, see fill; powers of two,
	// so that a mask replaces the bounds check.
	litSize  = 1 << 12
	distSize = 1 << 10
)

// An entry of the literal/length table is
//
//	bits 0–5    bits to consume: the code and its extra bits
//	bits 6–7    number of literals, 1 or 2; 0 for everything else
//	bits 8–11   length only: bits of the code alone
//	bit  12     code is longer than litBits: bits 8–11 number of index bits,
//	            bits 16–31 position of the second-level table
//	bit  13     end of block
//	bit  15     not a literal and not a length
//	bits 16–31  literals, the first in the low byte; or
//	bits 16–24  length, or its base, and
//	bits 25–29  mask of its extra bits
//
// and one of the distance table, which has 64 bits,
//
//	bits 0–5    bits to consume
//	bits 8–11   bits of the code alone
//	bits 12, 15 as above
//	bits 16–31  base of the distance, or position of the second-level table
//	bits 32–47  mask of its extra bits
//
// A code that stands for nothing has bit 15 alone of all flags.
const (
	literalsShift = 6
	codeShift     = 8
	flagLiterals  = 3 << literalsShift
	flagLink      = 1 << 12
	flagEnd       = 1 << 13
	flagSpecial   = 1 << 15
)

// tables are what a block is decoded with.
type tables struct {
	lit  [litSize]uint32
	dist [distSize]uint64
}

// litSymbols and distSymbols hold the entries of all symbols without the
// length of their codes. Source: RFC 1951 section 3.2.5.
var litSymbols, distSymbols = symbols()

func symbols() (lit [maxLit]uint32, dist [maxDist]uint64) {
	for i := range 256 {
		lit[i] = uint32(i)<<16 | 1<<literalsShift
	}
	lit[256] = flagSpecial | flagEnd
	base, extra := uint32(3), uint32(0)
	for i := 257; i < 285; i++ {
		if i >= 265 {
			extra = uint32(i-261) / 4
		}
		lit[i] = (1<<extra-1)<<25 | base<<16 | extra
		base += 1 << extra
	}
	lit[285] = 258 << 16
	lit[286], lit[287] = flagSpecial, flagSpecial

	far, more := uint64(1), uint64(0)
	for i := range 30 {
		if i >= 4 {
			more = uint64(i-2) / 2
		}
		dist[i] = (1<<more-1)<<32 | far<<16 | more
		far += 1 << more
	}
	dist[30], dist[31] = flagSpecial, flagSpecial
	return lit, dist
}

// entry is one of either table.
type entry interface{ uint32 | uint64 }

// fill makes the table of the canonical Huffman code with these lengths (0 for
// a symbol not in use): 1<<first entries, then second-level tables as needed.
// Source: RFC 1951 section 3.2.2.
//
// It refuses codes that are not complete, but for two: no symbol at all, and
// one symbol of length 1, which are for blocks with no distance or only one.
// (Reading what stands for nothing is an error later.) These are the rules of
// zlib and of Go's compress/flate.
//
// A second-level table of 2^k entries serves at least k+1 symbols, so that 288
// symbols cannot need more than 288/5*16 entries behind 2^11, nor 32 more than
// 32/7*64 behind 2^9.
//
// With pairs set, a first-level entry holds two literals where the bits are
// enough for both.
func fill[E entry](table, symbols []E, lengths []uint8, first uint, pairs bool) (ok bool) {
	var count, next [maxCodeLen + 2]uint32
	for _, n := range lengths {
		count[n&maxCodeLen]++
	}
	used := len(lengths) - int(count[0])
	count[0] = 0
	space := uint32(0) // how much of all codes is used, complete at 1<<15
	for n := 1; n <= maxCodeLen; n++ {
		next[n+1] = next[n] + count[n]
		space += count[n] << (maxCodeLen - n)
	}
	if space != 1<<maxCodeLen {
		if used > 1 || (used == 1 && count[1] != 1) {
			return false
		}
		for i := range table[:1<<first] {
			table[i] = flagSpecial + 1
		}
	}
	next[0] = uint32(len(lengths)) // symbols not in use go behind
	var sorted [2 * maxLit]uint16  // symbols in the order of their codes
	for sym, n := range lengths {
		sorted[next[n&maxCodeLen]] = uint16(sym)
		next[n&maxCodeLen]++
	}

	// Codes of n bits fill the first 2^n entries, and each doubling repeats
	// them, since the bits that follow do not matter.
	todo := sorted[:used]
	code := uint32(0) // aligned left in 16 bits
	var literals [256]literal[E]
	k := uint(0)
	var begin [maxCodeLen + 2]uint // of those with codes of each length
	for n := uint(1); n <= first; n++ {
		half := uint(1) << (n - 1)
		copy(table[half:2*half], table[:half])
		for _, sym := range todo[:count[n]] {
			rev := bits.Reverse16(uint16(code))
			e := withLength(symbols[sym], n)
			table[rev] = e
			code += 1 << (16 - n)
			if sym < 256 {
				literals[k] = literal[E]{rev, e}
				k++
			}
		}
		todo = todo[count[n]:]
		begin[n+1] = k
		for m := uint(1); pairs && m < n; m++ {
			for _, a := range literals[begin[m]:begin[m+1]] {
				for _, b := range literals[begin[n-m]:begin[n-m+1]] {
					table[a.code|b.code<<m] = b.entry>>16<<24 | a.entry&(255<<16) | 2<<literalsShift | E(n)
				}
			}
		}
	}

	end, link := uint(1)<<first, uint(1)<<31
	sub, subBits := uint(0), uint(0)
	for _, sym := range todo {
		n := uint(lengths[sym])
		rev := uint(bits.Reverse16(uint16(code)))
		code += 1 << (16 - n)
		if prefix := rev & (1<<first - 1); prefix != link {
			// All codes with this prefix follow, from short to long.
			link, sub, subBits = prefix, end, n-first
			for room := count[n]; room < 1<<subBits; {
				subBits++
				room = room<<1 + count[first+subBits]
			}
			end += 1 << subBits
			table[prefix] = E(sub)<<16 | flagSpecial | flagLink | E(subBits)<<codeShift | E(first)
		}
		e := withLength(symbols[sym], n-first)
		for i := rev >> first; i < 1<<subBits; i += 1 << (n - first) {
			table[sub+i] = e
		}
		count[n]--
	}
	return true
}

type literal[E entry] struct {
	code  uint16 // as it comes in the stream, first bit lowest
	entry E
}

// withLength completes the entry of a symbol whose code has n bits (in its
// table).
func withLength[E entry](e E, n uint) E {
	if e&(flagSpecial|flagLiterals) == 0 {
		e |= E(n) << codeShift
	}
	return e + E(n)
}
