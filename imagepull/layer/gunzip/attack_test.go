package gunzip

import (
	"bytes"
	"errors"
	"hash/crc32"
	"io"
	"runtime"
	"slices"
	"testing"
)

// withSum adds the checksum of a gzip header.
func withSum(head []byte) []byte {
	sum := crc32.ChecksumIEEE(head)
	return append(head, byte(sum), byte(sum>>8))
}

// endless repeats a piece after a beginning, up to max bytes, and counts what
// was read.
type endless struct {
	head, piece []byte
	n, max      int
}

var errEnough = errors.New("enough")

func (e *endless) Read(p []byte) (n int, err error) {
	for n < len(p) {
		if e.n == e.max {
			return n, errEnough
		}
		if e.n < len(e.head) {
			p[n] = e.head[e.n]
		} else {
			p[n] = e.piece[(e.n-len(e.head))%len(e.piece)]
		}
		n++
		e.n++
	}
	return n, nil
}

// allocated is how many bytes f allocates.
func allocated(f func()) uint64 {
	var a, b runtime.MemStats
	runtime.ReadMemStats(&a)
	f()
	runtime.ReadMemStats(&b)
	return b.TotalAlloc - a.TotalAlloc
}

// TestBomb holds that memory does not grow with what comes out: it is up to
// the caller to stop.
func TestBomb(t *testing.T) {
	raw := compress(t, 9, make([]byte, 64<<20))
	var n int64
	var err error
	got := allocated(func() { n, err = io.Copy(io.Discard, NewReader(bytes.NewReader(raw), Options{})) })
	if n != 64<<20 || err != nil {
		t.Errorf("%d bytes, %v", n, err)
	}
	if got > 2<<20 {
		t.Errorf("allocated %d bytes", got)
	}
}

// TestEndlessInputWithoutOutput holds that what yields no bytes is read through
// at once, without spinning, and ends with the input.
func TestEndlessInputWithoutOutput(t *testing.T) {
	empty := member([]byte{3, 0}, nil)
	var header stream
	header.put(1<<1, 3) // a fixed block of nothing: 10 bits, so 5 bytes for 4
	for range 4 {
		header.symbol(fixedLit, 256)
		header.put(1<<1, 3)
	}
	fixed := header.b[:5]
	var s stream
	s.dynamic(0, ones(257, endOnly), []uint8{0})
	s.symbol(ones(257, endOnly), 256)
	for s.n != 0 { // up to a byte
		s.put(0, 3) // a stored block aligns
		s.n = 0
		s.b = append(s.b, 0, 0, 255, 255)
	}
	gz := empty[:10]
	for name, e := range map[string]*endless{
		"empty members":                      {piece: empty, max: 1 << 20},
		"empty stored blocks":                {head: gz, piece: []byte{0, 0, 0, 255, 255}, max: 1 << 20},
		"empty fixed blocks":                 {head: gz, piece: fixed, max: 1 << 20},
		"empty dynamic blocks":               {head: gz, piece: s.b, max: 1 << 20},
		"extra fields":                       {piece: slices.Concat([]byte{0x1f, 0x8b, 8, 4}, gz[4:], []byte{255, 255}, make([]byte, 65535), empty[10:]), max: 1 << 20},
		"a name":                             {head: slices.Concat([]byte{0x1f, 0x8b, 8, 8}, gz[4:]), piece: []byte{'n'}, max: 1 << 20},
		"members that end in a stored block": {piece: member([]byte{1, 0, 0, 255, 255}, nil), max: 1 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			var n int
			var err error
			got := allocated(func() { n, err = NewReader(e, Options{}).Read(make([]byte, 100)) })
			if name == "a name" {
				if !errors.Is(err, ErrCorrupt) || e.n > 128<<10 {
					t.Errorf("%v after %d bytes of input", err, e.n)
				}
			} else if n != 0 || err != errEnough || e.n != e.max { //nolint:errorlint // as it is
				t.Errorf("%d bytes, %v after %d bytes of input", n, err, e.n)
			}
			if got > 2<<20 {
				t.Errorf("allocated %d bytes", got)
			}
		})
	}
}

func TestLyingTrailer(t *testing.T) {
	plain := words(1000)
	raw := compress(t, 6, plain)
	for i := len(raw) - 8; i < len(raw); i++ {
		bad := bytes.Clone(raw)
		bad[i] ^= 0x10
		got, err := agree(t, bad)
		if !errors.Is(err, ErrCorrupt) || !bytes.Equal(got, plain) {
			t.Errorf("byte %d: %d bytes, %v", i, len(got), err)
		}
		// The member that follows is not delivered.
		if got, err = agree(t, slices.Concat(bad, raw)); !errors.Is(err, ErrCorrupt) || !bytes.Equal(got, plain) {
			t.Errorf("byte %d, one more member: %d bytes, %v", i, len(got), err)
		}
	}
}

func TestWhatFollowsTheLastMember(t *testing.T) {
	raw := compress(t, 6, []byte("plain"))
	for name, tt := range map[string]struct {
		tail []byte
		err  error
	}{
		"nothing":           {nil, nil},
		"a zero":            {make([]byte, 1), io.ErrUnexpectedEOF},
		"zeros":             {make([]byte, 512), ErrCorrupt},
		"part of a header":  {raw[:9], io.ErrUnexpectedEOF},
		"a header":          {raw[:10], io.ErrUnexpectedEOF},
		"garbage":           {noise(100), ErrCorrupt},
		"part of a member":  {raw[:len(raw)-1], io.ErrUnexpectedEOF},
		"member and a zero": {append(bytes.Clone(raw), 0), io.ErrUnexpectedEOF},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := agree(t, slices.Concat(raw, tt.tail))
			if !errors.Is(err, tt.err) || !bytes.HasPrefix(got, []byte("plain")) {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
	if _, err := gunzip(bytes.NewReader(nil)); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("no stream at all: %v", err)
	}
}

// TestDistanceBeyondTheStart has matches that reach one byte too far, at
// positions all over the buffer and into the member before.
func TestDistanceBeyondTheStart(t *testing.T) {
	for _, have := range []int{0, 1, 2, 7, 8, 100, 32766, 32767, 32768, 32769, 65536, 131072} {
		for _, before := range []int{0, 10, 300 << 10} {
			var s stream
			plain := noise(have)
			for part := range slices.Chunk(plain, 65535) {
				s.stored(0, part)
			}
			s.put(1|1<<1, 3)
			far := have < 32768
			s.match(fixedLit, fixedDist, 258, uint(min(have+1, 32768)))
			for range 258 {
				if !far {
					plain = append(plain, plain[len(plain)-32768])
				}
			}
			s.symbol(fixedLit, 256)
			raw := member(s.b, plain)
			if before > 0 {
				raw = slices.Concat(compress(t, 1, noise(before)), raw)
			}
			if _, err := agree(t, raw); far != errors.Is(err, ErrCorrupt) || far != (err != nil) {
				t.Errorf("%d bytes after %d of another member: %v", have, before, err)
			}
		}
	}
}
