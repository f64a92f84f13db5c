package gunzip

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"testing"
	"testing/iotest"
)

// script is a reader whose data comes in chunks of a size, with so many reads of
// nothing before each, and which ends in its own way. It refuses to be asked for
// more than a decoder has a reason to: one that spins does not spin on it.
type script struct {
	data        []byte
	chunk, idle int
	end         error // nil: nothing, again and again
	together    bool  // end comes with the last bytes
	waited      int
	calls, max  int
}

var errSpins = errors.New("the decoder asks and asks")

func (s *script) Read(p []byte) (int, error) {
	if s.calls++; s.calls > s.max {
		return 0, errSpins
	}
	if len(p) == 0 {
		return 0, errors.New("asked for nothing")
	}
	if len(s.data) == 0 {
		return 0, s.end
	}
	if s.waited++; s.waited <= s.idle {
		return 0, nil
	}
	s.waited = 0
	n := copy(p, s.data[:min(s.chunk, len(s.data))])
	if s.data = s.data[n:]; len(s.data) == 0 && s.together {
		return n, s.end
	}
	return n, nil
}

// TestNoReaderMakesItSpin cuts streams at every byte, where the reader below
// fails, ends or reads nothing for ever, with its last bytes or after them.
func TestNoReaderMakesItSpin(t *testing.T) {
	broken := errors.New("broken")
	raw, plain := short(t)
	// Codes at the very end of the buffer and a stored block, too.
	long := slices.Concat(compress(t, 6, words(40000)), compress(t, 0, noise(3000)))
	longPlain := slices.Concat(words(40000), noise(3000))
	for _, tt := range []struct {
		name       string
		raw, plain []byte
		step       int
	}{{"short", raw, plain, 1}, {"long", long, longPlain, 997}} {
		for _, chunk := range []int{1, 29, 1 << 20} {
			for _, end := range []error{nil, io.EOF, broken} {
				for _, together := range []bool{false, true} {
					for n := 0; n <= len(tt.raw); n += tt.step {
						s := &script{data: tt.raw[:n], chunk: chunk, end: end, together: together && end != nil, max: n + 200}
						got, err := io.ReadAll(NewReader(s, Options{}))
						want := end
						if end == nil {
							want = io.ErrNoProgress
						} else if errors.Is(end, io.EOF) && err != nil { // not between members
							want = io.ErrUnexpectedEOF
						} else if errors.Is(end, io.EOF) {
							want = nil
						}
						if !errors.Is(err, want) || !bytes.HasPrefix(tt.plain, got) {
							t.Fatalf("%s, %d bytes by %d, then %v (with them: %t): %v, %d calls", tt.name, n, chunk, end, together, err, s.calls)
						}
					}
				}
			}
		}
	}
}

// TestReadsOfNothing are put up with between any two bytes, but not for ever.
func TestReadsOfNothing(t *testing.T) {
	raw, plain := short(t)
	s := &script{data: raw, chunk: 1, idle: 99, end: io.EOF, max: 100*len(raw) + 1}
	if got, err := io.ReadAll(NewReader(s, Options{})); err != nil || !bytes.Equal(got, plain) {
		t.Errorf("%d of %d bytes, %v", len(got), len(plain), err)
	}
	if _, err := NewReader(iotest.OneByteReader(&script{data: raw, chunk: 1, idle: 1000, max: 1 << 20}), Options{}).WriteTo(io.Discard); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("many reads of nothing: %v", err)
	}
}
