package gunzip

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"testing"
)

// ones is n code lengths of which those given are not zero.
func ones(n int, lengths map[int]uint8) []uint8 {
	l := make([]uint8, n)
	for i, v := range lengths {
		l[i] = v
	}
	return l
}

// ladder has codes of 1, 2, … 14, 15, 15 bits.
func ladder(symbols ...int) map[int]uint8 {
	m := map[int]uint8{}
	for i, s := range symbols {
		m[s] = uint8(min(i+1, 15))
	}
	return m
}

var (
	endOnly = map[int]uint8{256: 1}
	abEnd   = map[int]uint8{'a': 2, 'b': 2, 256: 2, 257: 2}
)

// TestCodesAcceptedAndRefused holds the standard library's rules, and that they
// are what is written here. Each case is what follows a stored block "xyz".
func TestCodesAcceptedAndRefused(t *testing.T) {
	type block = func(s *stream)
	dyn := func(lit, dist []uint8, symbols ...int) block {
		return func(s *stream) {
			s.dynamic(1, lit, dist)
			for _, sym := range symbols {
				s.symbol(lit, sym)
			}
		}
	}
	bits := func(v, n uint, more ...block) block {
		return func(s *stream) {
			s.put(v, n)
			for _, f := range more {
				f(s)
			}
		}
	}
	then := func(fs ...block) block {
		return func(s *stream) {
			for _, f := range fs {
				f(s)
			}
		}
	}
	noDist, oneDist := []uint8{0}, []uint8{1}
	for name, tt := range map[string]struct {
		block block
		plain string // or
		bad   bool
	}{
		"two literals and no distances":      {block: dyn(ones(258, abEnd), noDist, 'a', 'b', 'a', 256), plain: "aba"},
		"one literal code of one bit":        {block: dyn(ones(257, endOnly), noDist, 256), plain: ""},
		"its other half":                     {block: then(dyn(ones(257, endOnly), noDist), bits(1, 1)), bad: true},
		"one literal code of two bits":       {block: dyn(ones(257, map[int]uint8{256: 2}), noDist, 256), bad: true},
		"incomplete literal code":            {block: dyn(ones(257, map[int]uint8{'a': 2, 256: 2}), noDist, 256), bad: true},
		"oversubscribed literal code":        {block: dyn(ones(257, map[int]uint8{'a': 1, 'b': 1, 256: 1}), noDist, 256), bad: true},
		"oversubscribed at 15 bits":          {block: dyn(ones(257, map[int]uint8{'a': 1, 'b': 1, 256: 15}), noDist, 'a'), bad: true},
		"no literal code at all":             {block: then(dyn(ones(257, nil), noDist), bits(0, 16)), bad: true},
		"no end of block":                    {block: dyn(ones(257, map[int]uint8{'a': 1, 'b': 1}), noDist, 'a', 'b', 'a', 'b'), bad: true},
		"match without distances":            {block: then(dyn(ones(258, abEnd), noDist, 257), bits(0, 64)), bad: true},
		"the only distance":                  {block: then(dyn(ones(258, abEnd), oneDist, 257), bits(0, 1), func(s *stream) { s.symbol(ones(258, abEnd), 256) }), plain: "zzz"},
		"its other half as distance":         {block: then(dyn(ones(258, abEnd), oneDist, 257), bits(1, 1), func(s *stream) { s.symbol(ones(258, abEnd), 256) }), bad: true},
		"one distance code of two bits":      {block: dyn(ones(258, abEnd), []uint8{2}, 256), bad: true},
		"incomplete distance code":           {block: dyn(ones(258, abEnd), []uint8{2, 2, 2}, 256), bad: true},
		"oversubscribed distance code":       {block: dyn(ones(258, abEnd), []uint8{1, 1, 1}, 256), bad: true},
		"286 literals and 30 distances":      {block: dyn(ones(286, abEnd), make([]uint8, 30), 'a', 256), plain: "a"},
		"287 literals":                       {block: dyn(ones(287, abEnd), noDist, 256), bad: true},
		"31 distances":                       {block: dyn(ones(258, abEnd), make([]uint8, 31), 256), bad: true},
		"type 3":                             {block: bits(1|3<<1, 3), bad: true},
		"fixed length 286":                   {block: bits(1|1<<1, 3, func(s *stream) { s.symbol(fixedLit, 286); s.put(0, 64) }), bad: true},
		"fixed length 287":                   {block: bits(1|1<<1, 3, func(s *stream) { s.symbol(fixedLit, 287); s.put(0, 64) }), bad: true},
		"fixed distance 30":                  {block: bits(1|1<<1, 3, func(s *stream) { s.symbol(fixedLit, 257); s.huff(30, 5); s.put(0, 64) }), bad: true},
		"fixed distance 31":                  {block: bits(1|1<<1, 3, func(s *stream) { s.symbol(fixedLit, 257); s.huff(31, 5); s.put(0, 64) }), bad: true},
		"repeating no code length":           {block: bits(1|2<<1, 3+14, bits(1|1<<9, 12), bits(1, 64)), bad: true},
		"oversubscribed code of lengths":     {block: bits(1|2<<1, 3+14, bits(1|1<<3|1<<6, 12), bits(0, 64)), bad: true},
		"incomplete code of lengths":         {block: bits(1|2<<1, 3+14, bits(2|2<<3, 12), bits(0, 64)), bad: true},
		"no code of lengths":                 {block: bits(1|2<<1, 3+14, bits(0, 12), bits(0, 64)), bad: true},
		"the other half of the only length":  {block: bits(1|2<<1, 3+14, bits(1<<9, 12), bits(1, 64)), bad: true},
		"more lengths than codes":            {block: bits(1|2<<1, 3+14, bits(1<<3|1<<6, 12), bits(255|255<<8|255<<16, 64)), bad: true},
		"distance to the first byte":         {block: bits(1|1<<1, 3, func(s *stream) { s.match(fixedLit, fixedDist, 3, 3); s.symbol(fixedLit, 256) }), plain: "xyz"},
		"distance beyond the first byte":     {block: bits(1|1<<1, 3, func(s *stream) { s.match(fixedLit, fixedDist, 3, 4); s.symbol(fixedLit, 256) }), bad: true},
		"greatest distance at the beginning": {block: bits(1|1<<1, 3, func(s *stream) { s.match(fixedLit, fixedDist, 3, 32768); s.symbol(fixedLit, 256) }), bad: true},
	} {
		t.Run(name, func(t *testing.T) {
			// Bytes behind make the fast loop decode it, without them the
			// careful one does.
			for _, behind := range []int{0, 200} {
				var s stream
				s.stored(0, []byte("xyz"))
				tt.block(&s)
				raw := member(s.b, []byte("xyz"+tt.plain))
				if behind > 0 && !tt.bad {
					raw = slices.Concat(raw, compress(t, 0, make([]byte, behind)))
				} else {
					raw = append(raw, make([]byte, behind)...)
				}
				plain, err := agree(t, raw)
				if tt.bad && err == nil {
					t.Errorf("accepted, %q", plain)
				}
				if want := append([]byte("xyz"+tt.plain), make([]byte, behind)...); !tt.bad && (err != nil || !bytes.Equal(plain, want)) {
					t.Errorf("%q, %v", plain, err)
				}
			}
		})
	}
}

// TestLongCodes has codes of every length up to 15 bits for literals, lengths
// and distances, so that second-level tables are made and read.
func TestLongCodes(t *testing.T) {
	rare := ones(286, ladder('e', 't', 'a', 'o', 257, 'n', 258, 's', 265, 'r', 'h', 269, 'd', 284, 256, 285))
	common := ones(286, ladder(285, 284, 269, 265, 257, 258, 256, 'e', 't', 'a', 'o', 'n', 's', 'r', 'h', 'd'))
	near := ones(30, ladder(0, 1, 2, 3, 4, 6, 8, 10, 12, 14, 16, 20, 24, 26, 28, 29))
	far := ones(30, ladder(29, 28, 26, 24, 20, 16, 14, 12, 10, 8, 6, 4, 3, 2, 1, 0))
	for name, lit := range map[string][]uint8{"rare lengths": rare, "common lengths": common} {
		for name2, dist := range map[string][]uint8{"near": near, "far": far} {
			t.Run(name+", "+name2, func(t *testing.T) {
				seed := noise(window32)
				var s stream
				s.stored(0, seed)
				s.dynamic(1, lit, dist)
				plain := bytes.Clone(seed)
				letters := []byte("etaonsrhd")
				for i := range 5000 {
					c := letters[i*i%len(letters)]
					s.symbol(lit, int(c))
					plain = append(plain, c)
					if i%3 != 0 {
						continue
					}
					length := []uint{3, 4, 11, 12, 19, 20, 227, 257, 258}[i/3%9]
					distance := []uint{1, 2, 3, 4, 5, 6, 9, 12, 17, 33, 40, 65, 96, 257, 1025, 4097, 8193, 16385, 24577, 32768}[i/7%20]
					s.match(lit, dist, length, distance)
					for range length {
						plain = append(plain, plain[len(plain)-int(distance)])
					}
				}
				s.symbol(lit, 256)
				got, err := agree(t, member(s.b, plain))
				if err != nil || !bytes.Equal(got, plain) {
					t.Errorf("%d of %d bytes, %v", len(got), len(plain), err)
				}
			})
		}
	}
}

func TestHeaders(t *testing.T) {
	plain := []byte("plain")
	tail := member([]byte{1, 5, 0, 250, 255, 'p', 'l', 'a', 'i', 'n'}, plain)[10:]
	head := func(flags byte, more ...byte) []byte {
		return slices.Concat([]byte{0x1f, 0x8b, 8, flags, 1, 2, 3, 4, 0, 255}, more)
	}
	name := func(n int) []byte { return append(bytes.Repeat([]byte{'n'}, n), 0) }
	for what, tt := range map[string]struct {
		head []byte
		bad  bool
	}{
		"plain":                {head: head(0)},
		"text":                 {head: head(1)},
		"header checksum":      {head: withSum(head(2))},
		"wrong checksum":       {head: head(2, 1, 2), bad: true},
		"no extra bytes":       {head: head(4, 0, 0)},
		"65535 extra bytes":    {head: append(head(4, 255, 255), make([]byte, 65535)...)},
		"name":                 {head: head(8, name(3)...)},
		"name of 511 bytes":    {head: head(8, name(511)...)},
		"name of 512 bytes":    {head: head(8, name(512)...), bad: true},
		"comment":              {head: head(16, name(511)...)},
		"comment of 512 bytes": {head: head(16, name(512)...), bad: true},
		"everything":           {head: withSum(head(31, slices.Concat([]byte{2, 0, 0, 0}, name(5), []byte{0xe4, 0})...))},
		"magic":                {head: append([]byte{0x1f, 0x8c}, head(0)[2:]...), bad: true},
		"method":               {head: append([]byte{0x1f, 0x8b, 7}, head(0)[3:]...), bad: true},
		"reserved flag":        {head: head(32), bad: true},
	} {
		t.Run(what, func(t *testing.T) {
			raw := append(tt.head, tail...)
			got, err := agree(t, raw)
			if tt.bad && !errors.Is(err, ErrCorrupt) || !tt.bad && (err != nil || !bytes.Equal(got, plain)) {
				t.Errorf("%q, %v", got, err)
			}
			for n := 0; !tt.bad && n < len(tt.head) && n < 600; n++ {
				if _, err := agree(t, tt.head[:n]); !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Errorf("%d bytes of it: %v", n, err)
				}
			}
			if !tt.bad {
				got, err := agree(t, slices.Concat(raw, raw))
				if err != nil || !bytes.Equal(got, slices.Concat(plain, plain)) {
					t.Errorf("twice: %q, %v", got, err)
				}
			}
		})
	}
}
